package echo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// every is the time between two packets.
	every = 20 * time.Millisecond
	// patience is how long the answer to the last one may take.
	patience = time.Second
	// small is what every path carries (RFC 791: 68 octets).
	small = 68
	// exactly is how exactly the largest packet is found, in octets.
	exactly = 4
	// tries is how often a size is tried, and lossyTries where packets are
	// lost: one in three, in both directions, leaves one wrong verdict in
	// a thousand.
	tries, lossyTries = 3, 12
)

// Path is what was measured of the way to a peer and back. Sizes are octets inside
// GRE, as the tunnel device's MTU counts them.
type Path struct {
	Sent int
	// There is how many of these arrived, as the peer counts them; -1 if no
	// word of it came back. Back is how many answers did.
	There, Back int
	RTT         time.Duration // median
	// MTUThere and MTUBack are the largest packets, up to the device's MTU,
	// that arrived there and here; 0 if nobody answers.
	MTUThere, MTUBack int
}

// Measure sends n packets by the tunnel device of a namespace to a peer, which is
// named by its underlay address, and finds out how large one may be up to the
// device's MTU. It takes about a second, and some more where packets are lost.
func Measure(ctx context.Context, h kernel.Host, netns string, link kernel.Link, peer netip.Addr, n int) (Path, error) {
	m := &measurement{to: origin{link.Index, peer}, b: make([]byte, maxPacket), sent: map[uint32]time.Time{}}
	var number [8]byte
	if _, err := rand.Read(number[:]); err != nil {
		return Path{}, err
	}
	m.number = binary.BigEndian.Uint64(number[:])
	err := h.Run(ctx, netns, func() (err error) {
		m.s, err = open(link.Index)
		return err
	})
	if err != nil {
		return Path{}, fmt.Errorf("measure the way to %s by %s: %w", peer, link.Name, err)
	}
	defer func() { _ = m.s.Close() }()
	defer context.AfterFunc(ctx, func() { _ = m.s.Close() })()
	p, err := m.path(n, link.MTU)
	if ctx.Err() != nil {
		err = ctx.Err() // and not that the socket was closed for it
	}
	if err != nil {
		return p, fmt.Errorf("measure the way to %s by %s: %w", peer, link.Name, err)
	}
	return p, nil
}

// measurement is one of a path, by one goroutine.
type measurement struct {
	s      *socket
	to     origin
	number uint64
	b      []byte
	seq    uint32
	sent   map[uint32]time.Time // not yet answered
}

// heard is an answer.
type heard struct {
	packet
	octets int
	took   time.Duration
}

func (m *measurement) path(n, mtu int) (Path, error) {
	p := Path{There: -1}
	if err := m.count(&p, n); err != nil {
		return p, err
	}
	if p.There < p.Sent {
		if err := m.ask(&p); err != nil {
			return p, err
		}
	}
	if p.There < 0 {
		return p, nil // nobody answers
	}
	lossy := p.Back < p.Sent
	var err error
	if p.MTUThere, err = m.largest(mtu, lossy, p.RTT, func(octets int) (there, back int) { return octets, small }); err != nil {
		return p, err
	}
	p.MTUBack, err = m.largest(mtu, lossy, p.RTT, func(octets int) (there, back int) { return small, octets })
	return p, err
}

// count sends the packets, and collects the answers meanwhile.
func (m *measurement) count(p *Path, n int) error {
	var took []time.Duration
	for range n {
		if err := m.send(request, small, small); err != nil {
			return err
		}
		p.Sent++
		last, end := p.Sent == n, time.Now().Add(every)
		if last {
			end = end.Add(patience)
		}
		for !last || len(m.sent) > 0 {
			a, err := m.next(end)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return err
			}
			p.There = max(p.There, int(a.count))
			took = append(took, a.took)
		}
	}
	if p.Back = len(took); p.Back > 0 {
		slices.Sort(took)
		p.RTT = took[len(took)/2]
	}
	return nil
}

// ask asks how many have come, since the last answers may have been lost.
func (m *measurement) ask(p *Path) error {
	for range lossyTries / 2 {
		clear(m.sent)
		if err := m.send(question, small, small); err != nil {
			return err
		}
		a, err := m.next(time.Now().Add(m.soon(p.RTT)))
		if err == nil {
			p.There = int(a.count)
			return nil
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return nil
}

// soon is how long an answer may take where the usual time is known.
func (m *measurement) soon(usual time.Duration) time.Duration {
	return min(max(4*usual, patience/5), patience)
}

// largest finds the largest packet that arrives; sizes says how large one, and its
// answer, are to be.
func (m *measurement) largest(mtu int, lossy bool, usual time.Duration, sizes func(octets int) (there, back int)) (int, error) {
	n := tries
	if lossy {
		n = lossyTries
	}
	arrives := func(octets int) (bool, error) {
		there, back := sizes(octets)
		for range n {
			clear(m.sent)
			if err := m.send(question, there, back); err != nil {
				return false, err
			}
			a, err := m.next(time.Now().Add(m.soon(usual)))
			switch {
			case err == nil && int(a.size) == there && a.octets == back:
				return true, nil
			case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
				return false, err
			}
		}
		return false, nil
	}
	if ok, err := arrives(mtu); ok || err != nil {
		return mtu, err
	}
	low, high := small, mtu // low arrives, high does not
	for high-low > exactly {
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

// send sends one packet. What this machine itself does not let out is lost, like
// what is lost on the way.
func (m *measurement) send(k kind, octets, wanted int) error {
	m.seq++
	p := packet{kind: k, size: uint16(min(wanted, maxPacket-1)), session: m.number, seq: m.seq} //nolint:gosec // bounded
	m.sent[m.seq] = time.Now()
	err := m.s.send(p.encode(octets), m.to)
	for _, lost := range []error{unix.EMSGSIZE, unix.ENOBUFS, unix.EAGAIN, unix.ENETDOWN, unix.EPERM, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		if errors.Is(err, lost) {
			return nil
		}
	}
	return err
}

// next waits for an answer to what has been sent and not been answered.
func (m *measurement) next(until time.Time) (heard, error) {
	if err := m.s.file.SetReadDeadline(until); err != nil {
		return heard{}, err
	}
	for {
		n, from, err := m.s.receive(m.b)
		if err != nil {
			return heard{}, err
		}
		p, ok := decode(m.b[:n])
		at, waiting := m.sent[p.seq]
		if !ok || p.kind != answer || p.session != m.number || from != m.to || !waiting {
			continue
		}
		delete(m.sent, p.seq)
		return heard{p, n, time.Since(at)}, nil
	}
}
