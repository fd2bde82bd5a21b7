package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (b *builder) outer(g *intent.ProxyGroup) netip.Addr { return Outer(b.set, g) }

// Outer returns the group's outer address: the HaVip if it has one, otherwise
// its proxy's own. It is invalid while that has not registered.
func Outer(set *intent.Set, g *intent.ProxyGroup) netip.Addr {
	if g.Elects() {
		return g.Spec.HaVip
	}
	if proxy := set.Node(g.Spec.Members[0].Node); proxy != nil {
		return proxy.Spec.UnderlayAddress
	}
	return netip.Addr{}
}

// source returns the address that the user VPC sees; none means the ENI's
// primary one. In a group that elects it is the HaVip and never an address of
// the ENI: flows must go on from the other proxy.
func source(a *intent.Attachment, g *intent.ProxyGroup) netip.Addr {
	if havip := a.HaVipIn(g.ObjectName()); havip.IsValid() {
		return havip
	}
	return a.Spec.SNATAddress
}

// elections plans what the node takes part in. HaVips are not in the state:
// whether they are here is for the election to say.
func (b *builder) elections(served []*intent.Attachment) {
	if !b.self.HasRole(intent.RoleProxy) {
		return
	}
	for _, g := range b.set.Groups {
		if g.Elects() && g.HasMember(b.self.ObjectName()) {
			b.plan.Elections = append(b.plan.Elections, b.election(g, served))
		}
	}
	slices.SortFunc(b.plan.Elections, func(x, y desired.Election) int { return cmp.Compare(x.Group, y.Group) })
}

// ownHopLimit is what adverts on one link arrive with (RFC 9568 section 5.1.1.3).
const ownHopLimit = 255

func (b *builder) election(g *intent.ProxyGroup, served []*intent.Attachment) desired.Election {
	e := desired.Election{
		Group: g.ObjectName(), VRID: uint8(g.Spec.VRID), Interval: g.Interval(), Sends: g.Sends(),
		NoPreempt: !g.Preempts(), PreemptDelay: g.PreemptAfter(),
		Multicast:    g.Spec.Transport == intent.TransportMulticast,
		PseudoHeader: g.Spec.Checksum == intent.ChecksumRFC5798,
		MinTTL:       ownHopLimit,
		Link:         b.facts.UnderlayLink, Local: b.self.Spec.UnderlayAddress, Cordoned: b.self.Spec.Cordoned,
	}
	if g.Spec.MinTTL != 0 {
		e.MinTTL = uint8(g.Spec.MinTTL)
	}
	for _, m := range g.Spec.Members {
		n := b.set.Node(m.Node)
		switch {
		case m.Node == b.self.ObjectName():
			e.Priority = m.EffectivePriority()
		case n == nil:
			e.Absent = append(e.Absent, m.Node)
		default:
			e.Peers = append(e.Peers, desired.Elector{Node: m.Node, Addr: n.Spec.UnderlayAddress, Priority: m.EffectivePriority()})
		}
	}
	slices.SortFunc(e.Peers, func(x, y desired.Elector) int { return cmp.Compare(x.Node, y.Node) })
	for _, name := range intent.TrackNames {
		if t := g.Track(name); t.Effect == intent.EffectFault {
			e.Tracks = append(e.Tracks, desired.Track{Name: string(name), Fault: true})
		} else if t.Effect == intent.EffectLower {
			e.Tracks = append(e.Tracks, desired.Track{Name: string(name), Lower: int(t.By)})
		}
	}
	e.HaVips = append(e.HaVips, desired.HaVip{Link: b.facts.UnderlayLink, Addr: g.Spec.HaVip})
	for _, a := range served {
		if b.set.GroupOn(a, b.self.ObjectName()) != g {
			continue
		}
		netns := desired.LinkPrefix + ID(a.ObjectName())
		link := b.eniIn(netns)
		if link == "" {
			e.Missing = append(e.Missing, a.ObjectName())
			continue
		}
		e.HaVips = append(e.HaVips, desired.HaVip{Attachment: a.ObjectName(), Netns: netns, Link: link, Addr: a.HaVipIn(g.ObjectName()), Probe: a.Spec.Probe})
	}
	return e
}

// eniIn returns the name of the interface that was planned into a namespace.
func (b *builder) eniIn(netns string) string {
	for k := range b.state.ENIs {
		if k.Netns == netns {
			return k.Name
		}
	}
	return ""
}
