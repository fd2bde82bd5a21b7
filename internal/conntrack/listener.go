package conntrack

import (
	"context"
	"errors"
	"fmt"

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
	sock *socket.Conn
	raw  interface {
		Read(func(fd uintptr) bool) error
	}
	in []byte
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
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Listener{sock: s, raw: raw, in: make([]byte, readBuffer)}, nil
}

// Close ends a Wait in progress with an error.
func (l *Listener) Close() error { return l.sock.Close() }

// Wait returns once there is something to drain. ErrLost is as of Drain.
func (l *Listener) Wait(ctx context.Context) error {
	_, _, err := l.sock.Recvfrom(ctx, l.in[:0], unix.MSG_PEEK)
	if errors.Is(err, unix.ENOBUFS) {
		return ErrLost // the kernel says so once
	}
	return err
}

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
	count := 0
	var e Entry
	var failed error
	err := l.raw.Read(func(fd uintptr) bool {
		for count < limit {
			n, _, err := unix.Recvfrom(int(fd), l.in, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return true
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ENOBUFS):
				failed = ErrLost
				continue
			case err != nil:
				failed = err
				return true
			}
			count++
			failed = errors.Join(failed, frames(l.in[:n], func(typ, _ uint16, _ uint32, body []byte) error {
				if typ != msgNew && typ != msgDelete {
					return nil
				}
				if err := parse(body, &e); err != nil {
					return err
				}
				f(&e, typ == msgDelete)
				return nil
			}))
		}
		return true
	})
	if err := errors.Join(failed, err); err != nil {
		return count, fmt.Errorf("receive conntrack events: %w", err)
	}
	return count, nil
}
