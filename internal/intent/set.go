package intent

import (
	"fmt"
	"net/netip"
	"slices"
)

// DefaultPool is where tunnel addresses come from unless configured: the
// shared address space of RFC 6598, which user VPCs rarely use.
var DefaultPool = netip.MustParsePrefix("100.64.0.0/16")

// Set is all objects of a platform, or those that one node may know. The zero
// value is empty and usable for reading. It is not safe for concurrent writes.
type Set struct {
	// Revision grows with every change of the set.
	Revision int64 `json:"revision"`
	// Pool is the range of tunnel addresses.
	Pool        netip.Prefix  `json:"pool"`
	Nodes       []*Node       `json:"nodes"`
	Groups      []*ProxyGroup `json:"groups"`
	Attachments []*Attachment `json:"attachments"`
	// Removed is attachments that operators have deleted lately. One that
	// vanishes without being here may have been lost.
	Removed []*Attachment `json:"removed,omitempty"`
}

// Node returns a node by name, or nil.
func (s *Set) Node(name string) *Node { return find(s.Nodes, name) }

// Group returns a proxy group by name, or nil.
func (s *Set) Group(name string) *ProxyGroup { return find(s.Groups, name) }

// Attachment returns an attachment by name, or nil.
func (s *Set) Attachment(name string) *Attachment { return find(s.Attachments, name) }

func find[O Object](list []O, name string) O {
	for _, o := range list {
		if o.ObjectName() == name {
			return o
		}
	}
	var none O
	return none
}

// Put adds an object or replaces the one of its kind and name. Lists stay
// sorted by name.
func (s *Set) Put(o Object) {
	switch o := o.(type) {
	case *Node:
		s.Nodes = put(s.Nodes, o)
	case *ProxyGroup:
		s.Groups = put(s.Groups, o)
	case *Attachment:
		s.Attachments = put(s.Attachments, o)
	}
}

func put[O Object](list []O, o O) []O {
	i, found := slices.BinarySearchFunc(list, o.ObjectName(), func(e O, name string) int {
		switch n := e.ObjectName(); {
		case n < name:
			return -1
		case n > name:
			return 1
		}
		return 0
	})
	if found {
		list = slices.Clone(list)
		list[i] = o
		return list
	}
	return slices.Insert(slices.Clone(list), i, o)
}

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
	g := s.Group(a.Spec.Group)
	if g == nil {
		p.add(NotFound, "spec.group", "no ProxyGroup is named %q; see `vpcproxyctl get groups`", a.Spec.Group)
	} else {
		s.checkMembersHaveENI(p, a, g)
	}
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
	for _, other := range s.Attachments {
		if other.ObjectName() != a.ObjectName() {
			s.checkPair(p, a, other)
		}
	}
	return s.checkOverlap(p, a)
}

func (s *Set) checkMembersHaveENI(p *problems, a *Attachment, g *ProxyGroup) {
	for _, m := range g.Spec.Members {
		if _, ok := a.ENIOn(m.Node); !ok {
			p.invalid("spec.enis", "group %s has the member %s, which no entry names", g.ObjectName(), m.Node)
		}
	}
	for i, e := range a.Spec.ENIs {
		f := fmt.Sprintf("spec.enis[%d].node", i)
		switch {
		case e.Node == "" && len(g.Spec.Members) > 1:
			p.invalid(f, "is missing; group %s has %d members", g.ObjectName(), len(g.Spec.Members))
		case e.Node != "" && !g.HasMember(e.Node):
			p.add(NotFound, f, "%q is not a member of group %s", e.Node, g.ObjectName())
		}
	}
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
	if a.Spec.Group == other.Spec.Group {
		checkSharedENI(p, a, other)
	}
	if !sharesSource(a, other) {
		return
	}
	for i, c := range a.Spec.CIDRs {
		for _, oc := range other.Spec.CIDRs {
			if c.Overlaps(oc) {
				p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i),
					"%s overlaps %s of attachment %s, and both take traffic of the same source; narrow spec.pods of one of them", c, oc, name)
			}
		}
	}
}

func checkSharedENI(p *problems, a, other *Attachment) {
	for i, e := range a.Spec.ENIs {
		for _, oe := range other.Spec.ENIs {
			same := e.Name != "" && e.Name == oe.Name || e.PCI != "" && e.PCI == oe.PCI || e.MAC != "" && equalMAC(e.MAC, oe.MAC)
			if same && (e.Node == oe.Node || e.Node == "" || oe.Node == "") {
				p.add(Conflict, fmt.Sprintf("spec.enis[%d]", i), "this interface serves attachment %s already; an ENI serves one attachment", other.ObjectName())
			}
		}
	}
}

// sharesSource tells whether some source may use both attachments.
func sharesSource(a, b *Attachment) bool {
	if !sharesNode(a, b) {
		return false
	}
	as, bs := a.EffectiveScope(), b.EffectiveScope()
	if as != bs {
		// The steering of pods precedes the main table: pods of the one
		// are selected before the other's host route is looked at.
		return false
	}
	if as == ScopeHost {
		return true
	}
	return slices.ContainsFunc(a.Spec.Pods, func(p netip.Prefix) bool {
		return slices.ContainsFunc(b.Spec.Pods, p.Overlaps)
	})
}

func sharesNode(a, b *Attachment) bool {
	if len(a.Spec.Nodes) == 0 || len(b.Spec.Nodes) == 0 {
		return true
	}
	return slices.ContainsFunc(a.Spec.Nodes, func(n string) bool { return slices.Contains(b.Spec.Nodes, n) })
}

// checkOverlap asks for allowOverlap where the user's subnet hides a range of
// the platform from the pods that are attached.
func (s *Set) checkOverlap(p *problems, a *Attachment) (warnings []string) {
	for i, c := range a.Spec.CIDRs {
		for _, n := range s.Nodes {
			for what, list := range map[string][]netip.Prefix{
				"underlay range": n.Spec.UnderlayCIDRs,
				"pod range":      n.Spec.PodCIDRs,
				"address":        addressPrefix(n.Spec.UnderlayAddress),
			} {
				for _, r := range list {
					if !c.Overlaps(r) || what == "address" && overlapsAny(c, n.Spec.UnderlayCIDRs) {
						continue
					}
					msg := fmt.Sprintf("%s overlaps the %s %s of node %s: attached sources will no longer reach it there", c, what, r, n.ObjectName())
					if a.Spec.AllowOverlap {
						warnings = append(warnings, msg)
					} else {
						p.add(Conflict, fmt.Sprintf("spec.cidrs[%d]", i), "%s; if that is meant, set allowOverlap (--allow-overlap)", msg)
					}
				}
			}
		}
	}
	slices.Sort(warnings)
	return slices.Compact(warnings)
}

func addressPrefix(a netip.Addr) []netip.Prefix {
	if !a.IsValid() {
		return nil
	}
	return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
}

func overlapsAny(c netip.Prefix, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, c.Overlaps)
}

func (s *Set) checkGroup(p *problems, g *ProxyGroup) {
	for i, m := range g.Spec.Members {
		if n := s.Node(m.Node); n != nil && !n.HasRole(RoleProxy) {
			p.invalid(fmt.Sprintf("spec.members[%d].node", i), "node %q has not the role proxy", m.Node)
		}
	}
	s.checkTunnelAddress(p, g, g.Spec.TunnelAddress)
}

func (s *Set) checkNode(p *problems, n *Node) {
	for _, o := range s.Nodes {
		if o.ObjectName() != n.ObjectName() && n.Spec.UnderlayAddress.IsValid() && o.Spec.UnderlayAddress == n.Spec.UnderlayAddress {
			p.add(Conflict, "spec.underlayAddress", "%s is the address of node %s", n.Spec.UnderlayAddress, o.ObjectName())
		}
	}
	s.checkTunnelAddress(p, n, n.Spec.TunnelAddress)
}

func (s *Set) checkTunnelAddress(p *problems, self Object, a netip.Addr) {
	if !a.IsValid() {
		return
	}
	if owner := s.TunnelAddressOwner(a); owner != nil && (owner.ObjectKind() != self.ObjectKind() || owner.ObjectName() != self.ObjectName()) {
		p.add(Conflict, "spec.tunnelAddress", "%s is the tunnel address of %s %s", a, owner.ObjectKind(), owner.ObjectName())
	}
}

// TunnelAddressOwner returns the node or group that has a tunnel address, or
// nil.
func (s *Set) TunnelAddressOwner(a netip.Addr) Object {
	for _, n := range s.Nodes {
		if n.Tunnel() == a {
			return n
		}
	}
	for _, g := range s.Groups {
		if g.Tunnel() == a {
			return g
		}
	}
	return nil
}
