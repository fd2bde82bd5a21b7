package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Live is what BGP says is alive: of each attachment, the groups that announce
// it. An attachment that is absent has none.
type Live struct {
	Gateways map[string][]Gateway // by attachment, sorted by group
	// Moved is where function hosts are that have told a newer underlay
	// address than the intent has, by tunnel address.
	Moved map[netip.Addr]netip.Addr
	// Unsure is set while no neighbor can be heard, and until those that can
	// have had time to hear of everybody themselves: then an attachment that
	// nobody was heard of is one for the intent to answer.
	Unsure bool
}

// Gateway is a group that announces an attachment.
type Gateway struct {
	Group string
	// Preference decides: only those of the highest carry traffic.
	Preference uint32
}

// Hashing is how the kernel spreads flows over several next hops.
type Hashing string

// The kinds of hashing, the best first.
const (
	// HashResilient leaves flows where they are when a next hop joins
	// (Linux 5.13).
	HashResilient Hashing = "resilient"
	// HashPlain moves some of them (nexthop objects: Linux 5.3).
	HashPlain Hashing = "plain"
	// HashNone spreads nothing.
	HashNone Hashing = ""
)

// DefaultIdleSeconds is how long a flow must be silent before it may be moved to a
// group that has joined: the kernel's own default (NH_RES_DEFAULT_IDLE_TIMER,
// net/ipv4/nexthop.c).
const DefaultIdleSeconds = 120

// gateway is a group that an attachment's traffic may be sent to.
type gateway struct {
	group *intent.ProxyGroup
	nbma  netip.Addr
}

// gateways returns the groups that can carry an attachment, and of these the ones
// that do: by BGP, all that are alive and preferred; without it, the first that
// is not drained.
func (b *builder) gateways(a *intent.Attachment) (all, chosen []gateway) {
	for _, g := range b.set.GroupsOf(a) {
		nbma := b.outer(g)
		switch {
		case !nbma.IsValid():
			b.problem(a, "its proxy %s has not registered yet", g.Spec.Members[0].Node)
		case !g.Tunnel().IsValid():
			b.problem(a, "group %s has no tunnel address yet; without a controller set spec.tunnelAddress", g.ObjectName())
		default:
			all = append(all, gateway{g, nbma})
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	if b.facts.Live == nil {
		return all, b.first(all)
	}
	best := uint32(0)
	for _, l := range b.facts.Live.Gateways[a.ObjectName()] {
		i := slices.IndexFunc(all, func(g gateway) bool { return g.group.ObjectName() == l.Group })
		if i < 0 || l.Preference < best {
			continue
		}
		if l.Preference > best {
			best, chosen = l.Preference, nil
		}
		chosen = append(chosen, all[i])
	}
	if len(chosen) == 0 && b.facts.Live.Unsure {
		return all, b.first(all)
	}
	if len(chosen) == 0 {
		b.problem(a, "no proxy that serves it is alive: none announces it by BGP; see `vpcproxyctl bgp explain`")
	}
	return all, chosen
}

// first returns the first group that is not drained; if all are, the first.
func (b *builder) first(all []gateway) []gateway {
	i := slices.IndexFunc(all, func(g gateway) bool { return !b.set.Drained(g.group) })
	return all[max(i, 0):][:1]
}

// twins are two next hops to each gateway. The kernel notes that a flow is busy
// only where it has a choice (fib_select_path, net/ipv4/fib_semantics.c): a group
// of one member would let every flow go when a second joins.
var twins = []string{"", "/2"}

// ways returns the route to an attachment's destinations by the chosen gateways,
// with what it needs. Attachments of several groups use a nexthop object even
// when only one is alive: flows must stay when another joins.
func (b *builder) ways(a *intent.Attachment, link string, chosen []gateway) (r desired.Route, ok bool) {
	if len(chosen) == 0 {
		return r, false
	}
	if len(a.Services()) == 1 || b.facts.Hashing == HashNone {
		return desired.Route{Link: link, Via: chosen[0].group.Tunnel(), Onlink: true}, true
	}
	var members []uint32
	for _, g := range chosen {
		for _, twin := range twins {
			id := b.number(a.ObjectName(), g.group.ObjectName()+twin)
			b.state.Nexthops[desired.NexthopKey{ID: id}] = desired.Nexthop{Link: link, Via: g.group.Tunnel(), Onlink: true}
			members = append(members, id)
		}
	}
	slices.Sort(members)
	id := b.number(a.ObjectName(), "")
	idle := b.cfg.IdleSeconds
	if idle == 0 {
		idle = DefaultIdleSeconds
	}
	n := desired.Nexthop{Members: slices.Clone(members)}
	if b.facts.Hashing == HashResilient {
		n.Resilient, n.IdleSeconds = true, idle
	}
	b.state.Nexthops[desired.NexthopKey{ID: id}] = n
	f := &b.plan.Footprints[len(b.plan.Footprints)-1] // the attachment's
	f.Nexthops = append(members, id)
	return desired.Route{Nexthop: id}, true
}

// Nexthop objects have numbers from nexthopBase on, out of the way of routing
// daemons, which count from small ones.
const (
	nexthopBase  = uint32(desired.Protocol) << 24
	nexthopCount = uint32(1) << 23 // of next hops, and as many groups behind them
)

// number gives a nexthop object a number that depends on what it is for alone,
// unless two collide: the later one in the order of the plan then moves on. With
// group "" it is that of a group of next hops.
func (b *builder) number(attachment, group string) uint32 {
	if b.numbers == nil {
		b.numbers = map[uint32]bool{}
	}
	sum := sha256.Sum256([]byte(attachment + "/" + group))
	n, first := binary.BigEndian.Uint32(sum[:4])%nexthopCount, nexthopBase
	if group == "" {
		first += nexthopCount
	}
	for b.numbers[first+n] {
		n = (n + 1) % nexthopCount
	}
	b.numbers[first+n] = true
	return first + n
}
