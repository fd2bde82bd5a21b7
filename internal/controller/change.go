package controller

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// change is what an apply does to one object.
type change struct {
	before   intent.Object // nil if it is new
	object   intent.Object // as it will be
	outcome  apiv1.Outcome
	warnings []string
}

// changes works out what applying objects to a view does, in the order given.
// Nothing is stored. The error joins all refusals.
func (c *Controller) changes(v *view, objects []intent.Object, createOnly bool) ([]*change, error) {
	list := make([]*change, len(objects))
	set := v.set.Clone()
	var errs []error
	seen := map[string]bool{}
	for i, o := range objects {
		o = clone(o) // a commit may work on it again
		if key := keyOf(o); seen[key] {
			errs = append(errs, refuse(connect.CodeInvalidArgument, apiv1.FieldProblem_REASON_INVALID, o, "metadata.name", "appears twice in the request"))
		} else {
			seen[key] = true
		}
		ch, err := newChange(v, o, createOnly)
		errs = append(errs, err)
		list[i] = ch
		set.Put(ch.object)
	}
	ordered := slices.Clone(list)
	slices.SortStableFunc(ordered, func(a, b *change) int {
		return cmp.Compare(slices.Index(intent.Kinds, a.object.ObjectKind()), slices.Index(intent.Kinds, b.object.ObjectKind()))
	})
	for _, ch := range ordered {
		if ch.outcome == apiv1.Outcome_OUTCOME_UNCHANGED {
			continue
		}
		var err error
		ch.warnings, err = set.Check(ch.object)
		errs = append(errs, err)
		if a, ok := ch.object.(*intent.Attachment); ok && err == nil {
			warnings, err := c.checkENIs(set, a)
			ch.warnings = append(ch.warnings, warnings...)
			errs = append(errs, err)
		}
		errs = append(errs, checkDependents(v.set, set, ch))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, ch := range ordered {
		if ch.outcome != apiv1.Outcome_OUTCOME_UNCHANGED {
			errs = append(errs, c.allocate(set, v.served, ch.object))
		}
	}
	return list, errors.Join(errs...)
}

// newChange compares an object with what is stored.
func newChange(v *view, o intent.Object, createOnly bool) (*change, error) {
	meta := o.Meta()
	asked := meta.Revision
	meta.Revision = 0
	ch := &change{object: o, outcome: apiv1.Outcome_OUTCOME_CREATED}
	resetStatus(o)
	revision := v.revisionOf(o.ObjectKind(), o.ObjectName())
	if asked != 0 && asked != revision {
		why := fmt.Sprintf("is %d, but the object is at revision %d now; get it again and repeat the change", asked, revision)
		if revision == 0 {
			why = fmt.Sprintf("is %d, but there is no such object any more; leave the field out to create it", asked)
		}
		return ch, refuse(connect.CodeAborted, apiv1.FieldProblem_REASON_CONFLICT, o, "metadata.revision", "%s", why)
	}
	if revision == 0 {
		return ch, nil
	}
	ch.outcome = apiv1.Outcome_OUTCOME_UPDATED
	before, readable := v.set.Get(o.ObjectKind(), o.ObjectName())
	if !readable {
		return ch, nil // it replaces what nobody can read
	}
	ch.before = before
	keepStatus(o, before)
	_, broken := v.unreadable[keyOf(o)]
	same, err := sameSpec(before, o)
	switch {
	case err != nil:
		return ch, err
	case !same && createOnly:
		return ch, refuse(connect.CodeAlreadyExists, apiv1.FieldProblem_REASON_CONFLICT, o, "metadata.name",
			"is taken by another spec; choose another name, or change that one with `vpcproxyctl apply`")
	case same && before.Meta().ManagedBy == meta.ManagedBy && !broken:
		ch.outcome, ch.object = apiv1.Outcome_OUTCOME_UNCHANGED, before
	}
	return ch, nil
}

// resetStatus drops what callers cannot set.
func resetStatus(o intent.Object) {
	switch o := o.(type) {
	case *intent.Attachment:
		o.Status = intent.AttachmentStatus{}
	case *intent.ProxyGroup:
		o.Status = intent.ProxyGroupStatus{}
	case *intent.Node:
		o.Status = intent.NodeStatus{}
	}
}

func keepStatus(o, before intent.Object) {
	switch o := o.(type) {
	case *intent.Attachment:
		if b, ok := before.(*intent.Attachment); ok {
			o.Status = b.Status
		}
	case *intent.ProxyGroup:
		if b, ok := before.(*intent.ProxyGroup); ok {
			o.Status = b.Status
		}
	case *intent.Node:
		if b, ok := before.(*intent.Node); ok {
			o.Status = b.Status
		}
	}
}

func sameSpec(a, b intent.Object) (bool, error) {
	x, err := specOf(a)
	if err != nil {
		return false, err
	}
	y, err := specOf(b)
	return bytes.Equal(x, y), err
}

func specOf(o intent.Object) ([]byte, error) {
	switch o := o.(type) {
	case *intent.Attachment:
		spec := o.Spec
		spec.Scope = o.EffectiveScope()
		return json.Marshal(spec)
	case *intent.ProxyGroup:
		return json.Marshal(o.Spec)
	case *intent.Node:
		return json.Marshal(o.Spec)
	}
	return nil, fmt.Errorf("%T has no spec", o)
}

// checkDependents refuses a change of a node or a group that would break what
// refers to it after the request. What would be broken without it does not
// matter.
func checkDependents(before, after *intent.Set, ch *change) error {
	if ch.before == nil {
		return nil
	}
	var errs []error
	for _, o := range referrers(after, ch.object.ObjectKind(), ch.object.ObjectName()) {
		if _, err := before.Check(o); err != nil {
			continue
		}
		if _, err := after.Check(o); err != nil {
			errs = append(errs, refuse(connect.CodeFailedPrecondition, apiv1.FieldProblem_REASON_IN_USE, ch.object, "spec",
				"the change would break %s: %s", intent.Reference(o.ObjectKind(), o.ObjectName()), err))
		}
	}
	return errors.Join(errs...)
}

// referrers lists the objects that name another.
func referrers(set *intent.Set, kind intent.Kind, name string) (list []intent.Object) {
	if kind == intent.KindNode {
		for _, g := range set.Groups {
			if g.HasMember(name) {
				list = append(list, g)
			}
		}
	}
	for _, a := range set.Attachments {
		if kind == intent.KindProxyGroup && a.ServedBy(name) || kind == intent.KindNode && slices.Contains(a.Spec.Nodes, name) {
			list = append(list, a)
		}
	}
	return list
}

// transaction is what to write, and on what condition.
type transaction struct {
	conditions []store.Compare
	ops        []store.Op
	added      int // attachments that are new, minus those that are gone
	// reindex writes the index though there are no ops.
	reindex bool
}

// put adds an object to a transaction.
func (t *transaction) put(v *view, o intent.Object) error {
	b, err := encodeObject(o)
	if err != nil {
		return err
	}
	kind, name, key := o.ObjectKind(), o.ObjectName(), keyOf(o)
	revision := v.revisionOf(kind, name)
	t.conditions = append(t.conditions, store.Compare{Key: key, Revision: revision})
	t.ops = append(t.ops, store.Op{Key: key, Value: b})
	if kind == intent.KindAttachment && revision == 0 {
		t.added++
		if _, ok := v.tombstones[name]; ok {
			t.ops = append(t.ops, store.Op{Key: removedDir + name, Delete: true})
		}
	}
	return nil
}
