// Package desired holds what a node's kernel should contain: plain values with
// comparable keys, produced whole by package plan and made true by package
// reconcile. It is a leaf: it imports the standard library only.
//
// A field named Netns is the name of a network namespace below /run/netns, or
// "" for the namespace the agent runs in.
package desired

import (
	"maps"
	"net/netip"
	"reflect"
)

// Protocol marks routes, rules and addresses as ours: the rtm_protocol number
// (include/uapi/linux/rtnetlink.h leaves 176 unassigned).
const Protocol = 176

// LinkPrefix begins the name of every link and network namespace of ours.
const LinkPrefix = "vpx-"

// AliasPrefix begins the ifalias of every link of ours, so that one that
// somebody renamed is still known as ours.
const AliasPrefix = "vpcproxy "

// Namespace is a network namespace of ours, named below /run/netns.
type Namespace struct{}

// LinkKey names a link in a namespace.
type LinkKey struct {
	Netns string
	Name  string
}

// Link is a multipoint GRE device (no remote address). It is created in the
// agent's own namespace, which stays its underlay, and then moved to Netns.
type Link struct {
	Local netip.Addr // outer source address, on the underlay
	Keyed bool       // false: GRE without a key, as in the plain recipe
	Key   uint32     // GRE key, both directions; meaningful if Keyed
	MTU   int        // bytes, of the inner packet
	ARP   bool       // the kernel asks for neighbors that it does not know
	TTL   uint8      // of the outer header
	Alias string     // ifalias; tells a person which attachment this is
}

// ENIKey names an elastic network interface that serves an attachment from
// inside a namespace.
type ENIKey struct {
	Netns string
	Name  string
}

// ENI is a physical (or cloud) interface that belongs into a namespace of
// ours while its attachment exists, and back into the agent's when it is gone.
type ENI struct {
	MAC string // lower-case, colon-separated; identifies the device across moves
}

// AddressKey names an address on a link.
type AddressKey struct {
	Netns  string
	Link   string
	Prefix netip.Prefix // address with prefix length, host bits kept
}

// Address has no properties beyond its key.
type Address struct{}

// NeighborKey names a neighbor entry.
type NeighborKey struct {
	Netns string
	Link  string
	Addr  netip.Addr // protocol (tunnel) address
}

// Neighbor is a permanent neighbor entry of a multipoint tunnel.
type Neighbor struct {
	NBMA netip.Addr // underlay address that the tunnel address is reached at
	// OnDemand entries are made when the kernel asks, and need not be there.
	OnDemand bool
}

// RouteKey names a route. Metric is part of the kernel's own key (fib_priority).
type RouteKey struct {
	Netns  string
	Table  uint32
	Dst    netip.Prefix // 0.0.0.0/0 or ::/0 is the default route
	Metric uint32
}

// RouteType is the rtm_type of a route.
type RouteType uint8

// The route types that the product uses.
const (
	Unicast RouteType = iota
	Unreachable
)

// NexthopKey names a nexthop object. Its number is a namespace's own.
type NexthopKey struct {
	Netns string
	ID    uint32
}

// Nexthop is a next hop, or a group of them (Documentation/networking/
// nexthop-group-resilient.rst): a route that names a group is spread over its
// members by flow.
type Nexthop struct {
	Link   string     // of a single next hop
	Via    netip.Addr // likewise
	Onlink bool       // likewise: the next hop need not be covered by an address
	// Members are the numbers of a group's next hops, sorted.
	Members []uint32
	// Resilient leaves flows where they are when another member joins, until
	// they have been idle for IdleSeconds.
	Resilient   bool
	IdleSeconds uint32
}

// IsGroup tells whether the object is a group.
func (n Nexthop) IsGroup() bool { return len(n.Members) > 0 }

// Route is one unicast or unreachable route.
type Route struct {
	Type   RouteType
	Link   string     // out interface; "" for unreachable
	Via    netip.Addr // next hop; zero if on link
	Onlink bool       // the next hop need not be covered by an address
	Source netip.Addr // preferred source; zero: the kernel chooses
	// Nexthop is the number of a nexthop object that takes the place of Link,
	// Via and Onlink; 0: none.
	Nexthop uint32
}

// RuleKey is a whole policy rule: rules have no identity beyond their content.
type RuleKey struct {
	Netns    string
	IPv6     bool
	Priority uint32
	Mark     uint32
	Mask     uint32
	Table    uint32
}

// Rule has no properties beyond its key.
type Rule struct{}

// SysctlKey names a kernel parameter in slash form below /proc/sys, for example
// "net/ipv4/ip_forward". Slashes, because interface names may contain dots.
type SysctlKey struct {
	Netns string
	Name  string
}

// Sysctl is a parameter's value as the kernel prints it, without white space
// around it.
type Sysctl struct {
	Value string
}

// PeerKey is one outer source that may speak GRE to a local endpoint with one
// key. Whatever is in no PeerKey is dropped before decapsulation. A PeerKey
// without Addr is the endpoint itself, which is judged even if it has no peers.
type PeerKey struct {
	Netns string
	Local netip.Addr // our endpoint
	Addr  netip.Addr // the peer's outer source
	Keyed bool
	Key   uint32
}

// Peer has no properties beyond its key.
type Peer struct{}

// SteerKey selects packets by source and destination, or by the link that they
// come from.
type SteerKey struct {
	Netns string
	Src   netip.Prefix // masked
	Dst   netip.Prefix // masked
	Link  string       // "" unless Src and Dst are zero
}

// Steer gives the selected packets a mark, bits outside Mask are kept, and their
// connections a conntrack zone: flows of different zones never meet, though
// they have the same addresses and ports. What comes from a link gets a zone only.
type Steer struct {
	Mark   uint32
	Mask   uint32
	Zone   uint16 // 0: the common one
	Refuse bool   // instead: an ICMP error (host unreachable)
}

// Way is how packets of a pod are steered that is bound to an attachment.
type Way struct {
	CIDRs []netip.Prefix // masked
	Steer Steer
}

// EgressKey names a link whose egress is guarded.
type EgressKey struct {
	Netns string
	Link  string
}

// Egress lists the only source addresses that may leave by a link. IPv4 and
// IPv6 packets from any other source are dropped and counted; other protocols
// (ARP) pass, and so does what IPv6 needs to work on a link: neighbor discovery.
type Egress struct {
	Sources []netip.Addr // sorted
}

// NATKey names a namespace's address translation and packet filter.
type NATKey struct {
	Netns string
}

// NAT is all that our iptables chains in one namespace hold.
type NAT struct {
	SNAT []SNAT // tried in order; the first match decides
	// Masquerade comes after the rules of others, and after SNAT.
	Masquerade []Masquerade
	Clamp      []Clamp   // TCP MSS, for SYN packets of both directions
	Forward    []Forward // who may open connections through this namespace
	Guarded    []string  // links (patterns as in LinkPattern) from which no new connection is accepted, neither to this machine nor through it, unless Forward allows it
}

// SNAT rewrites the source of connections that leave by a link. Ports are
// chosen fully at random.
type SNAT struct {
	Out    string       // out interface; a trailing "+" matches the rest, as in iptables
	To     netip.Addr   // the new source; zero means MASQUERADE
	IPv6   bool         // family, for MASQUERADE; otherwise To decides
	Except []netip.Addr // sources that stay as they are
}

// Masquerade hides the sources of one address family behind the primary address
// of whatever link they leave by, as ip-masq-agent does. Packets to this
// machine's own addresses are never touched. Ports are chosen fully at random.
type Masquerade struct {
	IPv6 bool
	Keep []netip.Prefix // destinations toward which the source stays
}

// Clamp limits the MSS of TCP connections through a link, both directions.
type Clamp struct {
	Link string // a trailing "+" matches the rest
	MTU  int    // bytes; MSS is MTU-40 for IPv4 and MTU-60 for IPv6
}

// Forward lets connections be opened from one link to another.
type Forward struct {
	In, Out string
}

// RouteDistinguisher makes a path of ours different from others' to the same
// prefix (RFC 4364 section 4.2, type 0).
type RouteDistinguisher struct {
	Admin  uint16
	Number uint32
}

// RouteTarget says who is to import a path (RFC 4360 section 4): with Addr it
// is specific to an IPv4 address, otherwise to a two-byte AS.
type RouteTarget struct {
	Addr   netip.Addr
	ASN    uint16
	Number uint32
}

// PathKey names a path that this node announces by BGP.
type PathKey struct {
	Netns  string // whose objects carry it; "" for a function host's own address
	RD     RouteDistinguisher
	Prefix netip.Prefix
}

// Path is what is announced.
type Path struct {
	NextHop netip.Addr
	Keyed   bool
	Key     uint32 // of the GRE tunnel to NextHop
	Targets []RouteTarget
}

// State is all that one node's kernel should hold, and what it announces. The zero value wants nothing.
type State struct {
	Namespaces map[string]Namespace
	NAT        map[NATKey]NAT
	Peers      map[PeerKey]Peer
	Links      map[LinkKey]Link
	ENIs       map[ENIKey]ENI
	Egress     map[EgressKey]Egress
	Addresses  map[AddressKey]Address
	Neighbors  map[NeighborKey]Neighbor
	Sysctls    map[SysctlKey]Sysctl
	Nexthops   map[NexthopKey]Nexthop
	Routes     map[RouteKey]Route
	Rules      map[RuleKey]Rule
	Steers     map[SteerKey]Steer
	Paths      map[PathKey]Path
	// Ways is how bound pods are steered, by attachment. It is no kernel
	// object: bindings make Steers of it, and come and go between two States.
	Ways map[string]Way
}

// New returns an empty State with every map made.
func New() State {
	return State{
		Namespaces: map[string]Namespace{},
		NAT:        map[NATKey]NAT{},
		Peers:      map[PeerKey]Peer{},
		Links:      map[LinkKey]Link{},
		ENIs:       map[ENIKey]ENI{},
		Egress:     map[EgressKey]Egress{},
		Addresses:  map[AddressKey]Address{},
		Neighbors:  map[NeighborKey]Neighbor{},
		Sysctls:    map[SysctlKey]Sysctl{},
		Nexthops:   map[NexthopKey]Nexthop{},
		Routes:     map[RouteKey]Route{},
		Rules:      map[RuleKey]Rule{},
		Steers:     map[SteerKey]Steer{},
		Paths:      map[PathKey]Path{},
		Ways:       map[string]Way{},
	}
}

// Sized returns a state that wants nothing, with room for what so many
// attachments want of a function host: maps that grow to that size are copied a
// dozen times on the way.
func Sized(attachments int) State {
	n := attachments
	s := New()
	s.Peers, s.Links = make(map[PeerKey]Peer, n), make(map[LinkKey]Link, n)
	s.Addresses, s.Neighbors = make(map[AddressKey]Address, n), make(map[NeighborKey]Neighbor, n)
	s.Sysctls, s.Rules = make(map[SysctlKey]Sysctl, n), make(map[RuleKey]Rule, n)
	s.Routes, s.Steers = make(map[RouteKey]Route, 2*n), make(map[SteerKey]Steer, 2*n)
	s.Ways = make(map[string]Way, n)
	return s
}

// Equal tells whether two states want the same.
func (s State) Equal(o State) bool {
	// What BGP changes of a large state is soon seen to differ.
	return len(s.Routes) == len(o.Routes) &&
		maps.Equal(s.Namespaces, o.Namespaces) &&
		maps.EqualFunc(s.NAT, o.NAT, deeply) &&
		maps.Equal(s.Peers, o.Peers) &&
		maps.Equal(s.Links, o.Links) &&
		maps.Equal(s.ENIs, o.ENIs) &&
		maps.EqualFunc(s.Egress, o.Egress, deeply) &&
		maps.Equal(s.Addresses, o.Addresses) &&
		maps.Equal(s.Neighbors, o.Neighbors) &&
		maps.Equal(s.Sysctls, o.Sysctls) &&
		maps.EqualFunc(s.Nexthops, o.Nexthops, deeply) &&
		maps.Equal(s.Routes, o.Routes) &&
		maps.Equal(s.Rules, o.Rules) &&
		maps.Equal(s.Steers, o.Steers) &&
		maps.EqualFunc(s.Paths, o.Paths, deeply) &&
		maps.EqualFunc(s.Ways, o.Ways, deeply)
}

func deeply[T any](a, b T) bool { return reflect.DeepEqual(a, b) }
