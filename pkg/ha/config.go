package ha

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

const (
	// DefaultDownAdverts is the 3 of Active_Down_Interval (RFC 9568 section 6.1).
	DefaultDownAdverts = 3
	// maxSends bounds the adverts of one interval: at 10 ms, one every
	// millisecond.
	maxSends = 10
)

// Config describes one virtual router of one node. Members of a group must
// agree on VRID, Addresses and, unless they adopt the active's, Interval.
type Config struct {
	Name string // for logs
	VRID uint8  // 1..255
	// Priority is 1..254, or 255 for the owner of the addresses (5.2.4).
	Priority uint8
	// Interval is Advertisement_Interval: 10 ms to 40.95 s in steps of 10 ms.
	Interval time.Duration
	// Addresses are the virtual addresses, all of Local's family.
	Addresses []netip.Addr
	// Local is the address that adverts are sent from, and which decides
	// between equal priorities.
	Local netip.Addr
	// Peers, if any, get adverts by unicast and are the only ones listened to.
	// Without peers the instance is multicast, unless Unicast is set.
	Peers []Peer
	// Unicast keeps an instance that has no peers, for now, from multicast.
	Unicast bool
	// NoPreempt leaves a node of lower priority active. An owner always
	// preempts (6.1).
	NoPreempt bool
	// PreemptDelay is how long a node of lower priority is heard before it is
	// preempted.
	PreemptDelay time.Duration
	// CatchUp is how long a node that is Behind leaves one of lower priority
	// active at most, from when it is first heard; PreemptDelay passes
	// meanwhile. Not 0, a node counts as behind until it is reported not to be,
	// and again whenever it has been active. It takes over from one that is
	// gone, or not fit, all the same; an owner does not wait.
	CatchUp time.Duration
	// StartupDelay is how long after its start the machine stays in Initialize.
	StartupDelay time.Duration
	// DownAdverts is how many adverts in a row must be missing before the
	// active counts as gone; 0 is 3, as in the RFC.
	DownAdverts int
	// Sends is how many adverts are sent in each Interval, 1 to 10; 0 is 1.
	// Several keep a lossy network from making the group flap, at the same
	// detection time: the field on the wire is the *maximum* interval. An even
	// number is sent in pairs, which wake both ends half as often; all of them go
	// at once if the interval is a second or longer, which outlasts bursts of loss.
	Sends int
	// Tracks are what the node's fitness depends on. Each counts as down until
	// it is first reported.
	Tracks []Track
}

// Peer is another member of a unicast group.
type Peer struct {
	Addr netip.Addr
	// MinTTL and MaxTTL bound the TTL or hop limit of its adverts. Zero MinTTL
	// is 255, as on one link (5.1.1.3): routed peers need a lower one. Zero
	// MaxTTL is 255.
	MinTTL, MaxTTL uint8
	// Priority, if not 0, is what the peer is configured with. While it
	// advertises less it says that it is not fit, and whoever is fitter takes
	// over at once, whatever NoPreempt and PreemptDelay say: they are about
	// preference.
	Priority uint8
}

func (p Peer) admits(ttl int) bool {
	low, high := int(p.MinTTL), int(p.MaxTTL)
	if low == 0 {
		low = vrrp.HopLimit
	}
	if high == 0 {
		high = vrrp.HopLimit
	}
	return low <= ttl && ttl <= high
}

// Track is something whose failure makes the node less fit to be active.
type Track struct {
	Name string
	// Weight 0: a failure puts the instance into Fault. Positive: added to the
	// priority while up. Negative: added while down. As in keepalived; the
	// result is kept within 1..254, and an owner's priority never changes.
	Weight int
}

// Validate returns every reason for which the configuration cannot be run.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("ha: instance %q: "+format, append([]any{c.Name}, args...)...))
	}
	if c.VRID == 0 {
		bad("VRID 0: use 1 to 255")
	}
	if c.Priority == vrrp.PriorityStop {
		bad("priority 0 means that a node stops: use 1 to 254, or 255 for the owner")
	}
	if c.Interval < vrrp.Tick || c.Interval > vrrp.MaxInterval || c.Interval%vrrp.Tick != 0 {
		bad("interval %v: use 10ms to 40.95s in steps of 10ms", c.Interval)
	}
	if !c.Local.IsValid() || c.Local.Is4In6() || c.Local.Zone() != "" {
		bad("local address %v: give the address that adverts are sent from, without a zone", c.Local)
	}
	if len(c.Addresses) == 0 || len(c.Addresses) > 255 {
		bad("%d addresses: give 1 to 255", len(c.Addresses))
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Is4() != c.Local.Is4() {
			bad("address %v with local address %v: use one instance per family", a, c.Local)
		}
	}
	// 5.2.9, erratum 8300.
	if c.Local.Is6() && c.multicast() && len(c.Addresses) > 0 && !c.Addresses[0].IsLinkLocalUnicast() {
		bad("first address %v: over IPv6 multicast it must be the virtual router's link-local address", c.Addresses[0])
	}
	if c.DownAdverts < 0 || c.Sends < 0 || c.Sends > maxSends || c.PreemptDelay < 0 || c.CatchUp < 0 || c.StartupDelay < 0 {
		bad("missing adverts %d, sends %d, preempt delay %v, time to catch up %v, startup delay %v: use none below 0, and at most %d sends",
			c.DownAdverts, c.Sends, c.PreemptDelay, c.CatchUp, c.StartupDelay, maxSends)
	}
	errs = append(errs, c.validatePeers(), c.validateTracks())
	return errors.Join(errs...)
}

func (c *Config) validatePeers() error {
	for i, p := range c.Peers {
		switch {
		case !p.Addr.IsValid() || p.Addr.Is4In6() || p.Addr.Zone() != "" || p.Addr.Is4() != c.Local.Is4() || p.Addr.IsMulticast():
			return fmt.Errorf("ha: instance %q: peer %v: give a unicast address of %v's family, without a zone", c.Name, p.Addr, c.Local)
		case p.Addr == c.Local:
			return fmt.Errorf("ha: instance %q: peer %v is the node itself: leave it out", c.Name, p.Addr)
		case slices.ContainsFunc(c.Peers[:i], func(o Peer) bool { return o.Addr == p.Addr }):
			return fmt.Errorf("ha: instance %q: peer %v is there twice: remove one", c.Name, p.Addr)
		case p.MaxTTL != 0 && p.MinTTL > p.MaxTTL:
			return fmt.Errorf("ha: instance %q: peer %v: TTL %d to %d is empty: swap them", c.Name, p.Addr, p.MinTTL, p.MaxTTL)
		}
	}
	return nil
}

func (c *Config) validateTracks() error {
	for i, t := range c.Tracks {
		if t.Name == "" || slices.ContainsFunc(c.Tracks[:i], func(o Track) bool { return o.Name == t.Name }) {
			return fmt.Errorf("ha: instance %q: track %q: give each a name of its own", c.Name, t.Name)
		}
		if t.Weight < -253 || t.Weight > 253 {
			return fmt.Errorf("ha: instance %q: track %q: weight %d: use -253 to 253", c.Name, t.Name, t.Weight)
		}
	}
	return nil
}

func (c *Config) multicast() bool { return len(c.Peers) == 0 && !c.Unicast }

func (c *Config) downAdverts() int {
	if c.DownAdverts == 0 {
		return DefaultDownAdverts
	}
	return c.DownAdverts
}

// longInterval is from when on an interval's adverts are all sent at once.
const longInterval = time.Second

// copies is how many times an advert is sent at once.
func (c *Config) copies() int {
	switch {
	case c.Interval >= longInterval:
		return max(c.Sends, 1)
	case c.Sends > 0 && c.Sends%2 == 0:
		return 2
	}
	return 1
}

// sendEvery is Adver_Timer: the interval, divided among its sends.
func (c *Config) sendEvery() time.Duration {
	return c.Interval * time.Duration(c.copies()) / time.Duration(max(c.Sends, 1))
}

// Skew is Skew_Time (RFC 9568 section 6.1), not rounded to centiseconds, with
// the active's interval.
func Skew(priority uint8, interval time.Duration) time.Duration {
	return time.Duration(256-int(priority)) * interval / 256
}

// down is Active_Down_Interval (6.1), with the active's interval.
func (c *Config) down(priority uint8, interval time.Duration) time.Duration {
	return time.Duration(c.downAdverts())*interval + Skew(priority, interval)
}
