package intent

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Binding says which attachments a pod uses. It is made on the pod's function
// host, where the pod starts, and known to that host only.
type Binding struct {
	Pod netip.Addr `json:"pod"`
	// Attachments are what the pod uses. None means that they are not known
	// any more: the pod is refused by all.
	Attachments []BoundAttachment `json:"attachments"`
	// Interface is the host's end of the pod's interface. The binding ends
	// with it.
	Interface string `json:"interface,omitempty"`
	// Owner is whom the address belongs to.
	Owner string    `json:"owner,omitempty"`
	Bound time.Time `json:"bound"`
}

// BoundAttachment is an attachment that a pod uses.
type BoundAttachment struct {
	Name string `json:"name"`
	// CIDRs are those that the attachment had when the pod was bound: what is
	// refused should the attachment go.
	CIDRs []netip.Prefix `json:"cidrs"`
}

// CheckBinding checks that a pod of a node can be bound to attachments of the
// set, and returns them. The error is a *FieldError.
func (s *Set) CheckBinding(node *Node, pod netip.Addr, names []string) ([]*Attachment, error) {
	fail := func(r Reason, field, format string, args ...any) ([]*Attachment, error) {
		return nil, &FieldError{Object: "pod " + pod.String(), Field: field, Problem: fmt.Sprintf(format, args...), Reason: r}
	}
	if len(node.Spec.PodCIDRs) > 0 && !slices.ContainsFunc(node.Spec.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(pod) }) {
		return fail(Invalid, "podIP", "is in none of the pod ranges of node %s; give the address of a pod of this node, or mend the node's podCIDRs", node.ObjectName())
	}
	list := make([]*Attachment, 0, len(names))
	for i, name := range names {
		field := fmt.Sprintf("attachments[%d]", i)
		a := s.Attachment(name)
		switch {
		case a == nil || !a.Uses(node):
			return fail(NotFound, field, "no attachment %q is for node %s; see `vpcproxyctl describe attachment`, and spec.nodes and spec.pods there", name, node.ObjectName())
		case a.EffectiveScope() == ScopeHost:
			return fail(Conflict, field, "attachment %s has scope host, which is for all pods; it needs no binding", name)
		case !slices.ContainsFunc(a.Spec.CIDRs, func(c netip.Prefix) bool { return c.Addr().BitLen() == pod.BitLen() }):
			return fail(Conflict, field, "attachment %s has no CIDR of the pod's address family", name)
		}
		list = append(list, a)
	}
	for i, a := range list {
		for _, b := range list[:i] {
			if c, d, found := overlap(a, b); found {
				return fail(Conflict, fmt.Sprintf("attachments[%d]", i), "%s of attachment %s overlaps %s of attachment %s; a pod cannot use both", c, a.ObjectName(), d, b.ObjectName())
			}
		}
	}
	for _, other := range s.Attachments {
		lists := slices.ContainsFunc(other.Spec.Pods, func(p netip.Prefix) bool { return p.Contains(pod) })
		if !lists || !other.Uses(node) || slices.Contains(names, other.ObjectName()) {
			continue
		}
		for i, a := range list {
			if c, d, found := overlap(a, other); found {
				return fail(Conflict, fmt.Sprintf("attachments[%d]", i), "%s of attachment %s overlaps %s of attachment %s, whose spec.pods lists the pod", c, a.ObjectName(), d, other.ObjectName())
			}
		}
	}
	return list, nil
}

func overlap(a, b *Attachment) (c, d netip.Prefix, found bool) {
	for _, c := range a.Spec.CIDRs {
		for _, d := range b.Spec.CIDRs {
			if c.Overlaps(d) {
				return c, d, true
			}
		}
	}
	return netip.Prefix{}, netip.Prefix{}, false
}
