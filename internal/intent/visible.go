package intent

import (
	"slices"
	"strings"
)

// Visible returns the part of a set that one node may know: a function host
// learns the attachments it may carry, their groups and the groups' proxies; a
// proxy learns its groups, their attachments and the function hosts that may
// send to it. Nobody learns the key of an attachment it has no part in.
func (s *Set) Visible(node string) *Set {
	out := &Set{Revision: s.Revision, Pool: s.pool(), Removed: s.Removed}
	self := s.Node(node)
	if self == nil {
		return out
	}
	out.Put(self)
	for _, a := range s.Attachments {
		g := s.Group(a.Spec.Group)
		if g == nil {
			continue
		}
		serves, uses := g.HasMember(node) && self.HasRole(RoleProxy), a.Uses(self)
		if !serves && !uses {
			continue
		}
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

// Vanished returns the attachments of before that are neither in after nor
// named by after.Removed.
func Vanished(before, after *Set) []string {
	var names []string
	for _, a := range before.Attachments {
		if after.Attachment(a.ObjectName()) == nil && !slices.Contains(after.Removed, a.ObjectName()) {
			names = append(names, a.ObjectName())
		}
	}
	return names
}

func equalMAC(a, b string) bool { return strings.EqualFold(a, b) }
