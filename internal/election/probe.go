package election

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
)

const (
	// probeEvery is the time between two probes of a target, probeWithin what
	// an answer may take.
	probeEvery, probeWithin = time.Second, 500 * time.Millisecond
	// probeMisses is how many answers in a row must be missing before the
	// target counts as unreachable; one answer and it is reachable.
	probeMisses = 3
)

// probes is what is known of an election's probe targets. The zero value knows
// none. It is safe for concurrent use.
type probes struct {
	mu     sync.Mutex
	misses map[desired.HaVip]int
}

// allUp tells whether every target counts as reachable.
func (p *probes) allUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.misses {
		if n >= probeMisses {
			return false
		}
	}
	return true
}

// round probes all targets of an election at the same time, and forgets those
// that are no longer wanted. It tells whether allUp may have changed.
func (p *probes) round(ctx context.Context, targets []desired.HaVip, ping func(context.Context, desired.HaVip) error) (changed bool) {
	before := p.allUp()
	failed := make([]error, len(targets))
	var asking sync.WaitGroup
	for i, target := range targets {
		asking.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, probeWithin)
			defer cancel()
			failed[i] = ping(waiting, target)
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return false
	}
	p.mu.Lock()
	next := make(map[desired.HaVip]int, len(targets))
	for i, target := range targets {
		next[target] = 0
		if failed[i] != nil {
			next[target] = p.misses[target] + 1
		}
	}
	p.misses = next
	p.mu.Unlock()
	return p.allUp() != before
}

// probe probes until the context ends; changed is called when allUp has changed.
func (i *instance) probe(ctx context.Context, ping func(context.Context, desired.HaVip) error, changed func()) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		var targets []desired.HaVip
		for _, v := range i.current().HaVips {
			if v.Probe.IsValid() {
				targets = append(targets, v)
			}
		}
		if i.probes.round(ctx, targets, ping) {
			changed()
		}
		every := probeEvery
		if len(targets) == 0 {
			every = restEvery
		}
		t.Reset(rhythm.Until(every))
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

const (
	echoRequest, echoReply = 8, 0 // RFC 792
	echoHeader             = 8
	ipv4Header             = 20
)

// Ping sends an ICMP echo request through a HaVip's link to its probe target,
// from that link's own address, and waits for the reply while the context allows.
func Ping(ctx context.Context, runner vip.Runner, v desired.HaVip) error {
	var fd int
	err := runner.Run(ctx, v.Netns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		if err := unix.BindToDevice(fd, v.Link); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("probe %s: %w", v.Probe, err)
	}
	file := os.NewFile(uintptr(fd), "probe")
	defer func() { _ = file.Close() }()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(probeWithin)
	}
	if err := file.SetDeadline(deadline); err != nil {
		return fmt.Errorf("probe %s: %w", v.Probe, err)
	}
	id := uint16(fd) ^ uint16(time.Now().UnixNano())
	if err := unix.Sendto(fd, echo(id), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: v.Probe.As4()}); err != nil {
		return fmt.Errorf("probe %s: %w", v.Probe, err)
	}
	buffer := make([]byte, 1500)
	for {
		n, err := file.Read(buffer)
		if err != nil {
			return fmt.Errorf("probe %s: %w", v.Probe, err)
		}
		if answers(buffer[:n], v.Probe, id) {
			return nil
		}
	}
}

// echo is an ICMP echo request without data (RFC 792), its checksum filled in:
// the raw socket's kernel does not (raw(7)).
func echo(id uint16) []byte {
	b := []byte{echoRequest, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, 1)
	sum := uint32(echoRequest)<<8 + uint32(id) + 1
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

// answers tells whether an IPv4 packet is the reply to an echo request.
func answers(packet []byte, from netip.Addr, id uint16) bool {
	if len(packet) < ipv4Header {
		return false
	}
	header := int(packet[0]&0xf) * 4
	if header < ipv4Header || len(packet) < header+echoHeader || netip.AddrFrom4([4]byte(packet[12:16])) != from {
		return false
	}
	message := packet[header:]
	return message[0] == echoReply && binary.BigEndian.Uint16(message[4:]) == id
}
