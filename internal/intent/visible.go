package intent

import "slices"

// Visible returns the part of a set that one node may know: a function host
// learns the attachments it may carry, their groups and the groups' proxies; a
// proxy learns its groups, their attachments and the function hosts that may
// send to it. Nobody learns the key of an attachment it has no part in.
//
// known names attachments that the node has: those that are deleted, or that
// it has no part in any more, are listed as Removed by name alone. Those that
// have vanished from s without a trace are not.
func (s *Set) Visible(node string, known ...string) *Set {
	out := &Set{Revision: s.Revision, Pool: s.pool(), Unreadable: s.Unreadable}
	self := s.Node(node)
	if self == nil {
		return out
	}
	groups := make(map[string]*ProxyGroup, len(s.Groups))
	nodes, seen := map[string]bool{node: true}, map[string]bool{}
	for _, g := range s.Groups {
		groups[g.ObjectName()] = g
		seen[g.ObjectName()] = g.HasMember(node)
		if g.HasMember(node) && g.Elects() {
			for _, m := range g.Spec.Members { // it elects with them
				nodes[m.Node] = true
			}
		}
	}
	for _, a := range s.Attachments {
		var serving []*ProxyGroup
		serves := false
		for _, svc := range a.Services() {
			if g := groups[svc.Name]; g != nil {
				serving = append(serving, g)
				serves = serves || g.HasMember(node) && self.HasRole(RoleProxy)
			}
		}
		if len(serving) == 0 {
			continue
		}
		if !serves && !a.Uses(self) {
			continue
		}
		out.Attachments = append(out.Attachments, a)
		for _, g := range serving {
			seen[g.ObjectName()] = true
			for _, m := range g.Spec.Members {
				nodes[m.Node] = true
			}
		}
		if serves {
			s.addUsers(a, nodes)
		}
	}
	out.Groups = only(s.Groups, seen)
	out.Nodes = only(s.Nodes, nodes)
	out.Removed = s.departed(known, out)
	return out
}

// addUsers adds the function hosts that may carry an attachment's traffic.
func (s *Set) addUsers(a *Attachment, nodes map[string]bool) {
	for _, n := range s.Nodes {
		if !nodes[n.ObjectName()] && a.Uses(n) {
			nodes[n.ObjectName()] = true
		}
	}
}

func only[O Object](list []O, names map[string]bool) (out []O) {
	for _, o := range list {
		if names[o.ObjectName()] {
			out = append(out, o)
		}
	}
	return out
}

// Vanished returns the attachments of before that are neither in after nor
// in after.Removed.
func Vanished(before, after *Set) []string {
	var names []string
	for _, a := range before.Attachments {
		name := a.ObjectName()
		if after.Attachment(name) == nil && find(after.Removed, name) == nil && !after.unreadable(a) {
			names = append(names, name)
		}
	}
	return names
}

// departed lists which of the known attachments are not visible for a reason
// that s tells.
func (s *Set) departed(known []string, visible *Set) []*Attachment {
	var out []*Attachment
	for _, name := range known {
		if visible.Attachment(name) != nil {
			continue
		}
		a := s.Attachment(name)
		if a == nil {
			a = find(s.Removed, name)
		}
		if a == nil || s.unreadable(a) {
			continue
		}
		out = append(out, &Attachment{TypeMeta: a.TypeMeta, Metadata: Metadata{Name: name}})
	}
	return out
}

func (s *Set) unreadable(o Object) bool {
	return slices.Contains(s.Unreadable, Reference(o.ObjectKind(), o.ObjectName()))
}

// Reference is how text names an object: Kind/name.
func Reference(kind Kind, name string) string { return string(kind) + "/" + name }

// Retain returns s with what it calls Unreadable taken over from an earlier
// set, together with the nodes and groups that this needs: an object that cannot
// be read stays as it was.
func (s *Set) Retain(before *Set) *Set {
	if before == nil || len(s.Unreadable) == 0 {
		return s
	}
	out := s.Clone()
	keep := func(kind Kind, name string) {
		if _, ok := out.Get(kind, name); ok {
			return
		}
		if o, ok := before.Get(kind, name); ok {
			out.Put(o)
		}
	}
	for _, kind := range Kinds {
		for _, o := range before.List(kind) {
			if s.unreadable(o) {
				keep(kind, o.ObjectName())
			}
		}
	}
	for _, a := range out.Attachments {
		if !s.unreadable(a) {
			continue
		}
		for _, svc := range a.Services() {
			keep(KindProxyGroup, svc.Name)
		}
		for _, n := range before.Nodes {
			if a.Uses(n) {
				keep(KindNode, n.ObjectName())
			}
		}
	}
	for _, g := range out.Groups {
		for _, m := range g.Spec.Members {
			keep(KindNode, m.Node)
		}
	}
	return out
}
