package intent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Check validates an object alone and against the others of the set (itself,
// by name, left out). The set may hold the object already or not. The error
// joins *FieldError values; warnings tell what the object takes away from the
// pods it serves.
func (s *Set) Check(o Object) (warnings []string, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p := newProblems(o)
	switch o := o.(type) {
	case *Attachment:
		warnings = s.checkAttachment(p, o)
	case *ProxyGroup:
		s.checkGroup(p, o)
	case *Node:
		s.checkNode(p, o)
	}
	return warnings, p.err()
}

func (s *Set) pool() netip.Prefix {
	if s.Pool.IsValid() {
		return s.Pool
	}
	return DefaultPool
}

func (s *Set) checkAttachment(p *problems, a *Attachment) []string {
	s.checkGroups(p, a)
	for i, n := range a.Spec.Nodes {
		if node := s.Node(n); node == nil {
			p.add(NotFound, fmt.Sprintf("spec.nodes[%d]", i), "no Node is named %q; see `vpcproxyctl get nodes`", n)
		} else if !node.HasRole(RoleFunction) {
			p.invalid(fmt.Sprintf("spec.nodes[%d]", i), "node %q has not the role function", n)
		}
	}
	for i, c := range a.Spec.CIDRs {
		if c.Overlaps(s.pool()) {
			p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i), "%s overlaps the tunnel address pool %s; configure another pool", c, s.pool())
		}
	}
	s.checkTunnelAddressesOutside(p, a)
	for _, other := range s.Attachments {
		if other.ObjectName() != a.ObjectName() {
			s.checkPair(p, a, other)
		}
	}
	return s.checkOverlap(p, a)
}

// checkMembersHaveENI takes the groups' members with their groups.
func (s *Set) checkMembersHaveENI(p *problems, a *Attachment, members map[string]string) {
	strangers := false
	for i, e := range a.Spec.ENIs {
		f := fmt.Sprintf("spec.enis[%d].node", i)
		switch {
		case e.Node == "" && len(members) > 1:
			p.invalid(f, "is missing; %s", a.servers(len(members)))
		case e.Node != "" && members[e.Node] == "":
			strangers = true
			p.add(NotFound, f, "%q is not a member of %s", e.Node, a.groupText())
		}
	}
	// One who is named wrongly is probably the member that is missing.
	for _, m := range slices.Sorted(maps.Keys(members)) {
		if _, ok := a.ENIOn(m); !ok && !strangers {
			p.invalid("spec.enis", "group %s has the member %s, which no entry names", members[m], m)
		}
	}
}

// groupText names the groups in an error.
func (a *Attachment) groupText() string {
	services := a.Services()
	if len(services) == 1 {
		return "group " + services[0].Name
	}
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.Name
	}
	return "the groups " + strings.Join(names, ", ")
}

func (a *Attachment) servers(members int) string {
	if len(a.Services()) == 1 {
		return fmt.Sprintf("%s has %d members", a.groupText(), members)
	}
	return fmt.Sprintf("%s have %d members", a.groupText(), members)
}

// checkPair refuses what two attachments cannot share.
func (s *Set) checkPair(p *problems, a, other *Attachment) {
	name := other.ObjectName()
	key, keyed := a.Key()
	otherKey, otherKeyed := other.Key()
	if keyed && otherKeyed && key == otherKey {
		p.add(Conflict, "spec.greKey", "%d is the key of attachment %s; leave it out to draw a free one", key, name)
	}
	keyless := a.EffectiveScope() == ScopeHost && !keyed
	if keyless && other.EffectiveScope() == ScopeHost && !otherKeyed {
		p.add(Conflict, "spec.greKey", "attachment %s has scope host and no key too; a machine has one keyless tunnel, so give a key", name)
	}
	for i, svc := range a.Services() {
		if slices.Contains(other.HaVips(), svc.HaVip) && a.Spec.VPC == other.Spec.VPC {
			p.add(Conflict, a.haVipField(i), "%s is the haVip of attachment %s in the same VPC", svc.HaVip, name)
		}
	}
	s.checkSharedENI(p, a, other)
	source := sharedSource(a, other)
	if source == "" {
		return
	}
	for i, c := range a.Spec.CIDRs {
		for _, oc := range other.Spec.CIDRs {
			if c.Overlaps(oc) {
				p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i),
					"%s overlaps %s of attachment %s, and both take traffic of %s; narrow spec.pods or spec.nodes of one of them", c, oc, name, source)
			}
		}
	}
}

func (s *Set) checkSharedENI(p *problems, a, other *Attachment) {
	for i, e := range a.Spec.ENIs {
		for _, oe := range other.Spec.ENIs {
			same := e.Name != "" && e.Name == oe.Name || e.PCI != "" && strings.EqualFold(e.PCI, oe.PCI) || e.MAC != "" && strings.EqualFold(e.MAC, oe.MAC)
			if same && intersects(s.holders(a, e), s.holders(other, oe)) {
				p.add(Conflict, fmt.Sprintf("spec.enis[%d]", i), "this interface serves attachment %s already; an ENI serves one attachment", other.ObjectName())
			}
		}
	}
}

// holders names the proxies that an entry of spec.enis is about.
func (s *Set) holders(a *Attachment, e ENI) []string {
	if e.Node != "" {
		return []string{e.Node}
	}
	var names []string
	for _, g := range s.GroupsOf(a) {
		for _, m := range g.Spec.Members {
			names = append(names, m.Node)
		}
	}
	return names
}

func intersects(a, b []string) bool {
	return slices.ContainsFunc(a, func(n string) bool { return slices.Contains(b, n) })
}

// sharedSource names a source that may use both attachments, or returns "".
func sharedSource(a, b *Attachment) string {
	as, bs := a.EffectiveScope(), b.EffectiveScope()
	switch {
	case !sharesNode(a, b), as != bs:
		// The steering of pods precedes the main table: pods of the one
		// are selected before the other's host route is looked at.
		return ""
	case as == ScopeHost:
		return "the same hosts"
	}
	for _, p := range a.Spec.Pods {
		for _, q := range b.Spec.Pods {
			if p.Overlaps(q) {
				return "pods in " + longer(p, q).String()
			}
		}
	}
	return ""
}

// longer returns the smaller range of two that overlap.
func longer(p, q netip.Prefix) netip.Prefix {
	if q.Bits() > p.Bits() {
		return q
	}
	return p
}

func sharesNode(a, b *Attachment) bool {
	if len(a.Spec.Nodes) == 0 || len(b.Spec.Nodes) == 0 {
		return true
	}
	return intersects(a.Spec.Nodes, b.Spec.Nodes)
}

// checkOverlap asks for allowOverlap where the user's subnet hides a range of
// the platform from the pods that are attached.
func (s *Set) checkOverlap(p *problems, a *Attachment) (warnings []string) {
	for i, c := range a.Spec.CIDRs {
		for _, n := range s.Nodes {
			for _, what := range n.hiddenBy(c) {
				msg := fmt.Sprintf("%s overlaps the %s of node %s: attached sources will no longer reach it there", c, what, n.ObjectName())
				if a.Spec.AllowOverlap {
					warnings = append(warnings, msg)
				} else {
					p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i), "%s; if that is meant, set allowOverlap (--allow-overlap)", msg)
				}
			}
		}
	}
	slices.Sort(warnings)
	return slices.Compact(warnings)
}

// hiddenBy tells which of the node's own ranges a user's subnet overlaps.
func (n *Node) hiddenBy(c netip.Prefix) (what []string) {
	for _, r := range n.Spec.UnderlayCIDRs {
		if c.Overlaps(r) {
			what = append(what, fmt.Sprintf("underlay range %s", r))
		}
	}
	if len(what) == 0 && c.Contains(n.Spec.UnderlayAddress) {
		what = append(what, fmt.Sprintf("address %s", n.Spec.UnderlayAddress))
	}
	for _, r := range n.Spec.PodCIDRs {
		if c.Overlaps(r) {
			what = append(what, fmt.Sprintf("pod range %s", r))
		}
	}
	return what
}

// checkTunnelAddressesOutside refuses destinations that hide the inner address
// of a tunnel's end; those from the pool are checked with the pool as a whole.
func (s *Set) checkTunnelAddressesOutside(p *problems, a *Attachment) {
	for i, c := range a.Spec.CIDRs {
		for _, kind := range []Kind{KindNode, KindProxyGroup} {
			for _, o := range s.List(kind) {
				if t := tunnelOf(o); c.Contains(t) && !s.pool().Contains(t) {
					p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i), "%s contains %s, the tunnel address of %s %s", c, t, kind, o.ObjectName())
				}
			}
		}
	}
}

func tunnelOf(o Object) netip.Addr {
	if t, ok := o.(interface{ Tunnel() netip.Addr }); ok {
		return t.Tunnel()
	}
	return netip.Addr{}
}

func (s *Set) checkGroup(p *problems, g *ProxyGroup) {
	for i, m := range g.Spec.Members {
		if n := s.Node(m.Node); n != nil && !n.HasRole(RoleProxy) {
			p.invalid(fmt.Sprintf("spec.members[%d].node", i), "node %q has not the role proxy", m.Node)
		}
	}
	s.checkTunnelAddress(p, g, g.Spec.TunnelAddress)
	s.checkElection(p, g)
}

func (s *Set) checkNode(p *problems, n *Node) {
	for _, o := range s.Nodes {
		if o.ObjectName() != n.ObjectName() && n.Spec.UnderlayAddress.IsValid() && o.Spec.UnderlayAddress == n.Spec.UnderlayAddress {
			p.add(Conflict, "spec.underlayAddress", "%s is the address of node %s", n.Spec.UnderlayAddress, o.ObjectName())
		}
	}
	s.checkAddressOfGroup(p, n)
	s.checkTunnelAddress(p, n, n.Spec.TunnelAddress)
}

func (s *Set) checkTunnelAddress(p *problems, self Object, a netip.Addr) {
	if !a.IsValid() {
		return
	}
	for _, kind := range []Kind{KindNode, KindProxyGroup} {
		for _, o := range s.List(kind) {
			itself := kind == self.ObjectKind() && o.ObjectName() == self.ObjectName()
			if tunnelOf(o) == a && !itself {
				p.add(Conflict, "spec.tunnelAddress", "%s is the tunnel address of %s %s", a, kind, o.ObjectName())
			}
		}
	}
	for _, at := range s.Attachments {
		for _, c := range at.Spec.CIDRs {
			if c.Contains(a) {
				p.add(Conflict, "spec.tunnelAddress", "%s is in %s of attachment %s", a, c, at.ObjectName())
			}
		}
	}
}
