package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// readBuffer makes the kernel fill dumps in its largest pieces
	// (net/netlink/af_netlink.c, netlink_dump: 32 KiB).
	readBuffer = 64 << 10
	// requestBuffer holds the answers to one chunk: 4.5 KiB each of a Get.
	requestBuffer = 4 << 20
	// eventBuffer holds about 16,000 events.
	eventBuffer = 16 << 20
)

// openSocket opens a netlink socket in the namespace at path; "" is the calling
// process's own. It fails with fs.ErrNotExist if there is no namespace at path.
func openSocket(path string, buffer int, groups ...int) (*socket.Conn, error) {
	cfg := &socket.Config{}
	if path != "" {
		file, err := openNamespace(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }() // the socket stays in the namespace
		cfg.NetNS = int(file.Fd())
	}
	s, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, "ctnetlink", cfg)
	if err != nil {
		return nil, fmt.Errorf("open a conntrack socket: %w", err)
	}
	if err := configure(s, buffer, groups); err != nil {
		return nil, errors.Join(fmt.Errorf("open a conntrack socket: %w", err), s.Close())
	}
	return s, nil
}

func configure(s *socket.Conn, buffer int, groups []int) error {
	if err := s.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := s.SetReadBuffer(buffer); err != nil {
		return fmt.Errorf("set the receive buffer: %w", err)
	}
	// Without it an error carries the request along (since Linux 4.2); both work.
	_ = s.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	for _, g := range groups {
		if err := s.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("subscribe to group %d: %w", g, err)
		}
	}
	return nil
}

// openNamespace opens a file that names a network namespace. The file may be
// there without one: a creation that did not end leaves it behind.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(&os.PathError{Op: "statfs", Path: path, Err: err}, f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(&os.PathError{Op: "open namespace", Path: path, Err: unix.ENOENT}, f.Close())
	}
	return f, nil
}

// frames calls f with each netlink message in what one receive returned.
func frames(b []byte, f func(typ, flags uint16, seq uint32, body []byte) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errTruncated
		}
		if err := f(native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// receive reads one datagram of the kernel into buf.
func receive(ctx context.Context, s *socket.Conn, buf []byte) ([]byte, error) {
	for {
		n, from, err := s.Recvfrom(ctx, buf, unix.MSG_TRUNC)
		if err != nil {
			return nil, err
		}
		if n > len(buf) {
			return nil, fmt.Errorf("%d bytes: %w", n, errTruncated)
		}
		// Only the kernel (port 0) is believed.
		if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == 0 {
			return buf[:n], nil
		}
	}
}
