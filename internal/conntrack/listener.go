package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// ErrLost says that events did not fit the socket's buffer: list the table.
var ErrLost = errors.New("conntrack events were lost")

// Listener receives an event for each change of an entry, but not for new and
// for ended ones. The kernel makes no events in a namespace without a listener
// (net.netfilter.nf_conntrack_events=2, the default), and none for flows that
// are older than it. Use it from one goroutine.
type Listener struct {
	file *os.File
	raw  reader
	gate *gate
}

// Listen subscribes in the namespace that is mounted at path, as Open.
func Listen(path string) (*Listener, error) {
	return listen(path, unix.NFNLGRP_CONNTRACK_UPDATE)
}

// ListenFlows is Listen for new and for ended flows, and for no other changes.
// Each costs packets time: an opener that is listened to for all of them opens
// half as many flows a second.
func ListenFlows(path string) (*Listener, error) {
	return listen(path, unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY)
}

func listen(path string, groups ...int) (*Listener, error) {
	s, err := openSocket(path, eventBuffer, groups...)
	if err != nil {
		return nil, err
	}
	file, err := take(s)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	g, err := newGate(int(file.Fd()))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Listener{file: file, raw: raw, gate: g}, nil
}

// take takes a socket away from the runtime's poller, see gate. s is closed.
func take(s *socket.Conn) (*os.File, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	own := -1
	failed := raw.Control(func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(failed, err, s.Close()); err != nil {
		if own >= 0 {
			err = errors.Join(err, unix.Close(own))
		}
		return nil, fmt.Errorf("duplicate a socket: %w", err)
	}
	// Only a descriptor that does not block would be watched again.
	if err := unix.SetNonblock(own, false); err != nil {
		return nil, errors.Join(err, unix.Close(own))
	}
	return os.NewFile(uintptr(own), "ctnetlink"), nil
}

// Close ends a Wait in progress with an error.
func (l *Listener) Close() error { return errors.Join(l.gate.close(), l.file.Close()) }

// Wait returns once there is something to drain, or to be told by Drain: that
// events were lost.
func (l *Listener) Wait(ctx context.Context) error { return l.gate.wait(ctx) }

// Drain calls f with what has arrived, at most limit events, and returns how
// many there were; it does not wait for more. e is valid during the call.
//
// Reading in gulps is the point: a listener that wakes up at each event costs
// packets more than the event itself does.
func (l *Listener) Drain(limit int, f func(e *Entry)) (int, error) {
	return l.DrainFlows(limit, func(e *Entry, ended bool) {
		if !ended {
			f(e)
		}
	})
}

// DrainFlows is Drain that tells ended flows from new and changed ones.
func (l *Listener) DrainFlows(limit int, f func(e *Entry, ended bool)) (int, error) {
	b := borrow()
	defer inboxes.Put(b)
	count := 0
	var failed []error
	err := l.raw.Read(func(fd uintptr) bool {
		for count < limit {
			n, err := b.receive(fd, limit-count)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return true
			case errors.Is(err, unix.ENOBUFS):
				failed = append(failed, ErrLost)
				continue
			case err != nil:
				failed = append(failed, err)
				return true
			}
			count += n
			failed = append(failed, b.events(n, f)...)
			if n < inboxSlots {
				return true // that was all, or the limit
			}
		}
		return true
	})
	if err := errors.Join(append(failed, err)...); err != nil {
		return count, fmt.Errorf("receive conntrack events: %w", err)
	}
	return count, nil
}

// events passes on the events of the first n datagrams; one that did not fit is lost.
func (b *inbox) events(n int, f func(e *Entry, ended bool)) (failed []error) {
	var e Entry
	for i := range n {
		d, err := b.datagram(i)
		if err != nil {
			failed = append(failed, errors.Join(err, ErrLost))
			continue
		}
		if err := frames(d, func(typ, _ uint16, _ uint32, body []byte) error {
			if typ != msgNew && typ != msgDelete {
				return nil
			}
			if err := parse(body, &e); err != nil {
				return err
			}
			f(&e, typ == msgDelete)
			return nil
		}); err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}
