package nft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// lane is a lasting connection into the agent's own namespace.
type lane struct {
	mu   sync.Mutex
	conn *conn // nil before the first use, and after a failure
}

// Exchange deletes steering elements of the agent's own namespace and adds
// others, in one transaction, without reading the table: that takes a tenth of
// a millisecond, however many there are. It can only do what needs no change of
// the rest of the table. done is false, and nothing has changed, if the table
// has no map or mark chain for an element, or not the elements to delete, or has an
// added one with another mark; then use [Tables.Apply]. Chains and maps that the
// last element leaves stay.
//
// No news of it reaches whoever leaves out what [Senders] own.
func (ts *Tables) Exchange(ctx context.Context, remove, add map[Match]Mark) (done bool, err error) {
	if err := (Change{AddSteers: add}).validate(); err != nil {
		return false, err
	}
	ts.lane.mu.Lock()
	defer ts.lane.mu.Unlock()
	if ts.lane.conn == nil {
		if ts.lane.conn, err = ts.openLane(); err != nil {
			return false, err
		}
	}
	c := ts.lane.conn
	err = c.exchange(ctx, Contents{Steers: remove}.elements(), Contents{Steers: add}.elements())
	if err == nil {
		return true, nil
	}
	// Answers of the failed transaction may still be on their way.
	ts.closeLane()
	if outdated(err) {
		return false, nil
	}
	return false, c.wrap("writing", err)
}

func (ts *Tables) openLane() (*conn, error) {
	c, err := ts.open(context.Background(), "")
	if err != nil {
		return nil, err
	}
	if id, err := c.portID(); err == nil {
		ts.options.Senders.add(id)
	}
	return c, nil
}

func (ts *Tables) closeLane() {
	if id, err := ts.lane.conn.portID(); err == nil {
		ts.options.Senders.remove(id)
	}
	ts.lane.conn.close()
	ts.lane.conn = nil
}

// Close closes what [Tables.Exchange] keeps open.
func (ts *Tables) Close() error {
	ts.lane.mu.Lock()
	defer ts.lane.mu.Unlock()
	if ts.lane.conn != nil {
		ts.closeLane()
	}
	return nil
}

func (c *conn) exchange(ctx context.Context, remove, add map[string]elements) error {
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.nl.SetDeadline(deadline); err != nil {
		return err
	}
	for set, elems := range remove {
		if err := c.SetDeleteElements(&nftables.Set{Table: table(), Name: set}, list(elems)); err != nil {
			return err
		}
	}
	for set, elems := range add {
		if err := c.SetAddElements(&nftables.Set{Table: table(), Name: set}, list(elems)); err != nil {
			return err
		}
	}
	return c.Flush()
}

func list(elems elements) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(elems))
	for key, chain := range elems {
		out = append(out, element(key, chain))
	}
	return out
}

// portID returns the socket's address: what the kernel names as the sender in
// notifications.
func (c *conn) portID() (uint32, error) {
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return 0, err
	}
	var name unix.Sockaddr
	if err := errors.Join(raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) }), err); err != nil {
		return 0, err
	}
	nl, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("a netlink socket is at %T: %w", name, syscall.EINVAL)
	}
	return nl.Pid, nil
}

// Senders are netlink sockets of this process whose changes of nftables need no
// second look. The zero value has none, as has nil. It is safe for concurrent use.
type Senders struct {
	mu  sync.Mutex
	ids map[uint32]struct{}
}

// Own tells whether a notification's sender (nlmsg_pid) is one of them.
func (s *Senders) Own(portID uint32) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, own := s.ids[portID]
	return own
}

func (s *Senders) add(id uint32) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[uint32]struct{}{}
	}
	s.ids[id] = struct{}{}
}

func (s *Senders) remove(id uint32) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}
