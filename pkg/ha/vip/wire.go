package vip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Runner starts something in a network namespace, as kernel.Host does.
type Runner interface {
	Run(ctx context.Context, netns string, f func() error) error
}

// Ethernet is the Wire of real links: packet sockets, opened in the namespaces
// and kept, so that a failover need not open any. It needs CAP_NET_RAW. Its
// methods are safe for concurrent use.
type Ethernet struct {
	runner Runner

	mu    sync.Mutex
	ports map[place]*port
}

type place struct {
	netns string
	index int
}

// port is a packet socket on one link. It is not read from.
type port struct {
	file *os.File
	conn syscall.RawConn
}

var _ Wire = (*Ethernet)(nil)

// NewEthernet returns an Ethernet without open sockets. Close closes them.
func NewEthernet(r Runner) *Ethernet {
	return &Ethernet{runner: r, ports: map[place]*port{}}
}

// Retain implements Wire.
func (e *Ethernet) Retain(netns map[string]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for at, p := range e.ports {
		if !netns[at.netns] {
			_ = p.file.Close()
			delete(e.ports, at)
		}
	}
}

// Close closes all sockets.
func (e *Ethernet) Close() error {
	e.Retain(nil)
	return nil
}

// Prepare implements Wire.
func (e *Ethernet) Prepare(ctx context.Context, netns string, link kernel.Link) error {
	_, err := e.port(ctx, place{netns, link.Index})
	return err
}

// Announce implements Wire.
func (e *Ethernet) Announce(ctx context.Context, netns string, link kernel.Link, addr netip.Addr) error {
	mac, err := parseHardware(link.MAC)
	if err != nil {
		return fmt.Errorf("link %s: %w", link.Name, err)
	}
	for _, frame := range announcements(mac, addr) {
		if err := e.send(ctx, netns, link, frame); err != nil {
			return fmt.Errorf("announce %s on %s: %w", addr, link.Name, err)
		}
	}
	return nil
}

// send sends over the link's port. A port that has become useless, because its
// namespace was made anew with the same numbers, is opened anew.
func (e *Ethernet) send(ctx context.Context, netns string, link kernel.Link, frame []byte) error {
	at := place{netns, link.Index}
	for attempt := 0; ; attempt++ {
		p, err := e.port(ctx, at)
		if err != nil {
			return err
		}
		err = p.write(frame)
		if attempt > 0 || !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, os.ErrClosed) {
			return err
		}
		e.drop(at)
	}
}

func (e *Ethernet) port(ctx context.Context, at place) (*port, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.ports[at]; p != nil {
		return p, nil
	}
	p, err := e.open(ctx, at, 0)
	if err != nil {
		return nil, err
	}
	e.ports[at] = p
	return p, nil
}

func (e *Ethernet) drop(at place) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.ports[at]; p != nil {
		_ = p.file.Close()
		delete(e.ports, at)
	}
}

// open opens a packet socket. Protocol 0 receives nothing (packet(7)).
func (e *Ethernet) open(ctx context.Context, at place, protocol uint16) (*port, error) {
	var fd int
	err := e.runner.Run(ctx, at.netns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: at.index}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "packet")
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &port{file, conn}, nil
}

// write sends a frame without waiting.
func (p *port) write(frame []byte) error {
	var sent error
	err := p.conn.Control(func(fd uintptr) { sent = unix.Send(int(fd), frame, unix.MSG_DONTWAIT) })
	return errors.Join(err, sent)
}

// Ask implements Wire.
func (e *Ethernet) Ask(ctx context.Context, netns string, link kernel.Link, addr netip.Addr) (string, error) {
	mac, err := parseHardware(link.MAC)
	if err != nil {
		return "", fmt.Errorf("link %s: %w", link.Name, err)
	}
	protocol := uint16(etherARP)
	if addr.Is6() {
		protocol = etherIPv6
	}
	p, err := e.open(ctx, place{netns, link.Index}, protocol)
	if err != nil {
		return "", err
	}
	defer func() { _ = p.file.Close() }()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(answerWithin)
	}
	if err := errors.Join(p.file.SetReadDeadline(deadline), p.write(question(mac, addr))); err != nil {
		return "", fmt.Errorf("ask for %s on %s: %w", addr, link.Name, err)
	}
	frame := make([]byte, 1514) // Ethernet's longest, without a VLAN tag (IEEE 802.3)
	for {
		n, err := p.file.Read(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("ask for %s on %s: %w", addr, link.Name, err)
		}
		if who, ok := claimant(frame[:n], addr); ok && who != mac {
			return who.String(), nil
		}
	}
}
