// Package plan turns intent and facts into the whole of what a node's kernel
// should hold. It is pure: the same input gives the same output, and nothing
// outside memory is touched.
//
// A problem with one attachment leaves the others whole. Where a path is not
// known, a pod that needs it is refused (unreachable), never let through to
// another route.
package plan

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Facts is what a node has observed of itself.
type Facts struct {
	// UnderlayLink is the interface that holds the node's underlay address;
	// "" if none does.
	UnderlayLink string
	// UnderlayMTU is that interface's MTU in bytes.
	UnderlayMTU int
	// StrictRPFilter is set if net.ipv4.conf.all.rp_filter is 1: the kernel
	// uses the maximum of that and the device's own value.
	StrictRPFilter bool
	// Interfaces are the links that could be an ENI, of the agent's own
	// namespace and of those that are ours.
	Interfaces []Interface
	// Masquerade is what nat.masq asks for, whatever attachments there are.
	Masquerade []desired.Masquerade
	// ForeignTunnels are GRE tunnels of others that share our underlay
	// address; their peers must stay admitted.
	ForeignTunnels []Tunnel
	// Live is what BGP says; nil is static mode, or that nothing has been
	// heard yet: then intent is all there is to go by.
	Live *Live
	// Active names the groups that this node is the active proxy of.
	Active map[string]bool
	// Broken names the namespaces in which something wanted cannot be put in
	// place: what they carry is not announced.
	Broken map[string]bool
	// Hashing is how the kernel can spread flows.
	Hashing Hashing
	// Used names the attachments that pods of this function host are bound to,
	// or are about to be, or were a moment ago.
	Used map[string]bool
}

// Interface is a link that could be an ENI.
type Interface struct {
	Netns     string
	Name      string
	MAC       string // lower case
	PCI       string
	Addresses []netip.Prefix
	NoCarrier bool // it is up, and the other end is not
}

// Tunnel is a point-to-point GRE tunnel.
type Tunnel struct {
	Local, Remote netip.Addr
	Keyed         bool
	Key           uint32
}

// Config is the part of a node's configuration that shapes its plan.
type Config struct {
	// MarkMask is the bits of the packet mark that are ours.
	MarkMask uint32
	// RulePriority is the priority of every policy rule of ours.
	RulePriority uint32
	// TableBase is added to an attachment's slot to give its routing table.
	TableBase uint32
	// Neighbors says when a proxy makes the neighbor entries of its
	// function hosts; "" is NeighborsEager.
	Neighbors Neighbors
	// BGP, if not nil, has the node announce what it carries.
	BGP *BGP
	// IdleSeconds is how long a flow is silent before it may move to a group
	// that has joined; 0 is DefaultIdleSeconds.
	IdleSeconds uint32
	// Accounting has the kernel count the bytes of each connection.
	Accounting bool
	// ZoneBase is added to an attachment's slot to give its conntrack zone.
	ZoneBase uint16
}

// slots is how many attachments a function host can tell apart by mark and by
// conntrack zone.
func (c Config) slots() uint32 {
	return min(slotCount(c.MarkMask), math.MaxUint16-uint32(c.ZoneBase)+1)
}

// Zones returns the first and the last conntrack zone that is ours.
func (c Config) Zones() (first, last uint16) {
	return c.ZoneBase, c.ZoneBase + uint16(c.slots()-1) //nolint:gosec // slots bounds it
}

// Neighbors says when neighbor entries are made.
type Neighbors string

// The modes.
const (
	NeighborsEager    Neighbors = "eager"     // all, in advance
	NeighborsOnDemand Neighbors = "on-demand" // each when the kernel asks for it
	NeighborsAuto     Neighbors = "auto"      // eager up to AutoNeighbors hosts of an attachment
)

// AutoNeighbors is the number of an attachment's function hosts up to which
// NeighborsAuto is eager: that many entries are written in 7 ms and take half a
// megabyte of kernel memory (measured, docs/benchmarks.md).
const AutoNeighbors = 1000

// Problem tells why an attachment is not, or not wholly, in the plan.
type Problem struct {
	Attachment string // "" if it concerns the node
	Message    string
}

// String names the attachment and what is wrong.
func (p Problem) String() string {
	if p.Attachment == "" {
		return p.Message
	}
	return "attachment " + p.Attachment + ": " + p.Message
}

const (
	// greHeader is the outer IPv4 header (20 bytes, RFC 791) and GRE
	// without options (4 bytes, RFC 2784); a key adds 4 (RFC 2890).
	greHeader, greKey = 24, 4
	// tunnelTTL is the outer TTL, the customary default (RFC 1700).
	tunnelTTL = 64
	// mainTable is RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h).
	mainTable = 254
	// lastMetric makes the unreachable default the route of last resort.
	lastMetric = 4294967295
)

// Plan is what a node's kernel should hold, and why it is not more.
type Plan struct {
	State      desired.State
	Footprints []Footprint // one for each attachment the node has a part in, by name
	// Elections are those that the node takes part in, by group.
	Elections []desired.Election
	Problems  []Problem
}

// builder collects one plan.
type builder struct {
	set   *intent.Set
	self  *intent.Node
	facts Facts
	cfg   Config
	state desired.State
	plan  Plan
	// numbers of nexthop objects that are taken
	numbers map[uint32]bool
}

func (b *builder) problem(a *intent.Attachment, format string, args ...any) {
	name := ""
	if a != nil {
		name = a.ObjectName()
	}
	b.plan.Problems = append(b.plan.Problems, Problem{Attachment: name, Message: fmt.Sprintf(format, args...)})
}

// Build returns the plan of a node. An intent that does not know the node
// wants nothing of it.
func Build(node string, set *intent.Set, facts Facts, cfg Config) Plan {
	b := &builder{set: set, self: set.Node(node), facts: facts, cfg: cfg, state: desired.New()}
	if b.self != nil {
		b.build()
	}
	b.masquerade()
	b.plan.State = b.state
	slices.SortFunc(b.plan.Footprints, func(x, y Footprint) int { return strings.Compare(x.Attachment, y.Attachment) })
	return b.plan
}

func (b *builder) build() {
	set, node, facts := b.set, b.self.ObjectName(), b.facts
	var carried, served []*intent.Attachment
	short := map[string]string{}
	for _, a := range set.Attachments {
		g, id := set.GroupOn(a, node), ID(a.ObjectName())
		other, taken := short[id]
		short[id] = a.ObjectName()
		switch {
		case taken:
			b.problem(a, "has the short name %s, as attachment %s has; rename one of them", id, other)
		case len(set.GroupsOf(a)) == 0:
			b.problem(a, "its group %s is not known to this node", a.Services()[0].Name)
		case b.self.HasRole(intent.RoleProxy) && g != nil:
			served = append(served, a)
			if a.Uses(b.self) && len(a.Spec.Nodes) > 0 {
				b.problem(a, "this node is a proxy of group %s and cannot be a function host of the same attachment", g.ObjectName())
			}
		case a.Uses(b.self):
			carried = append(carried, a)
		}
	}
	if len(carried)+len(served) > 0 && facts.UnderlayLink == "" {
		b.problem(nil, "no interface of this node has its underlay address %s; mend the address or the node's configuration", b.self.Spec.UnderlayAddress)
	}
	b.function(carried)
	b.proxy(served)
	b.elections(served)
	b.foreignPeers()
}

// masquerade adds what hides pods from the rest of the world.
func (b *builder) masquerade() {
	if len(b.facts.Masquerade) == 0 {
		return
	}
	n := b.state.NAT[desired.NATKey{}]
	n.Masquerade = b.facts.Masquerade
	b.state.NAT[desired.NATKey{}] = n
}

// mtu returns the inner MTU of a tunnel.
func (b *builder) mtu(keyed bool) int {
	m := b.facts.UnderlayMTU
	if m == 0 {
		m = 1500 // Ethernet, until the underlay interface is known
	}
	m -= greHeader
	if keyed {
		m -= greKey
	}
	return m
}

// key returns the attachment's GRE key; ok is false, and the problem noted, if
// it should have one and has not.
func (b *builder) key(a *intent.Attachment) (key uint32, keyed, ok bool) {
	key, keyed = a.Key()
	if !keyed && a.EffectiveScope() == intent.ScopePods {
		b.problem(a, "has no GRE key yet; without a controller set spec.greKey")
		return 0, false, false
	}
	return key, keyed, true
}

// tunnelLink plans an attachment's tunnel device with the outer address local.
func (b *builder) tunnelLink(netns string, a *intent.Attachment, local netip.Addr, key uint32, keyed bool) desired.LinkKey {
	k := desired.LinkKey{Netns: netns, Name: desired.LinkPrefix + ID(a.ObjectName())}
	// The endpoint alone: with no peer, nobody may speak to it.
	b.state.Peers[desired.PeerKey{Local: local}] = desired.Peer{}
	b.state.Links[k] = desired.Link{
		Local: local,
		Keyed: keyed, Key: key,
		MTU: b.mtu(keyed), TTL: tunnelTTL,
		Alias: desired.AliasPrefix + "attachment " + a.ObjectName(),
	}
	return k
}

func (b *builder) peer(local, addr netip.Addr, key uint32, keyed bool) {
	b.state.Peers[desired.PeerKey{Local: local, Addr: addr, Keyed: keyed, Key: key}] = desired.Peer{}
}

// foreignPeers admits the peers of tunnels that are not ours: the GRE guard
// judges everything that comes to our outer addresses.
func (b *builder) foreignPeers() {
	for _, t := range b.facts.ForeignTunnels {
		if _, guarded := b.state.Peers[desired.PeerKey{Local: t.Local}]; guarded {
			b.peer(t.Local, t.Remote, t.Key, t.Keyed)
		}
	}
}

// hosts returns the function hosts that may send to an attachment.
func (b *builder) hosts(a *intent.Attachment) []*intent.Node {
	return slices.DeleteFunc(slices.Clone(b.set.Nodes), func(n *intent.Node) bool {
		return !a.Uses(n) || n == b.self
	})
}

// accounting has the connections of a namespace counted, if they are to be.
func (b *builder) accounting(netns string) {
	if b.cfg.Accounting {
		b.state.Sysctls[desired.SysctlKey{Netns: netns, Name: "net/netfilter/nf_conntrack_acct"}] = desired.Sysctl{Value: "1"}
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
