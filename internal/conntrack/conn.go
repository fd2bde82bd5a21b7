package conntrack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// chunk is how many requests one sendmsg carries: 250 of at most 400 bytes
	// fit the default send buffer of 208 KiB.
	chunk = 250
	// patience limits the wait for answers, which are due within sendmsg.
	patience = 30 * time.Second
)

// Conn asks the kernel about the table of one namespace. Its methods are safe
// for concurrent use and serialized. It keeps its namespace alive: close it
// when the namespace is to go.
type Conn struct {
	mu   sync.Mutex
	sock *socket.Conn
	raw  reader
	seq  uint32
	out  message
	in   []byte // for lists
}

// Open opens the table of the namespace that is mounted at path, usually
// /run/netns/NAME; "" is the caller's own. The error is fs.ErrNotExist if there
// is none. CAP_NET_ADMIN is needed, and CAP_SYS_ADMIN to enter a namespace.
func Open(path string) (*Conn, error) {
	s, err := openSocket(path, requestBuffer)
	if err != nil {
		return nil, err
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Conn{sock: s, raw: raw, in: make([]byte, readBuffer)}, nil
}

// Close releases the namespace. Calls in progress end with an error.
func (c *Conn) Close() error { return c.sock.Close() }

// Create adds entries and returns one error for each: nil, or EEXIST if a flow
// with either tuple is there. Translation is set up as the entry's tuples tell,
// and TCP windows are not enforced in either direction.
func (c *Conn) Create(ctx context.Context, entries []Entry) []error {
	return c.batch(ctx, len(entries), func(i int, m *message, seq uint32) {
		e := &entries[i]
		m.begin(msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, seq, family(&e.Orig))
		m.create(e)
		m.end()
	}, nil)
}

// Update changes the status, time-out, mark and TCP state of entries and returns one
// error for each: nil, or ENOENT. Translation cannot be changed.
func (c *Conn) Update(ctx context.Context, entries []Entry) []error {
	return c.batch(ctx, len(entries), func(i int, m *message, seq uint32) {
		e := &entries[i]
		m.begin(msgNew, 0, seq, family(&e.Orig))
		m.tuple(attrTupleOrig, &e.Orig)
		m.state(e)
		m.end()
	}, nil)
}

// Delete removes the flows that the tuples, of either direction, belong to. An
// absent one is success.
func (c *Conn) Delete(ctx context.Context, tuples []Tuple) []error {
	errs := c.batch(ctx, len(tuples), func(i int, m *message, seq uint32) {
		t := &tuples[i]
		m.begin(msgDelete, 0, seq, family(t))
		// The kernel looks up either direction by either attribute.
		m.tuple(attrTupleOrig, t)
		m.end()
	}, nil)
	for i, err := range errs {
		if errors.Is(err, unix.ENOENT) {
			errs[i] = nil
		}
	}
	return errs
}

// Get looks flows up and calls found for each that is there; e is valid during
// the call.
func (c *Conn) Get(ctx context.Context, tuples []Tuple, found func(i int, e *Entry)) error {
	var e Entry
	errs := c.batch(ctx, len(tuples), func(i int, m *message, seq uint32) {
		m.begin(msgGet, 0, seq, family(&tuples[i]))
		m.tuple(attrTupleOrig, &tuples[i])
		m.end()
	}, func(i int, body []byte) error {
		if err := parse(body, &e); err != nil {
			return err
		}
		found(i, &e)
		return nil
	})
	for _, err := range errs {
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("look up flows: %w", err)
		}
	}
	return nil
}

func family(t *Tuple) uint8 {
	if t.IPv4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Dump calls f with every entry whose status has all of the bits, which the
// kernel filters by since Linux 5.17. e is valid during the call. An entry that
// is made, or goes, meanwhile may be missing or not, and one may come twice.
func (c *Conn) Dump(ctx context.Context, status Status, f func(e *Entry)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	c.out.b = c.out.b[:0]
	c.out.begin(msgGet, unix.NLM_F_DUMP, c.seq, unix.AF_UNSPEC)
	if status != 0 {
		c.out.u32(attrStatus, uint32(status))
		c.out.u32(attrStatusMask, uint32(status))
	}
	c.out.end()
	var e Entry
	err := c.transact(ctx, func(typ uint16, body []byte) (bool, error) {
		switch typ {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, outcome(body)
		}
		if err := parse(body, &e); err != nil {
			return false, err
		}
		if e.Status&status == status {
			f(&e)
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("list conntrack entries: %w", err)
	}
	return nil
}

// Count returns how many entries the namespace has, of whatever status.
func (c *Conn) Count(ctx context.Context) (int, error) {
	entries, _, err := c.Occupancy(ctx)
	return entries, err
}

// Occupancy returns how many entries the namespace has, of whatever status, and
// how many it may have (nf_conntrack_max); the limit is 0 before Linux 4.18,
// which does not tell.
func (c *Conn) Occupancy(ctx context.Context) (entries, limit int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	c.out.b = c.out.b[:0]
	c.out.begin(msgStats, 0, c.seq, unix.AF_UNSPEC)
	c.out.end()
	c.out.acknowledge()
	var count, most uint32
	err = c.transact(ctx, func(typ uint16, body []byte) (bool, error) {
		if typ == unix.NLMSG_ERROR {
			return true, outcome(body)
		}
		if len(body) < 4 {
			return false, errTruncated
		}
		return false, each(body[4:], func(typ uint16, v []byte) error {
			switch typ {
			case attrGlobalEntries:
				return get32(v, &count)
			case attrGlobalLimit:
				return get32(v, &most)
			}
			return nil
		})
	})
	if err != nil {
		return 0, 0, fmt.Errorf("count conntrack entries: %w", err)
	}
	return int(count), int(most), nil
}

// transact sends the built request and passes its answers on until f says that
// was the last, or fails. The rest of a failed exchange is not waited for: its
// answers are known by their sequence number.
func (c *Conn) transact(ctx context.Context, f func(typ uint16, body []byte) (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.sock.Sendto(ctx, c.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		b, err := receive(ctx, c.sock, c.in)
		if err != nil {
			return err
		}
		done := false
		err = frames(b, func(typ, _ uint16, seq uint32, body []byte) error {
			if seq != c.seq || done {
				return nil
			}
			var err error
			done, err = f(typ, body)
			return err
		})
		if done || err != nil {
			return err
		}
	}
}

// batch sends n requests, which build makes, and returns one error for each.
// A failure does not stop those behind it. answer, if not nil, gets the bodies
// of answers.
func (c *Conn) batch(ctx context.Context, n int, build func(i int, m *message, seq uint32), answer func(i int, body []byte) error) []error {
	errs := make([]error, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	for done := 0; done < n; {
		count := min(chunk, n-done)
		c.out.b = c.out.b[:0]
		first := c.seq + 1
		for i := range count {
			c.seq++
			build(done+i, &c.out, c.seq)
		}
		c.out.acknowledge()
		part := errs[done : done+count]
		if err := c.exchange(ctx, first, done, part, answer); err != nil {
			for i := range part {
				if part[i] == nil {
					part[i] = err
				}
			}
		}
		done += count
	}
	return errs
}

// exchange sends a chunk and collects outcomes until the last request's
// acknowledgement. An error means that the outcome of the rest is unknown.
func (c *Conn) exchange(ctx context.Context, first uint32, offset int, errs []error, answer func(int, []byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.sock.Sendto(ctx, c.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send conntrack requests: %w", err)
	}
	b := borrow()
	defer inboxes.Put(b)
	got := outcomes{first: first, last: c.seq, offset: offset, errs: errs, answer: answer}
	for !got.done {
		n, err := b.await(ctx, c.sock, c.raw)
		for i := 0; err == nil && i < n; i++ {
			var d []byte
			if d, err = b.datagram(i); err == nil {
				err = frames(d, got.take)
			}
		}
		if err != nil {
			return fmt.Errorf("read conntrack answers: %w", err)
		}
	}
	return nil
}

// outcomes gathers what the kernel says about a chunk of requests.
type outcomes struct {
	first, last uint32 // sequence numbers
	offset      int    // of the chunk among all requests
	errs        []error
	answer      func(i int, body []byte) error
	done        bool
}

func (o *outcomes) take(typ, _ uint16, seq uint32, body []byte) error {
	i := seq - o.first
	switch {
	case i >= uint32(len(o.errs)): // a late answer to what was given up
	case typ == unix.NLMSG_ERROR:
		o.errs[i] = outcome(body)
		o.done = o.done || seq == o.last
	case o.answer != nil:
		return o.answer(o.offset+int(i), body)
	}
	return nil
}

// outcome is what an acknowledgement, or the end of a dump, says.
func outcome(body []byte) error {
	if len(body) < 4 {
		return nil // the end of a dump may carry no code
	}
	if code := int32(native.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
