package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// The measurements use blocking sockets on threads of their own: what is
// measured is the kernel's path, not a scheduler's.

// result is one round of measurements of a path.
type result struct {
	throughput  float64 // bit/s, one TCP stream, as received
	latency     float64 // s, a request of one octet and its answer, median
	connections float64 // connections opened, used and closed in a second
}

// stuck ends a call that would wait for a peer that is gone.
var stuck = unix.NsecToTimeval(int64(10 * time.Second))

func listen(at *unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &stuck) },
		func() error { return unix.Bind(fd, at) },
		func() error { return unix.Listen(fd, 128) },
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// dial connects; closing sends a reset, so that no port stays taken.
func dial(to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &stuck) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &stuck) },
		func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) },
		func() error {
			return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		},
		func() error {
			if err := connect(fd, to); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			return nil
		},
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// transfer reads or writes. A socket with a time limit is interrupted by the
// signals of Go's scheduler; nothing to read is the end.
func transfer(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

func accept(fd int) (int, error) {
	for {
		c, _, err := unix.Accept(fd)
		if !errors.Is(err, unix.EINTR) {
			return c, err
		}
	}
}

// connect is interrupted, too, and goes on meanwhile.
func connect(fd int, to unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, to)
		switch {
		case errors.Is(err, unix.EISCONN):
			return nil
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EALREADY):
			return err
		}
	}
}

// echo answers one connection until it ends.
func echo(fd int) (float64, error) {
	c, err := accept(fd)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c)
	if err := unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, err
	}
	octet := make([]byte, 1)
	for {
		if _, err := transfer(unix.Read, c, octet); err != nil {
			return 0, nil
		}
		if _, err := transfer(unix.Write, c, octet); err != nil {
			return 0, nil
		}
	}
}

// answerEach answers one octet on every connection, until one brings a zero.
func answerEach(fd int) (float64, error) {
	octet := make([]byte, 1)
	for {
		c, err := accept(fd)
		if err != nil {
			return 0, fmt.Errorf("accept: %w", err)
		}
		if _, err = transfer(unix.Read, c, octet); err == nil {
			_, err = transfer(unix.Write, c, octet)
		}
		_ = unix.Close(c)
		if err == nil && octet[0] == 0 {
			return 0, nil
		}
	}
}
