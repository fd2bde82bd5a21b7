// Package kernel talks to the Linux kernel: network namespaces, links,
// addresses, neighbors, routes, rules, sysctls and egress filters, with netip
// types on the outside. It knows nothing of ownership or intent; it lists
// everything and writes what it is told.
//
// All of it is idempotent: adding what is there (with the same content) and
// deleting what is not are successes. Dumps that the kernel reports as
// interrupted are repeated (NLM_F_DUMP_INTR) and never returned partially.
package kernel

import (
	"context"
	"io"
	"net/netip"
)

// Link is a network interface as the kernel reports it.
type Link struct {
	Index int
	Name  string
	Type  string // IFLA_INFO_KIND, for example "gre"; "" for a physical device and for lo
	MAC   string // lower-case, colon-separated; "" if the device is not an Ethernet one
	PCI   string // bus address such as "0000:00:05.0"; "" if it is not on PCI
	Alias string
	MTU   int  // bytes
	Up    bool // administratively up
	Lower bool // carrier (IFF_LOWER_UP)
	NoARP bool
	GRE   *GRE // nil unless Type is "gre"
}

// LinkStats counts what passed through a link since it was made or moved to its
// namespace (struct rtnl_link_stats64, include/uapi/linux/if_link.h).
type LinkStats struct {
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
	// RxErrors are packets that the device could not accept; TxErrors those
	// that it could not send: on a tunnel, no way to the other end.
	RxErrors, TxErrors   uint64
	RxDropped, TxDropped uint64
}

// GRE is the configuration of an IPv4 GRE device.
type GRE struct {
	Local      netip.Addr
	Remote     netip.Addr // zero: multipoint
	Keyed      bool
	Key        uint32 // both directions
	KeysDiffer bool   // read only: ikey and okey are not the same
	TTL        uint8
	PMTUDisc   bool
	Seq, Csum  bool // read only: never set by us
	Underlay   int  // ifindex the tunnel is bound to; 0: none
}

// Address is an address on a link.
type Address struct {
	Link      int          // ifindex
	Prefix    netip.Prefix // host bits kept
	Broadcast netip.Addr   // IFA_BROADCAST; zero if the address has none
	Protocol  uint8        // IFA_PROTO; 0 if unknown to this kernel
	Scope     uint8
	Dynamic   bool // has a lifetime: DHCP or SLAAC
	LinkLocal bool
}

// NeighborState is the ndm_state of a neighbor entry.
type NeighborState uint16

// The states the product tells apart (include/uapi/linux/neighbour.h).
const (
	NeighborIncomplete NeighborState = 0x01
	NeighborReachable  NeighborState = 0x02
	NeighborFailed     NeighborState = 0x20
	NeighborPermanent  NeighborState = 0x80
)

// Neighbor is a neighbor entry whose link-layer address is an IPv4 address:
// one of a multipoint GRE device.
type Neighbor struct {
	Link  int
	Addr  netip.Addr
	NBMA  netip.Addr    // zero if the entry has none
	State NeighborState // zero is written as NeighborPermanent
}

// NeighborRequest is the kernel's question for the NBMA address of a neighbor
// (RTM_GETNEIGH), for which it keeps packets waiting. The zero value says that
// requests may have been lost: those that are open are listed by Neighbors as
// NeighborIncomplete.
type NeighborRequest struct {
	Link int
	Addr netip.Addr
}

// RouteType is the rtm_type of a route (include/uapi/linux/rtnetlink.h).
type RouteType uint8

// The route types the product tells apart.
const (
	RouteUnicast     RouteType = 1
	RouteUnreachable RouteType = 7
)

// Route is a route with at most one next hop. Multipath routes are listed with
// Multipath set and no next hop.
type Route struct {
	Table     uint32
	Dst       netip.Prefix
	Metric    uint32     // part of the key, lowest preferred; an IPv6 route cannot have 0
	Type      RouteType  // zero is written as RouteUnicast
	Link      int        // 0 for routes that refuse
	Via       netip.Addr // zero: the destination is on the link
	Onlink    bool       // Via need not be covered by an address
	Source    netip.Addr // preferred source; must be an address of this namespace
	Protocol  uint8      // rtm_protocol: whose route it is; never 0
	Scope     uint8      // 0 is written as what suits the route
	TOS       uint8      // read only: a route for one TOS is another route
	Multipath bool
	// Nexthop is the number of a nexthop object that takes the place of Link,
	// Via and Onlink; 0: none.
	Nexthop uint32
}

// RouteFilter selects routes. Zero fields match all.
type RouteFilter struct {
	Table    uint32
	Protocol uint8
	Link     int
}

// Rule is a policy rule. Other is set on a listed rule that has a selector or
// action that the fields do not show.
type Rule struct {
	IPv6     bool
	Priority uint32
	Mark     uint32
	Mask     uint32
	Table    uint32
	Protocol uint8
	Other    bool
}

// LinkNames are the names of a namespace's links.
type LinkNames struct {
	ByIndex map[int]string
	ByName  map[string]int
}

// Handle works in one network namespace. It is safe for concurrent use. All
// batch methods return one error per item, nil for success; one item's failure
// does not stop the others. When the namespace has been deleted every method fails
// with ErrNotFound: a Handle never works in a namespace that got the same name later.
//
// Objects hang on each other. A link that goes down loses its neighbors, its routes
// and its IPv6 addresses; one that is moved loses its IPv4 addresses and its
// egress guard, too, and arrives down; a deleted address takes along the routes that
// name it as their source.
type Handle interface {
	Links(ctx context.Context) ([]Link, error)
	// LinkByName returns ErrNotFound if there is none.
	LinkByName(ctx context.Context, name string) (Link, error)
	// LinkNames says how all links are called. What was done to links before the
	// call is always seen; while nothing is, it costs one system call in the
	// agent's own namespace, however many links there are. The maps must not be
	// changed.
	LinkNames(ctx context.Context) (LinkNames, error)
	// LinkStats returns the counters of all links, by index.
	LinkStats(ctx context.Context) (map[int]LinkStats, error)
	// CreateGRE makes a multipoint GRE device in this namespace, down; mtu 0
	// leaves the MTU to the kernel. It fails with ErrExists if the name, or
	// the (local, key) slot of this underlay, is taken. The device holds the
	// slot wherever it is moved, and when its namespace ends otherwise than by
	// DeleteNamespace, until the kernel has cleaned up: try again after a moment.
	CreateGRE(ctx context.Context, name string, g GRE, mtu int) error
	DeleteLink(ctx context.Context, index int) error
	// SetLinkName renames a link that is down; before Linux 6.2 one that is
	// up cannot be renamed (EBUSY). ErrExists if the name is taken.
	SetLinkName(ctx context.Context, index int, name string) error
	SetLinkMTU(ctx context.Context, index, mtu int) error
	SetLinkAlias(ctx context.Context, index int, alias string) error
	SetLinkUp(ctx context.Context, index int, up bool) error
	// SetLinkARP says whether neighbors are asked for on a link (not
	// IFF_NOARP). A change drops the link's neighbors, permanent ones too
	// (arp_netdev_event in net/ipv4/arp.c).
	SetLinkARP(ctx context.Context, index int, on bool) error
	// MoveLink moves a link to another namespace: a name below /run/netns,
	// or "" for the agent's own. Its index may change. ErrExists if the name
	// is taken there.
	MoveLink(ctx context.Context, index int, netns string) error

	Addresses(ctx context.Context) ([]Address, error)
	// AddAddress leaves an address alone that is there, whatever its Protocol. One
	// of IPv6 can be used at once: nobody is asked whether he has it.
	AddAddress(ctx context.Context, a Address) error
	DeleteAddress(ctx context.Context, a Address) error

	// Neighbors lists the entries of both address families on links whose
	// link-layer addresses are IPv4 addresses, without those that the kernel
	// makes for itself (NUD_NOARP).
	Neighbors(ctx context.Context) ([]Neighbor, error)
	ReplaceNeighbors(ctx context.Context, n []Neighbor) []error
	// AnswerNeighbors answers NeighborRequests: packets that waited leave at
	// once, as by ReplaceNeighbors. An answer without NBMA says that there is
	// no such neighbor: waiting packets are refused and the entry is deleted,
	// as by DeleteNeighbors. Either gives no hint to Watch.
	AnswerNeighbors(ctx context.Context, n []Neighbor) []error
	DeleteNeighbors(ctx context.Context, n []Neighbor) []error

	// Flows returns the sources and destinations of the connections that the
	// namespace's connection tracking knows, as their first packet had them.
	// It walks the whole table: some 0.3 µs for each connection.
	Flows(ctx context.Context) (map[netip.Addr]struct{}, error)

	Routes(ctx context.Context, f RouteFilter) ([]Route, error)
	// ReplaceRoutes never replaces a route with another Protocol: such an
	// item fails with ErrForeign. See Route.Validate for what is refused.
	ReplaceRoutes(ctx context.Context, r []Route) []error
	// DeleteRoutes deletes by table, destination, metric and Protocol.
	DeleteRoutes(ctx context.Context, r []Route) []error

	// Nexthops lists the nexthop objects; none if the kernel knows none.
	Nexthops(ctx context.Context) ([]Nexthop, error)
	// ReplaceNexthops never replaces an object with another Protocol: such an
	// item fails with ErrForeign. The type of a group cannot be changed.
	ReplaceNexthops(ctx context.Context, n []Nexthop) []error
	// DeleteNexthops deletes by number and Protocol. The routes by an object go
	// with it, and a group with its last member.
	DeleteNexthops(ctx context.Context, n []Nexthop) []error
	// NexthopGroups tells whether the kernel has groups of next hops (Linux
	// 5.3), and resilient ones (5.13).
	NexthopGroups(ctx context.Context) (plain, resilient bool, err error)

	Rules(ctx context.Context) ([]Rule, error)
	// AddRules adds a rule also beside an equal one of another Protocol.
	AddRules(ctx context.Context, r []Rule) []error
	DeleteRules(ctx context.Context, r []Rule) []error

	// Sysctl reads a parameter ("net/ipv4/ip_forward"), trimmed. Only what is
	// below net belongs to a namespace; other names are refused. ErrNotFound
	// if the kernel, or the link in the name, is without it.
	Sysctl(ctx context.Context, name string) (string, error)
	// Sysctls reads many in a fraction of the time; absent ones are left out.
	Sysctls(ctx context.Context, names []string) (map[string]string, error)
	// SysctlsWatched tells whether Watch has a hint when one of these parameters
	// is written, unless through another mount of /proc. Those are watched that
	// Sysctls has read, as far as there is room.
	SysctlsWatched(names []string) bool
	SetSysctl(ctx context.Context, name, value string) error

	// EgressSources returns the sources that the guard on a link's egress
	// allows, sorted; ErrNotFound if the link has no guard of ours,
	// ErrIncomplete (an ErrNotFound, too) if someone has changed parts of it.
	EgressSources(ctx context.Context, index int) ([]netip.Addr, error)
	// SetEgressSources puts the guard in place, changes it with no moment
	// in which it is open, or repairs it. Besides the sources it lets
	// neighbor discovery pass, and what is neither IPv4 nor IPv6; resets of
	// IPv4 connections are dropped that this namespace itself sends.
	SetEgressSources(ctx context.Context, index int, sources []netip.Addr) error
	DeleteEgressGuard(ctx context.Context, index int) error
	// EgressDrops counts the packets with other sources that the guard has
	// dropped since it was put in place (modulo 2^32 for each address family).
	EgressDrops(ctx context.Context, index int) (uint64, error)
}

// Host is a machine: its namespaces and a Handle for each.
type Host interface {
	// Namespaces lists the names below /run/netns, sorted.
	Namespaces(ctx context.Context) ([]string, error)
	// CreateNamespace makes a namespace in which lo is up and nothing is
	// forwarded. It appears under its name when it is ready.
	CreateNamespace(ctx context.Context, name string) error
	// DeleteNamespace closes what this Host holds open in the namespace
	// and removes it with all the virtual links in it; physical links come
	// back to the agent's own namespace, and the keys of GRE devices are
	// free when it returns.
	DeleteNamespace(ctx context.Context, name string) error
	// In returns the Handle of a namespace ("" is the agent's own); it is
	// cached and reopened if the namespace was made anew. ErrNotFound if
	// there is none.
	In(name string) (Handle, error)
	// Run calls f on a thread that is in the namespace, so that programs
	// which f starts run there.
	Run(ctx context.Context, name string, f func() error) error
	// Keep calls open on a thread that is in the namespace, for a few quick
	// calls, and keeps what it returns open until the context or the namespace
	// ends; then it closes it, before the namespace goes. The channel is closed
	// after that. Whatever is opened in a namespace otherwise keeps it, and the
	// keys of its GRE devices, alive. ErrNotFound if there is none.
	Keep(ctx context.Context, name string, open func() (io.Closer, error)) (closed <-chan struct{}, err error)
	// Watch returns hints that something in the namespace may have changed:
	// links, addresses, neighbors of tunnels, routes, rules, egress guards,
	// sysctls (see SysctlsWatched), and nftables (so iptables-nft, but not
	// iptables-legacy). A hint carries no truth, and hints may be merged. The
	// first one is HintAll, when all is subscribed to; an overrun (ENOBUFS)
	// is a HintAll again. The channel closes with the context, with the
	// namespace, and when watching has become impossible: list, and watch again.
	Watch(ctx context.Context, name string) (<-chan Hint, error)
	// NeighborRequests returns what the kernel asks about the neighbors of
	// links in a namespace that have ARP on and app_solicit above 0. The first
	// one is the zero NeighborRequest, when all is subscribed to, and so is
	// the one after an overrun: who does not read costs the kernel no more than
	// a bounded queue. The channel closes as that of Watch does.
	NeighborRequests(ctx context.Context, name string) (<-chan NeighborRequest, error)
	Close() error
}

// Hint names a sort of object that may have changed.
type Hint string

// The hints.
const (
	// HintNamespaces comes from Watch("") only: a name below /run/netns was
	// added or removed.
	HintNamespaces Hint = "namespaces"
	HintLinks      Hint = "links"
	HintAddresses  Hint = "addresses"
	HintNeighbors  Hint = "neighbors"
	HintNexthops   Hint = "nexthops"
	HintRoutes     Hint = "routes"
	HintRules      Hint = "rules"
	HintSysctls    Hint = "sysctls"
	HintFirewall   Hint = "firewall"
	HintEgress     Hint = "egress"
	HintAll        Hint = "all" // an overrun: everything may have changed
)
