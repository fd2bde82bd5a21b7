package peering

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Reason is why a route is refused. There are few, for metrics.
type Reason string

// The reasons.
const (
	Accepted          Reason = ""
	UnknownAttachment Reason = "attachment"    // no attachment of this node's has the route's target or key
	WrongPrefix       Reason = "prefix"        // not the attachment's, or not the host's tunnel address
	WrongTunnel       Reason = "encapsulation" // not GRE with the attachment's key
	WrongNextHop      Reason = "next-hop"      // of no group of the attachment's, or of another host
	WrongOrigin       Reason = "originator"    // no member of the group whose next hop it is
)

// Reasons lists every Reason but Accepted.
var Reasons = []Reason{UnknownAttachment, WrongPrefix, WrongTunnel, WrongNextHop, WrongOrigin}

// Verdict is what is thought of a route.
type Verdict struct {
	Reason Reason
	// Detail says it for a person.
	Detail string
	// Attachment, Group and Preference are those of an accepted route to an
	// attachment.
	Attachment string
	Group      string
	Preference uint32
	// Host is the node whose tunnel address an accepted route leads to.
	Host string
}

// sameZone is added to the local preference of a route that a proxy in the
// node's own zone announces. It is more than anything that we announce with.
const sameZone = 1000

// judge looks at routes with the eyes of one node.
type judge struct {
	self *intent.Node
	cfg  Config
	set  *intent.Set
	// attachments that the node carries, by key; keyless ones by keyless.
	carried map[uint32]*intent.Attachment
	keyless *intent.Attachment
	// groups that the node is a proxy of
	groups []*intent.ProxyGroup
	// hosts by tunnel address
	hosts map[netip.Addr]*intent.Node
	// owners of underlay addresses
	owners map[netip.Addr]string
}

func newJudge(node string, set *intent.Set, cfg Config) *judge {
	j := &judge{cfg: cfg, set: set, carried: map[uint32]*intent.Attachment{}, hosts: map[netip.Addr]*intent.Node{}, owners: map[netip.Addr]string{}}
	if set == nil || set.Node(node) == nil {
		return j
	}
	j.self = set.Node(node)
	for _, a := range set.Attachments {
		if g := set.GroupOn(a, node); g != nil && j.self.HasRole(intent.RoleProxy) {
			if !slices.Contains(j.groups, g) {
				j.groups = append(j.groups, g)
			}
			continue
		}
		key, keyed := a.Key()
		switch {
		case !a.Uses(j.self):
		case keyed:
			j.carried[key] = a
		case a.EffectiveScope() == intent.ScopeHost:
			j.keyless = a
		}
	}
	for _, n := range set.Nodes {
		j.owners[n.Spec.UnderlayAddress] = n.ObjectName()
		if n.HasRole(intent.RoleFunction) && n.Tunnel().IsValid() {
			j.hosts[n.Tunnel()] = n
		}
	}
	for _, g := range set.Groups {
		if g.Elects() {
			j.owners[g.Spec.HaVip] = g.ObjectName()
		}
	}
	return j
}

func refuse(r Reason, format string, args ...any) Verdict {
	return Verdict{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

func (j *judge) judge(r bgp.Route) Verdict {
	if j.self == nil {
		return refuse(UnknownAttachment, "the intent does not know this node")
	}
	for _, g := range j.groups {
		if hasTarget(r, plan.GroupTarget(g)) {
			return j.host(r)
		}
	}
	return j.attachment(r)
}

// host judges the way to a function host.
func (j *judge) host(r bgp.Route) Verdict {
	n := j.hosts[r.Prefix.Addr()]
	switch {
	case n == nil || !r.Prefix.IsSingleIP():
		return refuse(WrongPrefix, "%s is the tunnel address of no function host", r.Prefix)
	case r.RD.Number != 0 || r.Encapsulation.Keyed:
		return refuse(WrongTunnel, "%s is not how a host announces itself", r.Encapsulation)
	case r.Originator != r.NextHop:
		return refuse(WrongOrigin, "%s speaks for %s; a host speaks for itself", r.Originator, r.NextHop)
	case r.NextHop == n.Spec.UnderlayAddress:
		return Verdict{Host: n.ObjectName()}
	}
	// It may have moved; but not to an address that is another's, nor out of
	// the range in which it was.
	if owner, taken := j.owners[r.NextHop]; taken {
		return refuse(WrongNextHop, "%s is the address of %s, not of %s", r.NextHop, owner, n.ObjectName())
	}
	if !slices.ContainsFunc(n.Spec.UnderlayCIDRs, func(p netip.Prefix) bool { return p.Contains(r.NextHop) }) {
		return refuse(WrongNextHop, "%s is not in the underlay ranges of %s", r.NextHop, n.ObjectName())
	}
	return Verdict{Host: n.ObjectName()}
}

// attachment judges the way to an attachment.
func (j *judge) attachment(r bgp.Route) Verdict {
	a := j.carried[r.Encapsulation.Key]
	if r.Encapsulation.GRE && !r.Encapsulation.Keyed {
		a = j.keyless
	}
	if a == nil {
		return refuse(UnknownAttachment, "no attachment of this node has %s", r.Encapsulation)
	}
	key, keyed := a.Key()
	switch {
	case r.Encapsulation != bgp.Encapsulation{GRE: true, Keyed: keyed, Key: key}:
		return refuse(WrongTunnel, "%s, and attachment %s has another", r.Encapsulation, a.ObjectName())
	case !hasTarget(r, j.cfg.BGP.AttachmentTarget(key)) || r.RD.Number != key:
		return refuse(UnknownAttachment, "its target or route distinguisher is not of attachment %s", a.ObjectName())
	case !slices.Contains(a.Spec.CIDRs, r.Prefix):
		return refuse(WrongPrefix, "attachment %s has no such subnet", a.ObjectName())
	}
	for _, g := range j.set.GroupsOf(a) {
		if r.NextHop == plan.Outer(j.set, g) {
			return j.member(r, a, g)
		}
	}
	return refuse(WrongNextHop, "%s is the outer address of no group of attachment %s", r.NextHop, a.ObjectName())
}

func (j *judge) member(r bgp.Route, a *intent.Attachment, g *intent.ProxyGroup) Verdict {
	for _, m := range g.Spec.Members {
		n := j.set.Node(m.Node)
		if n == nil || n.Spec.UnderlayAddress != r.Originator {
			continue
		}
		v := Verdict{Attachment: a.ObjectName(), Group: g.ObjectName(), Preference: min(r.LocalPref, sameZone-1)}
		if n.Spec.Zone != "" && n.Spec.Zone == j.self.Spec.Zone {
			v.Preference += sameZone
		}
		return v
	}
	return refuse(WrongOrigin, "%s is no member of group %s", r.Originator, g.ObjectName())
}
