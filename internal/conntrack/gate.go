package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gate waits for a descriptor without being woken while nobody waits.
//
// The runtime watches descriptors from when they are opened until they are closed,
// and wakes up for every datagram, also while nobody reads: with a thousand events
// a second that cost more than reading them. So the descriptor is watched by an
// epoll instance of its own, once for each time that somebody waits
// (EPOLLONESHOT), and the runtime watches that instance.
type gate struct {
	fd    int
	epoll *os.File
	raw   syscall.RawConn
}

func newGate(fd int) (*gate, error) {
	at, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := errors.Join(unix.SetNonblock(at, true),
		unix.EpollCtl(at, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(fd)})); err != nil {
		return nil, errors.Join(fmt.Errorf("watch a socket: %w", err), unix.Close(at))
	}
	g := &gate{fd: fd, epoll: os.NewFile(uintptr(at), "epoll")}
	if g.raw, err = g.epoll.SyscallConn(); err != nil {
		return nil, errors.Join(err, g.epoll.Close())
	}
	return g, nil
}

// wait returns once the descriptor can be read, or has an error to tell.
func (g *gate) wait(ctx context.Context) error {
	var failed error
	arm := func(at uintptr) {
		failed = unix.EpollCtl(int(at), unix.EPOLL_CTL_MOD, g.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(g.fd)})
	}
	if err := errors.Join(g.raw.Control(arm), failed); err != nil {
		return err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = g.epoll.SetReadDeadline(time.Unix(1, 0)) // long ago
		close(ended)
	})
	var events [1]unix.EpollEvent
	err := g.raw.Read(func(at uintptr) bool {
		var n int
		n, failed = unix.EpollWait(int(at), events[:], 0)
		return n > 0 || failed != nil && !errors.Is(failed, unix.EINTR)
	})
	if !stop() {
		<-ended
		_ = g.epoll.SetReadDeadline(time.Time{})
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	}
	return failed
}

// close ends a wait in progress with an error. The descriptor is not the gate's.
func (g *gate) close() error { return g.epoll.Close() }
