package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunkMessages limits how many requests one sendmsg carries. A chunk of
	// failures must fit the receive buffer: an error report with the
	// kernel's text takes about 1.3 KiB of it.
	chunkMessages = 250
	// chunkBytes limits a sendmsg, well below the default send buffer of 208 KiB.
	chunkBytes = 64 << 10
	// receiveBuffer is asked for on each socket; memory is used only while
	// replies wait in it.
	receiveBuffer = 4 << 20
	// readBuffer is the largest message that a dump returns at once
	// (netlink_dump in net/netlink/af_netlink.c allocates at most 32 KiB).
	readBuffer = 64 << 10
	// replyTimeout limits the wait for replies that are due at once: requests
	// are worked off within sendmsg. A context is therefore looked at between
	// messages only; leaving in the middle would strand replies.
	replyTimeout = 30 * time.Second
	// dumpAttempts limits how often an interrupted dump is repeated.
	dumpAttempts = 10
)

// conn is a netlink socket, for notifications or for requests whose replies matter
// one by one. It is bound to the network namespace of the thread that opened it.
// Calls are serialized.
//
// A socket for requests is none of the runtime's poller, which would be woken by
// every reply to find that nobody waits: the kernel has replied when the call that
// sends the request returns.
type conn struct {
	mu     sync.Mutex
	file   *os.File
	raw    syscall.RawConn
	polled bool // for notifications
	seq    uint32
	out    message
	in     *[readBuffer]byte // what was last read; nil while nothing is needed of it
}

// buffers are lent to sockets that read: an agent has several in each namespace, of
// which most wait.
var buffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// forget gives back what was read.
func (c *conn) forget() {
	if c.in != nil {
		buffers.Put(c.in)
		c.in = nil
	}
}

// openConn opens a socket in the calling thread's network namespace: for the
// notifications of groups if there are any, otherwise for requests.
func openConn(protocol int, groups ...int) (*conn, error) {
	kind := unix.SOCK_RAW | unix.SOCK_CLOEXEC
	if len(groups) > 0 {
		kind |= unix.SOCK_NONBLOCK // which has os.NewFile tell the poller
	}
	fd, err := unix.Socket(unix.AF_NETLINK, kind, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	if err := configure(fd, groups); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if len(groups) == 0 {
		limit := unix.NsecToTimeval(replyTimeout.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return nil, errors.Join(fmt.Errorf("limit a netlink socket's wait for replies: %w", err), file.Close())
		}
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &conn{file: file, raw: raw, polled: len(groups) > 0}, nil
}

func configure(fd int, groups []int) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind a netlink socket: %w", err)
	}
	// Without CAP_NET_ADMIN over the initial user namespace the system's
	// limit (net.core.rmem_max) applies.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return fmt.Errorf("set a netlink socket's receive buffer: %w", err)
		}
	}
	// Refinements only: filtered dumps (4.20), acknowledgements without the
	// request (4.2), error texts (4.12). All works without them.
	for _, option := range []int{unix.NETLINK_GET_STRICT_CHK, unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("subscribe to netlink group %d: %w", group, err)
		}
	}
	return nil
}

// port is the address by which the kernel knows the socket.
func (c *conn) port() (uint32, error) {
	var port uint32
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, failed = unix.Getsockname(int(fd)); failed == nil {
			if own, ok := sa.(*unix.SockaddrNetlink); ok {
				port = own.Pid
			}
		}
	})
	if err := cmp.Or(err, failed); err != nil {
		return 0, fmt.Errorf("read a netlink socket's port: %w", err)
	}
	return port, nil
}

// Close ends the wait for notifications with os.ErrClosed, and lets a request that is
// under way end.
func (c *conn) Close() error { return c.file.Close() }

// batch sends n requests, which build makes in turn with begin and end, and
// returns one error per request. Requests are worked off in order; a failure
// does not stop those behind it.
func (c *conn) batch(ctx context.Context, n int, build func(i int, m *message, seq uint32)) []error {
	errs := make([]error, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	for done := 0; done < n; {
		count := c.fill(done, n, build)
		chunk := errs[done : done+count]
		err := ctx.Err()
		if err == nil {
			err = c.exchange(chunk)
		}
		if err != nil {
			for i := range chunk {
				if chunk[i] == nil {
					chunk[i] = err
				}
			}
		}
		done += count
	}
	return errs
}

// fill builds one chunk of requests. Its sequence numbers end at c.seq.
func (c *conn) fill(done, n int, build func(int, *message, uint32)) int {
	c.out.b = c.out.b[:0]
	count := 0
	for done+count < n && count < chunkMessages && len(c.out.b) < chunkBytes {
		c.seq++
		build(done+count, &c.out, c.seq)
		count++
	}
	// The kernel reports every failure; asking only the last request for an
	// acknowledgement marks the end of the chunk at the least cost.
	c.out.addFlags(unix.NLM_F_ACK)
	return count
}

// exchange sends the chunk and collects failures until the last request's
// acknowledgement. An error means that the outcome of the rest is unknown.
func (c *conn) exchange(errs []error) error {
	defer c.forget()
	first := c.seq - uint32(len(errs)) + 1
	if err := c.send(); err != nil {
		return err
	}
	for {
		msgs, err := c.receive()
		if err != nil {
			return fmt.Errorf("read netlink replies: %w", err)
		}
		for _, m := range msgs {
			i := m.Header.Seq - first
			if i >= uint32(len(errs)) || m.Header.Type != unix.NLMSG_ERROR {
				continue // a late reply to a request that was given up
			}
			errs[i] = replyError(m)
			if m.Header.Seq == c.seq {
				return nil
			}
		}
	}
}

// ask sends one request, NLM_F_DUMP for all objects of a sort or NLM_F_ACK for
// one, and calls f with each reply's body. f must start afresh when restart is called: the kernel marks a listing that
// was overtaken by a change, and it is then taken again.
func (c *conn) ask(ctx context.Context, typ, flags uint16, request []byte, restart func(), f func(body []byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		restart()
		c.seq++
		c.out.b = c.out.b[:0]
		c.out.begin(typ, flags, c.seq)
		c.out.b = append(c.out.b, request...)
		c.out.end()
		interrupted, err := c.answers(f)
		if err != nil {
			return err
		}
		if !interrupted {
			return nil
		}
	}
	return fmt.Errorf("the listing was interrupted by changes %d times: %w", dumpAttempts, unix.EINTR)
}

func (c *conn) answers(f func([]byte) error) (interrupted bool, err error) {
	if err := c.send(); err != nil {
		return false, err
	}
	defer c.forget()
	var failed error
	for {
		msgs, err := c.receive()
		if err != nil {
			return false, fmt.Errorf("read a netlink listing: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Seq != c.seq {
				continue
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return interrupted, errors.Join(failed, replyError(m))
			default:
				if failed == nil {
					failed = f(m.Data)
				}
			}
		}
	}
}

// send writes the built requests.
func (c *conn) send() error {
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		_, failed = ignoringEINTR(func() (int, error) {
			return 0, unix.Sendto(int(fd), c.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		})
		return true
	})
	if err := cmp.Or(err, failed); err != nil {
		return fmt.Errorf("send netlink requests: %w", err)
	}
	return nil
}

// receive reads what one datagram holds. The messages are valid until the next call,
// or forget.
func (c *conn) receive() ([]syscall.NetlinkMessage, error) {
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := c.raw.Read(func(fd uintptr) bool {
			if c.in == nil {
				c.in, _ = buffers.Get().(*[readBuffer]byte)
			}
			n, failed = ignoringEINTR(func() (n int, err error) {
				n, from, err = unix.Recvfrom(int(fd), c.in[:], unix.MSG_TRUNC)
				return n, err
			})
			if c.polled && failed == unix.EAGAIN { //nolint:errorlint // an errno as it is
				c.forget()
				return false
			}
			return true
		})
		if failed == unix.EAGAIN { //nolint:errorlint // an errno as it is
			failed = fmt.Errorf("no reply within %v: %w", replyTimeout, os.ErrDeadlineExceeded)
		}
		if err := cmp.Or(err, failed); err != nil {
			return nil, err
		}
		if n > len(c.in) {
			return nil, fmt.Errorf("a netlink message of %d bytes: %w", n, errTruncated)
		}
		// Only the kernel (port 0) is believed.
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		return syscall.ParseNetlinkMessage(c.in[:n])
	}
}

// replyError is the outcome that an acknowledgement or the end of a dump reports.
func replyError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil // the end of a dump may carry no code
	}
	code := int32(native.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return errno
	}
	// Behind the code: the request's header (its body too if the flag for
	// capped acknowledgements is not set), then attributes.
	skip := 4 + unix.SizeofNlMsghdr
	if m.Header.Type == unix.NLMSG_DONE {
		skip = 4
	} else if m.Header.Flags&unix.NLM_F_CAPPED == 0 && len(m.Data) >= skip {
		skip = 4 + int(native.Uint32(m.Data[4:]))
	}
	text := ""
	err := walk(m.Data, skip, func(typ uint16, value []byte) error {
		if typ == unix.NLMSGERR_ATTR_MSG {
			text = unix.ByteSliceToString(value)
		}
		return nil
	})
	if err != nil || text == "" {
		return errno
	}
	return fmt.Errorf("%w: %s", errno, text)
}

// dumpAll lists all objects of one sort. parse returns false for an object that
// the caller does not want.
func dumpAll[T any](ctx context.Context, c *conn, typ uint16, request []byte, parse func([]byte) (T, bool, error)) ([]T, error) {
	return get(ctx, c, typ, unix.NLM_F_DUMP, request, parse)
}

func get[T any](ctx context.Context, c *conn, typ, flags uint16, request []byte, parse func([]byte) (T, bool, error)) ([]T, error) {
	var all []T
	err := c.ask(ctx, typ, flags, request, func() { all = all[:0] }, func(body []byte) error {
		v, ok, err := parse(body)
		if ok && err == nil {
			all = append(all, v)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
