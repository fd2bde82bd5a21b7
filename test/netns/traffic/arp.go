package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Asker asks again and again by ARP who has an address, and keeps who answered
// when: the truth about where an address is, as its neighbors see it.
type Asker struct {
	socket *stamped
	tasks  sync.WaitGroup
	stop   chan struct{}

	mu      sync.Mutex
	answers []Claim
}

// Claim is an ARP packet whose sender says that it has the address.
type Claim struct {
	At  time.Time
	MAC string
	// Gratuitous is set if nobody had asked.
	Gratuitous bool
}

// arpPacket is where the parts of an ARP packet for IPv4 over Ethernet are
// (RFC 826), behind an Ethernet header.
const (
	arpOp, arpSenderMAC, arpSender, arpTarget = 20, 22, 28, 38
	arpFrame                                  = 42
)

// StartAsker asks on a device of a machine until Stop.
func StartAsker(m *topo.Machine, device string, address netip.Addr, every time.Duration) (*Asker, error) {
	a := &Asker{stop: make(chan struct{})}
	var mac net.HardwareAddr
	err := m.InNetwork(func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		mac = link.HardwareAddr
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if a.socket, err = newStamped(fd, device); err != nil {
			return err
		}
		arp := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: link.Index})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: ask on %s: %w", m.Name, device, err)
	}
	a.tasks.Go(func() { a.ask(arpRequest(mac, address), every) })
	a.tasks.Go(func() { a.listen(address) })
	return a, nil
}

func arpRequest(mac net.HardwareAddr, address netip.Addr) []byte {
	f := append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), 0, 0, 0, 0)
	return append(append(f, 0, 0, 0, 0, 0, 0), address.AsSlice()...)
}

func (a *Asker) ask(frame []byte, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-a.stop:
			return
		case <-t.C:
			_, _ = a.socket.file.Write(frame) // a device may be down for a while
		}
	}
}

func (a *Asker) listen(address netip.Addr) {
	b := make([]byte, 1514)
	for {
		n, at, err := a.socket.read(b)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil, n < arpFrame, netip.AddrFrom4([4]byte(b[arpSender:arpSender+4])) != address:
			continue
		}
		c := Claim{
			At: at, MAC: net.HardwareAddr(b[arpSenderMAC : arpSenderMAC+6]).String(),
			Gratuitous: netip.AddrFrom4([4]byte(b[arpTarget:arpTarget+4])) == address,
		}
		a.mu.Lock()
		a.answers = append(a.answers, c)
		a.mu.Unlock()
	}
}

// Claims returns what was heard since a moment.
func (a *Asker) Claims(since time.Time) []Claim {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.answers), func(c Claim) bool { return c.At.Before(since) })
}

// Last returns who claimed the address last, and when; "" if nobody has.
func (a *Asker) Last() Claim {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.answers) == 0 {
		return Claim{}
	}
	return a.answers[len(a.answers)-1]
}

// Stop ends it.
func (a *Asker) Stop() {
	close(a.stop)
	_ = a.socket.file.Close()
	a.tasks.Wait()
}

// Holders sums claims up as the periods in which somebody claimed the address
// with no pause longer than gap, in the order of their beginnings.
func Holders(claims []Claim, gap time.Duration) []Period {
	var out []Period
	open := map[string]int{}
	for _, c := range claims {
		i, ok := open[c.MAC]
		if !ok || c.At.Sub(out[i].To) > gap {
			open[c.MAC], i = len(out), len(out)
			out = append(out, Period{MAC: c.MAC, From: c.At})
		}
		out[i].To = c.At
	}
	return out
}

// Period is when somebody held an address.
type Period struct {
	MAC      string
	From, To time.Time
}

// Overlap returns for how long two periods of different holders overlap at most.
func Overlap(periods []Period) time.Duration {
	var longest time.Duration
	for i, p := range periods {
		for _, q := range periods[:i] {
			if p.MAC == q.MAC {
				continue
			}
			from, to := p.From, p.To
			if q.From.After(from) {
				from = q.From
			}
			if q.To.Before(to) {
				to = q.To
			}
			longest = max(longest, to.Sub(from))
		}
	}
	return longest
}
