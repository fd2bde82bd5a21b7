package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Status is what a node knows of itself.
type Status struct {
	Loop        reconcile.Status
	Attachments []AttachmentStatus // by name
	Problems    []plan.Problem
	// Interfaces are those that the last plan chose ENIs from.
	Interfaces []plan.Interface
	// Planned is the revision of the intent that all of this speaks of.
	Planned int64
	// Revision is that of the newest intent that is wholly in the kernel; 0
	// before the first.
	Revision int64
	// InSync is set if everything planned is in the kernel.
	InSync bool
	// Problem is why the plan is older than the intent; "" if it is not.
	Problem string
}

// AttachmentStatus is a node's part in one attachment.
type AttachmentStatus struct {
	Name    string
	Role    intent.Role
	Netns   string // "" on a function host
	Ready   bool
	Message string // what it waits for; "" if Ready
}

// Status returns a snapshot.
func (n *Node) Status() Status {
	loop := n.loop.Status()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := Status{Loop: loop, Problems: slices.Concat(n.current.Problems, n.nodeProblems()), Interfaces: n.interfaces}
	if n.problem != nil {
		s.Problem = n.problem.Error()
	}
	applied := n.planned != nil && loop.Applied >= n.gen
	s.InSync = applied && loop.Converged && n.problem == nil && n.set == n.planned
	problems := firstProblems(n.current)
	for _, f := range n.current.Footprints {
		s.Attachments = append(s.Attachments, attachment(f, problems, loop, applied))
	}
	n.leaving = slices.DeleteFunc(n.leaving, func(f plan.Footprint) bool { return applied && gone(f, loop) })
	for _, f := range n.leaving {
		s.Attachments = append(s.Attachments, AttachmentStatus{Name: f.Attachment, Role: f.Role, Netns: f.Netns, Message: "being removed"})
	}
	if n.planned != nil {
		s.Planned = n.planned.Revision
	}
	if applied && loop.Converged && n.problem == nil {
		s.Revision = n.planned.Revision
	}
	return s
}

// Alive returns when the reconcile loop was last known to go on.
func (n *Node) Alive() time.Time { return n.loop.Alive() }

// Footprints says which objects serve which attachment, by name. The caller must
// not change what they refer to.
func (n *Node) Footprints() []plan.Footprint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.current.Footprints)
}

// Current returns the plan in force, and the intent that it was made of; nil before
// the first. The caller must not change them.
func (n *Node) Current() (plan.Plan, *intent.Set) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current, n.planned
}

// gone tells whether the kernel holds nothing of an attachment that is no
// longer planned.
func gone(f plan.Footprint, loop reconcile.Status) bool {
	for _, k := range loop.Kinds {
		if k.ListErr != nil {
			return false
		}
		for _, o := range k.Objects {
			if o.Op == reconcile.Delete && f.Owns(o.Object) {
				return false
			}
		}
	}
	return true
}

// firstProblems is the first problem of each attachment, and, by "", of all.
func firstProblems(p plan.Plan) map[string]string {
	first := map[string]string{}
	for _, problem := range p.Problems {
		if _, ok := first[problem.Attachment]; !ok {
			first[problem.Attachment] = problem.Message
		}
	}
	return first
}

func attachment(f plan.Footprint, problems map[string]string, loop reconcile.Status, applied bool) AttachmentStatus {
	a := AttachmentStatus{Name: f.Attachment, Role: f.Role, Netns: f.Netns}
	switch {
	case !applied:
		a.Message = "being programmed"
	case loop.Waiting != "":
		a.Message = loop.Waiting
	default:
		a.Message = cmp.Or(problems[f.Attachment], problems[""])
	}
	for _, k := range loop.Kinds {
		if a.Message != "" {
			break
		}
		if k.ListErr != nil {
			a.Message = k.ListErr.Error()
			break
		}
		for _, o := range k.Objects {
			if !f.Owns(o.Object) || o.Op == reconcile.Delete {
				continue
			}
			a.Message = k.Name + " " + o.Key + " is not in place"
			if o.Err != nil {
				a.Message = o.Err.Error()
			}
			break
		}
	}
	a.Ready = a.Message == ""
	return a
}
