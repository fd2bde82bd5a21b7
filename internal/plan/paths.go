package plan

import (
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// BGP says that the node announces what it carries; see Config.
type BGP struct {
	ASN uint32
}

// asTrans stands for an AS number that has no room in two bytes (RFC 6793).
const asTrans = 23456

// HostTarget is the number of the route target that function hosts of a group's
// attachments announce themselves with, specific to its tunnel address.
const HostTarget = 1

// AttachmentTarget is the route target of an attachment.
func (c BGP) AttachmentTarget(key uint32) desired.RouteTarget {
	asn := uint16(asTrans)
	if c.ASN <= 0xffff {
		asn = uint16(c.ASN)
	}
	return desired.RouteTarget{ASN: asn, Number: key}
}

// GroupTarget is the route target of the function hosts that use a group.
func GroupTarget(g *intent.ProxyGroup) desired.RouteTarget {
	return desired.RouteTarget{Addr: g.Tunnel(), Number: HostTarget}
}

// Distinguisher makes the paths to one prefix by several next hops different
// routes: a reflector would pass on only the best of equal ones. Two next hops
// of one attachment must differ in their low 16 bits.
func Distinguisher(nextHop netip.Addr, key uint32) desired.RouteDistinguisher {
	b := nextHop.As16()
	return desired.RouteDistinguisher{Admin: uint16(b[14])<<8 | uint16(b[15]), Number: key}
}

// announce plans the paths of an attachment on a proxy that can serve it now.
func (b *builder) announce(a *intent.Attachment, g *intent.ProxyGroup, netns string, eni Interface, key uint32, keyed bool) {
	nextHop := b.outer(g)
	for _, other := range b.set.GroupsOf(a) {
		hop := b.outer(other)
		if b.cfg.BGP != nil && other != g && hop.IsValid() && Distinguisher(hop, key) == Distinguisher(nextHop, key) {
			b.problem(a, "the outer addresses %s and %s of its groups %s and %s end in the same 16 bits, so that reflectors take their routes for one; change one",
				nextHop, hop, g.ObjectName(), other.ObjectName())
		}
	}
	switch {
	case b.cfg.BGP == nil, b.facts.Broken[netns], eni.NoCarrier:
		return
	case g.Elects() && !b.facts.Active[g.ObjectName()], !g.Elects() && b.self.Spec.Cordoned:
		return
	}
	for _, c := range a.Spec.CIDRs {
		b.state.Paths[desired.PathKey{Netns: netns, RD: Distinguisher(nextHop, key), Prefix: c}] = desired.Path{
			NextHop: nextHop, Keyed: keyed, Key: key, Targets: []desired.RouteTarget{b.cfg.BGP.AttachmentTarget(key)},
		}
	}
}

// announceHost plans the path to a function host's tunnel address, for the
// proxies of the groups that it uses.
func (b *builder) announceHost() {
	tunnel := b.self.Tunnel()
	if b.cfg.BGP == nil || !tunnel.IsValid() {
		return
	}
	var targets []desired.RouteTarget
	for _, f := range b.plan.Footprints {
		if !f.InUse || f.Role != intent.RoleFunction {
			continue
		}
		for _, g := range b.set.GroupsOf(b.set.Attachment(f.Attachment)) {
			if t := GroupTarget(g); t.Addr.IsValid() && !slices.Contains(targets, t) {
				targets = append(targets, t)
			}
		}
	}
	if len(targets) == 0 {
		return
	}
	slices.SortFunc(targets, func(x, y desired.RouteTarget) int { return x.Addr.Compare(y.Addr) })
	underlay := b.self.Spec.UnderlayAddress
	b.state.Paths[desired.PathKey{RD: Distinguisher(underlay, 0), Prefix: host(tunnel)}] = desired.Path{NextHop: underlay, Targets: targets}
}

// Interest is the route targets that a node imports: of the attachments that it
// carries, and of the hosts that use its groups.
func Interest(node string, set *intent.Set, footprints []Footprint, cfg BGP) []desired.RouteTarget {
	var out []desired.RouteTarget
	groups := map[desired.RouteTarget]bool{}
	for _, f := range footprints {
		a := set.Attachment(f.Attachment)
		switch {
		case a == nil || !f.InUse:
		case f.Role == intent.RoleFunction:
			out = append(out, cfg.AttachmentTarget(f.Key))
		case set.GroupOn(a, node) != nil:
			if t := GroupTarget(set.GroupOn(a, node)); t.Addr.IsValid() && !groups[t] {
				groups[t] = true
				out = append(out, t)
			}
		}
	}
	return out
}
