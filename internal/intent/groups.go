package intent

import (
	"fmt"
	"net/netip"
	"slices"
)

// Service is a proxy group that serves an attachment beside others.
type Service struct {
	Name string `json:"name"`
	// HaVip is as AttachmentSpec.HaVip, for this group's proxies.
	HaVip netip.Addr `json:"haVip,omitzero"`
}

// Services lists the groups that serve the attachment: one or several.
func (a *Attachment) Services() []Service {
	if len(a.Spec.Groups) > 0 {
		return a.Spec.Groups
	}
	return []Service{{Name: a.Spec.Group, HaVip: a.Spec.HaVip}}
}

// ServedBy tells whether a group serves the attachment.
func (a *Attachment) ServedBy(group string) bool {
	return slices.ContainsFunc(a.Services(), func(s Service) bool { return s.Name == group })
}

// HaVipIn returns the source that the user VPC sees from a group, or the zero
// Addr.
func (a *Attachment) HaVipIn(group string) netip.Addr {
	for _, s := range a.Services() {
		if s.Name == group {
			return s.HaVip
		}
	}
	return netip.Addr{}
}

// HaVips lists the sources of all groups.
func (a *Attachment) HaVips() []netip.Addr {
	var out []netip.Addr
	for _, s := range a.Services() {
		if s.HaVip.IsValid() {
			out = append(out, s.HaVip)
		}
	}
	return out
}

// GroupsOf returns the groups that serve an attachment and that the set knows.
func (s *Set) GroupsOf(a *Attachment) []*ProxyGroup {
	var out []*ProxyGroup
	for _, svc := range a.Services() {
		if g := s.Group(svc.Name); g != nil {
			out = append(out, g)
		}
	}
	return out
}

// GroupOn returns the group in which a node serves an attachment, or nil.
func (s *Set) GroupOn(a *Attachment, node string) *ProxyGroup {
	for _, g := range s.GroupsOf(a) {
		if g.HasMember(node) {
			return g
		}
	}
	return nil
}

// Drained tells whether every member of a group is cordoned: it only carries on
// with what it still gets.
func (s *Set) Drained(g *ProxyGroup) bool {
	return !slices.ContainsFunc(g.Spec.Members, func(m Member) bool {
		n := s.Node(m.Node)
		return n != nil && !n.Spec.Cordoned
	})
}

// groupField is how errors call the i-th Service's name.
func (a *Attachment) groupField(i int) string {
	if len(a.Spec.Groups) > 0 {
		return fmt.Sprintf("spec.groups[%d].name", i)
	}
	return "spec.group"
}

func (a *Attachment) haVipField(i int) string {
	if len(a.Spec.Groups) > 0 {
		return fmt.Sprintf("spec.groups[%d].haVip", i)
	}
	return "spec.haVip"
}

func (a *Attachment) validateGroups(p *problems) {
	for i, s := range a.Services() {
		p.name(a.groupField(i), s.Name)
		p.inner(a.haVipField(i), s.HaVip)
		if slices.ContainsFunc(a.Spec.Groups[:min(i, len(a.Spec.Groups))], func(o Service) bool { return o.Name == s.Name }) {
			p.invalid(a.groupField(i), "%q appears twice; each group serves once", s.Name)
		}
		if s.HaVip.IsValid() && slices.ContainsFunc(a.Services()[:i], func(o Service) bool { return o.HaVip == s.HaVip }) {
			p.invalid(a.haVipField(i), "%s is another group's, too; each has its own", s.HaVip)
		}
	}
	if len(a.Spec.Groups) == 0 {
		return
	}
	if a.Spec.Group != "" {
		p.invalid("spec.group", "is set beside spec.groups; leave it out, and list the group there")
	}
	if a.Spec.HaVip.IsValid() {
		p.invalid("spec.haVip", "is set beside spec.groups; give each group its own haVip there")
	}
	if len(a.Spec.Groups) > 1 && a.Spec.SNATAddress.IsValid() {
		p.invalid("spec.snatAddress", "is one address, and %d groups serve the attachment; leave it out, so that each proxy uses its interface's own or its group's haVip", len(a.Spec.Groups))
	}
}

// checkGroups checks the attachment's groups against the other objects.
func (s *Set) checkGroups(p *problems, a *Attachment) {
	complete := true
	members := map[string]string{}
	for i, svc := range a.Services() {
		g := s.Group(svc.Name)
		if g == nil {
			complete = false
			p.add(NotFound, a.groupField(i), "no ProxyGroup is named %q; see `vpcproxyctl get groups`", svc.Name)
			continue
		}
		s.checkHaVip(p, a.haVipField(i), svc, g)
		for _, m := range g.Spec.Members {
			if other, twice := members[m.Node]; twice {
				p.invalid(a.groupField(i), "%s is a member of group %s, too; a proxy serves an attachment in one group", m.Node, other)
			}
			members[m.Node] = g.ObjectName()
		}
	}
	if complete {
		s.checkMembersHaveENI(p, a, members)
	}
}
