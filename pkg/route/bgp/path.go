package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Family is an address family of routes.
type Family string

// The families that a Speaker carries.
const (
	VPNv4            Family = "vpnv4" // AFI 1, SAFI 128 (RFC 4364)
	VPNv6            Family = "vpnv6" // AFI 2, SAFI 128 (RFC 4659)
	RouteTargetRoute Family = "rtc"   // AFI 1, SAFI 132: route target constraint (RFC 4684)
)

// RouteDistinguisher makes equal prefixes of different VPNs different routes.
// It is of type 0 (RFC 4364 section 4.2): two bytes and four.
type RouteDistinguisher struct {
	Admin  uint16
	Number uint32
}

// String is the customary form, such as 1124:4097.
func (d RouteDistinguisher) String() string { return fmt.Sprintf("%d:%d", d.Admin, d.Number) }

// Target is a route target (RFC 4360 section 4): who is to import a route. With
// Addr it is specific to an IPv4 address and Number is below 65536, otherwise
// to a two-byte AS.
type Target struct {
	Addr   netip.Addr
	ASN    uint16
	Number uint32
}

// String is the customary form, such as 65000:4097 or 100.64.0.2:1.
func (t Target) String() string {
	if t.Addr.IsValid() {
		return fmt.Sprintf("%s:%d", t.Addr, t.Number)
	}
	return fmt.Sprintf("%d:%d", t.ASN, t.Number)
}

// Compare orders targets.
func (t Target) Compare(u Target) int {
	return cmp.Or(t.Addr.Compare(u.Addr), cmp.Compare(t.ASN, u.ASN), cmp.Compare(t.Number, u.Number))
}

// NLRI is what a route is known by.
type NLRI struct {
	RD     RouteDistinguisher
	Prefix netip.Prefix // masked
}

// String is the customary form, such as 1124:4097:172.16.101.0/24.
func (n NLRI) String() string { return n.RD.String() + ":" + n.Prefix.String() }

// Compare orders routes.
func (n NLRI) Compare(o NLRI) int {
	return cmp.Or(cmp.Compare(n.RD.Admin, o.RD.Admin), cmp.Compare(n.RD.Number, o.RD.Number),
		n.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(n.Prefix.Bits(), o.Prefix.Bits()))
}

// Family is VPNv4 or VPNv6.
func (n NLRI) Family() Family {
	if n.Prefix.Addr().Is4() {
		return VPNv4
	}
	return VPNv6
}

// Encapsulation is how packets for a route reach its next hop.
type Encapsulation struct {
	GRE   bool // false: the attribute was absent, or named no GRE tunnel
	Keyed bool
	Key   uint32
}

// String names the tunnel.
func (e Encapsulation) String() string {
	switch {
	case !e.GRE:
		return "no GRE tunnel"
	case !e.Keyed:
		return "GRE without a key"
	}
	return fmt.Sprintf("GRE key %d", e.Key)
}

// Path is one way to a prefix.
type Path struct {
	NLRI
	NextHop       netip.Addr
	Encapsulation Encapsulation
	Targets       []Target // sorted
	LocalPref     uint32   // 0 is sent as 100, the customary default
	// Label says what an own path is announced for; it is not sent.
	Label string
}

// Equal tells whether two paths are the same to a peer and have one Label.
func (p Path) Equal(q Path) bool {
	return p.NLRI == q.NLRI && p.NextHop == q.NextHop && p.Encapsulation == q.Encapsulation &&
		p.LocalPref == q.LocalPref && p.Label == q.Label && slices.Equal(p.Targets, q.Targets)
}

// Route is a path that a peer has sent.
type Route struct {
	Path
	// Peer is the address of the peer that sent it.
	Peer netip.Addr
	// Originator is the BGP identifier of the speaker that the route comes
	// from: of the peer, or as a reflector says (ORIGINATOR_ID, RFC 4456).
	Originator netip.Addr
	// Reflected tells that Originator is a reflector's word.
	Reflected bool
	// Seq grows with every route that is received, new or again.
	Seq uint64
}
