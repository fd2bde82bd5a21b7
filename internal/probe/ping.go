package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// pingEvery keeps well below what rate limits of ICMP allow
	// (net.ipv4.icmp_msgs_per_sec is 1,000 for a whole machine).
	pingEvery = 20 * time.Millisecond
	// pingPatience is how long an answer may take.
	pingPatience = 700 * time.Millisecond
	// smallPing is a packet that every path carries (RFC 791: 68 octets).
	smallPing = 68
	// stepMTU is how exactly a path's MTU is found.
	stepMTU = 4
)

// Path is what pings say about the way to a peer.
type Path struct {
	Sent, Received int
	RTT            time.Duration // median
	MTU            int           // the largest packet up to the wanted one that came back; 0 if none did
}

// pingID tells apart the pings of this process.
var pingID atomic.Uint32

// Ping measures the way from this machine's own namespace to a peer: n small
// packets, and how large a packet may be, up to octets. IPv4.
func Ping(ctx context.Context, h kernel.Host, to netip.Addr, n, octets int) (Path, error) {
	p, err := newPinger(ctx, h, to)
	if err != nil {
		return Path{}, err
	}
	defer func() { _ = p.conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = p.conn.Close() })
	defer stop()
	var path Path
	var rtts []time.Duration
	for range n {
		path.Sent++
		rtt, err := p.once(smallPing)
		if err == nil {
			rtts = append(rtts, rtt)
		} else if !missed(err) {
			return path, err
		}
		pause(ctx, pingEvery)
	}
	if path.Received = len(rtts); path.Received == 0 {
		return path, ctx.Err()
	}
	slices.Sort(rtts)
	path.RTT = rtts[len(rtts)/2]
	path.MTU, err = p.largest(octets)
	return path, err
}

// missed tells whether an error is the packet's, not the probe's.
func missed(err error) bool {
	for _, e := range []error{os.ErrDeadlineExceeded, unix.EMSGSIZE, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPERM, unix.ENETDOWN, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pinger sends echo requests that must not be fragmented.
type pinger struct {
	conn net.PacketConn
	to   *net.IPAddr
	id   uint16
	seq  uint16
}

func newPinger(ctx context.Context, h kernel.Host, to netip.Addr) (*pinger, error) {
	p := &pinger{to: &net.IPAddr{IP: to.AsSlice()}, id: uint16(pingID.Add(1)) ^ uint16(os.Getpid())}
	err := h.Run(ctx, "", func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				// The device's MTU counts, not what was learned of the path.
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			})
			return errors.Join(err, failed)
		}}
		p.conn, err = lc.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	return p, nil
}

// once sends a packet of a size and waits for its answer.
func (p *pinger) once(octets int) (time.Duration, error) {
	p.seq++
	b := make([]byte, max(echoHeader, octets-ipv4Header))
	b[0] = 8
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], p.seq)
	binary.BigEndian.PutUint16(b[2:], fold(add(0, b)))
	start := time.Now()
	if err := p.conn.SetDeadline(start.Add(pingPatience)); err != nil {
		return 0, err
	}
	if _, err := p.conn.WriteTo(b, p.to); err != nil {
		return 0, err
	}
	in := make([]byte, 1<<16)
	for {
		n, from, err := p.conn.ReadFrom(in)
		if err != nil {
			return 0, err
		}
		if n >= echoHeader && in[0] == 0 && binary.BigEndian.Uint16(in[4:]) == p.id && binary.BigEndian.Uint16(in[6:]) == p.seq && from.String() == p.to.String() {
			return time.Since(start), nil
		}
	}
}

// largest finds the largest packet that comes back.
func (p *pinger) largest(octets int) (int, error) {
	arrives := func(n int) (bool, error) {
		for range 2 { // one may be lost for another reason
			_, err := p.once(n)
			if err == nil {
				return true, nil
			} else if !missed(err) {
				return false, err
			}
		}
		return false, nil
	}
	if ok, err := arrives(octets); ok || err != nil {
		return octets, err
	}
	low, high := smallPing, octets // low arrives, high does not
	for high-low > stepMTU {
		middle := (low + high) / 2
		ok, err := arrives(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// bindTo makes a socket use one link.
func bindTo(link string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), link) })
		return errors.Join(err, failed)
	}
}
