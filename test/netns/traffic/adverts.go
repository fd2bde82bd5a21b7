package traffic

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

// Adverts keeps when a machine received which VRRP adverts.
type Adverts struct {
	socket *stamped
	task   sync.WaitGroup

	mu  sync.Mutex
	all []Advert
}

// Advert is one of them.
type Advert struct {
	At   time.Time
	From netip.Addr
}

// protocolVRRP and the priority's place are RFC 9568 sections 5.1.1.4 and 5.2.
const (
	protocolVRRP   = 112
	priorityOffset = 2
)

// StartAdverts listens on a machine until Stop.
func StartAdverts(m *topo.Machine) (*Adverts, error) {
	a := &Adverts{}
	err := m.InNetwork(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocolVRRP)
		if err != nil {
			return err
		}
		a.socket, err = newStamped(fd, m.Name+"-adverts")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: listen to adverts: %w", m.Name, err)
	}
	a.task.Go(a.listen)
	return a, nil
}

func (a *Adverts) listen() {
	b := make([]byte, 1500)
	for {
		n, at, err := a.socket.read(b)
		if errors.Is(err, io.EOF) {
			return
		}
		header, message, ok := parseIPv4(b[:n])
		if err != nil || !ok || len(message) <= priorityOffset || message[priorityOffset] == 0 {
			continue // priority 0 is of who stops
		}
		a.mu.Lock()
		a.all = append(a.all, Advert{at, header.Source})
		a.mu.Unlock()
	}
}

// Last returns the last advert from an address before a moment.
func (a *Adverts) Last(from netip.Addr, before time.Time) (Advert, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, advert := range slices.Backward(a.all) {
		if advert.From == from && advert.At.Before(before) {
			return advert, true
		}
	}
	return Advert{}, false
}

// Longest returns the longest time between two adverts from an address since a moment,
// and how many there were.
func (a *Adverts) Longest(from netip.Addr, since time.Time) (longest time.Duration, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := since
	for _, advert := range a.all {
		if advert.From == from && advert.At.After(since) {
			longest, last = max(longest, advert.At.Sub(last)), advert.At
			n++
		}
	}
	return longest, n
}

// Stop ends it.
func (a *Adverts) Stop() {
	_ = a.socket.file.Close()
	a.task.Wait()
}
