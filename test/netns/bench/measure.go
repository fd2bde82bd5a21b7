package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// The measurements use blocking sockets on threads of their own: what is
// measured is the kernel's path, not a scheduler's.

// result is one round of measurements of a path.
type result struct {
	throughput  float64 // bit/s, one TCP stream, as received
	latency     float64 // s, a request of one octet and its answer, median
	connections float64 // connections opened, used and closed in a second
}

// measure runs all measurements once, from a machine to a server's, for so long
// each.
func measure(client, server *topo.Machine, address netip.Addr, each time.Duration) (result, error) {
	var r result
	for _, m := range []struct {
		port   uint16
		into   *float64
		serve  func(fd int) (float64, error)
		demand func(to unix.Sockaddr, each time.Duration) (float64, error)
		served bool // the server's figure counts
	}{
		{5001, &r.throughput, drain, flood, true},
		{5002, &r.latency, echo, ask, false},
		{5003, &r.connections, answerEach, openEach, false},
	} {
		got, err := pair(client, server, netip.AddrPortFrom(address, m.port), m.serve, func(to unix.Sockaddr) (float64, error) { return m.demand(to, each) }, m.served)
		if err != nil {
			return r, err
		}
		*m.into = got
	}
	return r, nil
}

// pair runs a server and a client beside each other, each on its machine.
func pair(client, server *topo.Machine, at netip.AddrPort, serve func(int) (float64, error), demand func(unix.Sockaddr) (float64, error), served bool) (float64, error) {
	to := &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	listening := make(chan error, 1)
	var both sync.WaitGroup
	var figures [2]float64
	var failures [2]error
	both.Go(func() {
		failures[0] = server.InNetwork(func() error {
			fd, err := listen(to)
			listening <- err
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			figures[0], err = serve(fd)
			return err
		})
	})
	if err := <-listening; err != nil {
		both.Wait()
		return 0, fmt.Errorf("%s: listen: %w", server.Name, err)
	}
	both.Go(func() {
		failures[1] = client.InNetwork(func() (err error) {
			figures[1], err = demand(to)
			return err
		})
	})
	both.Wait()
	for _, err := range failures {
		if err != nil {
			return 0, fmt.Errorf("%s to %s: %w", client.Name, at, err)
		}
	}
	if served {
		return figures[0], nil
	}
	return figures[1], nil
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

// drain reads one connection to its end and returns the rate.
func drain(fd int) (float64, error) {
	c, err := accept(fd)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c)
	buffer := make([]byte, 1<<18)
	total, start := 0, time.Now()
	for {
		n, err := transfer(unix.Read, c, buffer)
		if err != nil {
			break // reset, when the client has had enough
		}
		total += n
	}
	return float64(total) * 8 / time.Since(start).Seconds(), nil
}

func flood(to unix.Sockaddr, each time.Duration) (float64, error) {
	c, err := dial(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c)
	buffer := make([]byte, 1<<17)
	for start := time.Now(); time.Since(start) < each; {
		if _, err := transfer(unix.Write, c, buffer); err != nil {
			return 0, err
		}
	}
	return 0, nil
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

func ask(to unix.Sockaddr, each time.Duration) (float64, error) {
	c, err := dial(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c)
	octet := make([]byte, 1)
	var took []time.Duration
	for start := time.Now(); time.Since(start) < each; {
		began := time.Now()
		if _, err := transfer(unix.Write, c, octet); err != nil {
			return 0, err
		}
		if _, err := transfer(unix.Read, c, octet); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2].Seconds(), nil
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

func openEach(to unix.Sockaddr, each time.Duration) (float64, error) {
	start, count := time.Now(), 0
	for ; ; count++ {
		last := time.Since(start) >= each
		c, err := dial(to)
		if err != nil {
			return 0, err
		}
		octet := []byte{1}
		if last {
			octet[0] = 0
		}
		if _, err = transfer(unix.Write, c, octet); err == nil {
			_, err = transfer(unix.Read, c, octet)
		}
		_ = unix.Close(c)
		if err != nil {
			return 0, err
		}
		if last {
			return float64(count) / time.Since(start).Seconds(), nil
		}
	}
}
