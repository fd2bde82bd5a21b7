package conntrack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// inboxSlots is how many datagrams one system call takes. An event, and an
	// answer to a lookup, is a datagram of its own, and a call for each of
	// them was most of what replicating a short flow cost.
	inboxSlots = 64
	// slotSize holds an entry's message several times over: all its attributes
	// together, with labels and timestamps, are less than 600 bytes.
	slotSize = 2 << 10
)

// mmsghdr is recvmmsg(2)'s.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// inbox takes many datagrams of the kernel at a time.
type inbox struct {
	headers [inboxSlots]mmsghdr
	vectors [inboxSlots]unix.Iovec
	senders [inboxSlots]unix.RawSockaddrNetlink
	data    [inboxSlots][slotSize]byte
}

// inboxes are lent for the length of a call: there is a socket or two for each
// namespace, and few are read at a time.
var inboxes sync.Pool

// borrow returns an inbox, which is to be put back into inboxes.
func borrow() *inbox {
	if b, ok := inboxes.Get().(*inbox); ok {
		return b
	}
	b := &inbox{}
	for i := range b.headers {
		b.vectors[i].Base = &b.data[i][0]
		b.vectors[i].SetLen(slotSize)
		h := &b.headers[i].header
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&b.senders[i]))
	}
	return b
}

// receive takes what has arrived, at most limit datagrams, without waiting. The error
// is EAGAIN if there is nothing.
func (b *inbox) receive(fd uintptr, limit int) (int, error) {
	limit = min(limit, inboxSlots)
	for i := range limit {
		b.headers[i].header.Namelen = unix.SizeofSockaddrNetlink
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.headers)), uintptr(limit), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// datagram returns the i-th one; nil is one that is not the kernel's.
func (b *inbox) datagram(i int) ([]byte, error) {
	h := &b.headers[i]
	if h.header.Flags&unix.MSG_TRUNC != 0 {
		return nil, fmt.Errorf("more than %d bytes: %w", slotSize, errTruncated)
	}
	if b.senders[i].Pid != 0 {
		return nil, nil
	}
	return b.data[i][:h.length], nil
}

// await is receive that waits for a first datagram until the context ends.
func (b *inbox) await(ctx context.Context, s *socket.Conn, raw reader) (n int, err error) {
	for {
		if e := raw.Read(func(fd uintptr) bool {
			n, err = b.receive(fd, inboxSlots)
			return true
		}); e != nil {
			return 0, e
		}
		if !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
		if _, _, err := s.Recvfrom(ctx, b.data[0][:0], unix.MSG_PEEK); err != nil {
			return 0, err
		}
	}
}

// reader is of a syscall.RawConn what is needed.
type reader interface {
	Read(f func(fd uintptr) bool) error
}
