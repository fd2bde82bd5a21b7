package desired

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// HaVipProtocol is the IFA_PROTO of HaVips. It differs from Protocol because
// the reconcile loop neither makes nor removes them: the election does, at
// once, and after a crash the number still tells them apart.
const HaVipProtocol = 177

// Election is a virtual router (RFC 9568) that this node takes part in: the
// proxies of one group, and what the active one of them holds. Durations are
// those of the RFC, Priority is 1..254.
type Election struct {
	Group    string
	VRID     uint8
	Priority uint8
	Interval time.Duration // Advertisement_Interval
	Sends    int           // adverts in an interval
	// NoPreempt leaves a proxy of lower priority active.
	NoPreempt    bool
	PreemptDelay time.Duration
	Multicast    bool
	// PseudoHeader includes the pseudo-header of RFC 5798 in the checksum of
	// adverts over IPv4.
	PseudoHeader bool
	// MinTTL is the lowest TTL of a unicast advert that is accepted.
	MinTTL uint8
	Link   string     // of the underlay; "" while it is unknown
	Local  netip.Addr // where adverts come from
	Peers  []Elector  // the other members, by name
	// Cordoned keeps this node from being active.
	Cordoned bool
	Tracks   []Track
	// HaVips are the addresses that move together, the underlay's first.
	HaVips []HaVip
	// Absent names the members that have not registered.
	Absent []string
	// Missing names the attachments that have no interface here.
	Missing []string
}

// Elector is another member of an Election.
type Elector struct {
	Node     string
	Addr     netip.Addr
	Priority uint8 // as configured
}

// HaVip is an address that is on the active proxy only, as a host address.
type HaVip struct {
	Attachment string // "" for the one on the underlay
	Netns      string
	Link       string
	Addr       netip.Addr
	// Probe, if valid, answers through the link while the VPC is reachable.
	Probe netip.Addr
}

// Track is what this node's fitness depends on.
type Track struct {
	Name string // eni, underlay, sync or probe
	// Fault takes the node out of the election while the track is down.
	Fault bool
	// Lower is taken from the priority while the track is down.
	Lower int
}

// Dump writes the election as text, for people and golden files.
func (e Election) Dump(w io.Writer) error {
	var b strings.Builder
	transport := "unicast"
	if e.Multicast {
		transport = "multicast"
	}
	fmt.Fprintf(&b, "# election of group %s: vrid %d priority %d every %v × %d, preempt %t after %v, %s from %v on %s, TTL %d up, pseudo-header %t, cordoned %t\n",
		e.Group, e.VRID, e.Priority, e.Interval, e.Sends, !e.NoPreempt, e.PreemptDelay, transport, e.Local, e.Link, e.MinTTL, e.PseudoHeader, e.Cordoned)
	for _, p := range e.Peers {
		fmt.Fprintf(&b, "#   peer %s %v priority %d\n", p.Node, p.Addr, p.Priority)
	}
	for _, a := range e.Absent {
		fmt.Fprintf(&b, "#   absent %s\n", a)
	}
	for _, t := range e.Tracks {
		fmt.Fprintf(&b, "#   track %s fault %t lower %d\n", t.Name, t.Fault, t.Lower)
	}
	for _, m := range e.Missing {
		fmt.Fprintf(&b, "#   missing %s\n", m)
	}
	for _, v := range e.HaVips {
		what := fmt.Sprintf("address add %s/%d dev %s proto %d", v.Addr, v.Addr.BitLen(), v.Link, HaVipProtocol)
		fmt.Fprintf(&b, "#   when active: %s\n", InNetns(v.Netns, "ip "+what))
		if v.Probe.IsValid() {
			fmt.Fprintf(&b, "#   probe: %s\n", InNetns(v.Netns, "ping -I "+v.Link+" "+v.Probe.String()))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
