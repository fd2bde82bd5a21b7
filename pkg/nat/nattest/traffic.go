package nattest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a packet may take that is expected; refusal how long one
// is waited for that is not.
const (
	patience = 5 * time.Second
	refusal  = 300 * time.Millisecond
)

// serve starts a TCP server in a namespace that tells each client the address
// it saw and the size of the segments it sends to it, and then echoes.
func serve(t *testing.T, h Host, netns string, at netip.Addr) netip.AddrPort {
	t.Helper()
	var l net.Listener
	err := h.Run(t.Context(), netns, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", netns, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go greet(c)
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func greet(c net.Conn) {
	defer c.Close()
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return
	}
	mss, err := sendMSS(c)
	if err != nil {
		return
	}
	if _, err := fmt.Fprintln(c, host, mss); err == nil {
		_, _ = io.Copy(c, c) // until the client has had enough
	}
}

// client is a connection to a server.
type client struct {
	net.Conn
	source    netip.Addr // that the server saw
	serverMSS int        // bytes in the segments that the server sends
}

// dial connects from a node, to IPv4 servers from the address that it names.
func dial(ctx context.Context, h Host, from node, to netip.AddrPort, limit time.Duration) (client, error) {
	var c client
	err := h.Run(ctx, from.name, func() (err error) {
		c, err = dialHere(ctx, from, to, limit)
		return err
	})
	return c, err
}

// dialHere is dial on a thread that is at the node.
func dialHere(ctx context.Context, from node, to netip.AddrPort, limit time.Duration) (client, error) {
	var c client
	d := net.Dialer{Timeout: limit}
	if from.v4.IsValid() && to.Addr().Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.v4, 0))
	}
	var err error
	if c.Conn, err = d.DialContext(ctx, "tcp", to.String()); err != nil {
		return c, err
	}
	if err := c.greeted(); err != nil {
		return c, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *client) greeted() error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var seen string
	if _, err := fmt.Fscanln(c, &seen, &c.serverMSS); err != nil {
		return err
	}
	var err error
	c.source, err = netip.ParseAddr(seen)
	return err
}

// sendMSS returns the size of the segments that a connection sends.
func sendMSS(c net.Conn) (int, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return 0, fmt.Errorf("%T is no TCP connection", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	mss := 0
	var optErr error
	err = raw.Control(func(fd uintptr) {
		mss, optErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	})
	return mss, errors.Join(err, optErr)
}

// wantSource checks that a connection succeeds with this source.
func wantSource(t *testing.T, h Host, from node, to netip.AddrPort, source netip.Addr) {
	t.Helper()
	c, err := dial(t.Context(), h, from, to, patience)
	if err != nil {
		t.Errorf("%s → %s: %v", from.name, to, err)
		return
	}
	_ = c.Close()
	if c.source != source {
		t.Errorf("%s → %s: server saw %s, want %s", from.name, to, c.source, source)
	}
}

// wantOpen checks that connections to all servers come about.
func wantOpen(t *testing.T, h Host, from node, servers ...netip.AddrPort) {
	t.Helper()
	for _, to := range servers {
		c, err := dial(t.Context(), h, from, to, patience)
		if err != nil {
			t.Fatalf("%s → %s: %v; the test would show nothing", from.name, to, err)
		}
		_ = c.Close()
	}
}

// wantRefused checks that no connection to any of the servers comes about.
func wantRefused(t *testing.T, h Host, from node, servers ...netip.AddrPort) {
	t.Helper()
	var all sync.WaitGroup
	for _, to := range servers {
		all.Go(func() {
			c, err := dial(t.Context(), h, from, to, refusal)
			if err == nil {
				_ = c.Close()
				t.Errorf("%s → %s: connected, and the server saw %s; want nothing to pass", from.name, to, c.source)
			}
		})
	}
	all.Wait()
}

// echo sends a word over a connection and waits for it.
func echo(c net.Conn, word string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, word); err != nil {
		return err
	}
	var got string
	if _, err := fmt.Fscanln(c, &got); err != nil {
		return err
	}
	if got != word {
		return fmt.Errorf("sent %q, got %q", word, got)
	}
	return nil
}
