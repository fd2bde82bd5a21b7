package intent

import "strings"

// Visible returns the part of a set that one node may know: a function host
// learns the attachments it may carry, their groups and the groups' proxies; a
// proxy learns its groups, their attachments and the function hosts that may
// send to it. Nobody learns the key of an attachment it has no part in.
func (s *Set) Visible(node string) *Set {
	out := &Set{Revision: s.Revision, Pool: s.pool()}
	self := s.Node(node)
	if self == nil {
		return out
	}
	out.Put(self)
	for _, a := range s.Removed {
		if serves, uses := s.part(a, self); serves || uses {
			out.Removed = append(out.Removed, a)
		}
	}
	for _, a := range s.Attachments {
		serves, uses := s.part(a, self)
		if !serves && !uses {
			continue
		}
		g := s.Group(a.Spec.Group)
		out.Put(a)
		out.Put(g)
		for _, m := range g.Spec.Members {
			if n := s.Node(m.Node); n != nil {
				out.Put(n)
			}
		}
		if serves {
			for _, n := range s.Nodes {
				if a.Uses(n) {
					out.Put(n)
				}
			}
		}
	}
	for _, g := range s.Groups {
		if g.HasMember(node) {
			out.Put(g)
		}
	}
	return out
}

// part tells what a node has to do with an attachment.
func (s *Set) part(a *Attachment, n *Node) (serves, uses bool) {
	g := s.Group(a.Spec.Group)
	if g == nil {
		return false, false
	}
	return g.HasMember(n.ObjectName()) && n.HasRole(RoleProxy), a.Uses(n)
}

// Vanished returns the attachments of before that are neither in after nor
// in after.Removed.
func Vanished(before, after *Set) []string {
	var names []string
	for _, a := range before.Attachments {
		if after.Attachment(a.ObjectName()) == nil && find(after.Removed, a.ObjectName()) == nil {
			names = append(names, a.ObjectName())
		}
	}
	return names
}

func equalMAC(a, b string) bool { return strings.EqualFold(a, b) }
