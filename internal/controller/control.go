package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// control implements ControlService.
type control struct{ c *Controller }

var _ vpcproxyv1alpha1connect.ControlServiceHandler = (*control)(nil)

// Apply implements ControlServiceHandler.
func (s *control) Apply(ctx context.Context, req *connect.Request[apiv1.ApplyRequest]) (*connect.Response[apiv1.ApplyResponse], error) {
	objects, err := decode(req.Msg.GetObjects())
	if err != nil {
		return nil, answer(err)
	}
	var list []*change
	revision, v, err := s.c.commit(ctx, func(v *view) (transaction, error) {
		var t transaction
		var err error
		list, err = s.c.changes(v, objects, req.Msg.GetCreateOnly())
		if err != nil || req.Msg.GetDryRun() {
			return t, err
		}
		for _, ch := range list {
			if ch.outcome == apiv1.Outcome_OUTCOME_UNCHANGED {
				continue
			}
			if err := t.put(v, ch.object); err != nil {
				return t, err
			}
		}
		return t, nil
	})
	if err != nil {
		return nil, answer(err)
	}
	resp := &apiv1.ApplyResponse{Revision: revision}
	for _, ch := range list {
		if ch.outcome != apiv1.Outcome_OUTCOME_UNCHANGED && !req.Msg.GetDryRun() {
			ch.object.Meta().Revision = revision
			s.c.audit(ctx, outcomeVerb(ch.outcome), ch.object.ObjectKind(), ch.object.ObjectName(), revision)
		}
		o, err := toStruct(ch.object)
		if err != nil {
			return nil, answer(err)
		}
		if v.lossy {
			ch.warnings = append(ch.warnings, "nodes do not learn of this yet: "+v.held)
		}
		resp.Results = append(resp.Results, &apiv1.ApplyResult{Object: o, Outcome: ch.outcome, Warnings: ch.warnings})
	}
	return connect.NewResponse(resp), nil
}

func outcomeVerb(o apiv1.Outcome) string {
	if o == apiv1.Outcome_OUTCOME_CREATED {
		return "created"
	}
	return "updated"
}

// audit leaves a line for each change that was stored.
func (c *Controller) audit(ctx context.Context, verb string, kind intent.Kind, name string, revision int64) {
	who := "unknown"
	if p, ok := transport.PeerFrom(ctx); ok {
		who = p.String()
	}
	c.log.Info("intent "+verb, "object", intent.Reference(kind, name), "by", who, "revision", revision)
}

func decode(list []*structpb.Struct) ([]intent.Object, error) {
	if len(list) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("objects: is empty; give at least one"))
	}
	var errs []error
	objects := make([]intent.Object, len(list))
	for i, s := range list {
		o, err := intent.Decode(s.AsMap())
		if err != nil {
			errs = append(errs, numbered(err, i))
		} else {
			objects[i] = o
		}
	}
	return objects, errors.Join(errs...)
}

// numbered names the object in a request by its place if it has no name.
func numbered(err error, i int) error {
	var fe *intent.FieldError
	if errors.As(err, &fe) && fe.Object == "" {
		fe.Object = fmt.Sprintf("objects[%d]", i)
	}
	return err
}

func toStruct(o intent.Object) (*structpb.Struct, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", intent.Reference(o.ObjectKind(), o.ObjectName()), err)
	}
	s := new(structpb.Struct)
	if err := s.UnmarshalJSON(b); err != nil {
		return nil, fmt.Errorf("encode %s: %w", intent.Reference(o.ObjectKind(), o.ObjectName()), err)
	}
	return s, nil
}

// kindOf checks the kind in a request.
func kindOf(s string) (intent.Kind, error) {
	if k := intent.Kind(s); slices.Contains(intent.Kinds, k) {
		return k, nil
	}
	return "", &refusal{code: connect.CodeInvalidArgument, reason: apiv1.FieldProblem_REASON_INVALID, field: "kind",
		problem: fmt.Sprintf("%q is not known; want Attachment, ProxyGroup or Node", s)}
}

func absent(kind intent.Kind, name string) error {
	return &refusal{connect.CodeNotFound, apiv1.FieldProblem_REASON_NOT_FOUND, intent.Reference(kind, name), "", "there is no such object"}
}

// Get implements ControlServiceHandler.
func (s *control) Get(_ context.Context, req *connect.Request[apiv1.GetRequest]) (*connect.Response[apiv1.GetResponse], error) {
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	kind, err := kindOf(req.Msg.GetKind())
	if err != nil {
		return nil, answer(err)
	}
	o, ok := v.set.Get(kind, req.Msg.GetName())
	if !ok {
		if b, broken := v.unreadable[objectKey(kind, req.Msg.GetName())]; broken {
			return nil, connect.NewError(connect.CodeDataLoss, fmt.Errorf("%s cannot be read from the store: %s; apply it again, or delete it",
				intent.Reference(kind, req.Msg.GetName()), b.why))
		}
		return nil, answer(absent(kind, req.Msg.GetName()))
	}
	out, err := toStruct(o)
	if err != nil {
		return nil, answer(err)
	}
	return connect.NewResponse(&apiv1.GetResponse{Object: out}), nil
}

// List implements ControlServiceHandler.
func (s *control) List(_ context.Context, req *connect.Request[apiv1.ListRequest]) (*connect.Response[apiv1.ListResponse], error) {
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	kind, err := kindOf(req.Msg.GetKind())
	if err != nil {
		return nil, answer(err)
	}
	resp := &apiv1.ListResponse{Revision: v.set.Revision}
	for _, o := range v.set.List(kind) {
		out, err := toStruct(o)
		if err != nil {
			return nil, answer(err)
		}
		resp.Objects = append(resp.Objects, out)
	}
	return connect.NewResponse(resp), nil
}

// Delete implements ControlServiceHandler.
func (s *control) Delete(ctx context.Context, req *connect.Request[apiv1.DeleteRequest]) (*connect.Response[apiv1.DeleteResponse], error) {
	kind, err := kindOf(req.Msg.GetKind())
	if err != nil {
		return nil, answer(err)
	}
	name := req.Msg.GetName()
	revision, _, err := s.c.commit(ctx, func(v *view) (transaction, error) {
		t, err := s.c.deletion(v, kind, name)
		if req.Msg.GetDryRun() {
			t = transaction{}
		}
		return t, err
	})
	if err != nil {
		return nil, answer(err)
	}
	if !req.Msg.GetDryRun() {
		if kind == intent.KindNode {
			s.c.agents.forget(name)
		}
		s.c.audit(ctx, "deleted", kind, name, revision)
	}
	return connect.NewResponse(&apiv1.DeleteResponse{Revision: revision}), nil
}

// deletion works out how to delete an object.
func (c *Controller) deletion(v *view, kind intent.Kind, name string) (transaction, error) {
	var t transaction
	revision := v.revisionOf(kind, name)
	if revision == 0 {
		return t, absent(kind, name)
	}
	var errs []error
	inUse := func(format string, args ...any) {
		errs = append(errs, &refusal{connect.CodeFailedPrecondition, apiv1.FieldProblem_REASON_IN_USE,
			intent.Reference(kind, name), "", fmt.Sprintf(format, args...)})
	}
	for _, o := range referrers(v.set, kind, name) {
		inUse("%s refers to it; delete or change that first", intent.Reference(o.ObjectKind(), o.ObjectName()))
	}
	if kind == intent.KindNode && c.agents.connected(name) {
		inUse("its agent is connected and would register it again; stop the agent first")
	}
	if len(errs) > 0 {
		return t, errors.Join(errs...)
	}
	key := objectKey(kind, name)
	t.conditions = []store.Compare{{Key: key, Revision: revision}}
	t.ops = []store.Op{{Key: key, Delete: true}}
	if kind != intent.KindAttachment {
		return t, nil
	}
	t.added = -1
	grave := tombstone{RemovedAt: c.now().UTC()}
	if a := v.set.Attachment(name); a != nil {
		grave.Functions, grave.Proxies = concerned(v.set, a)
	}
	b, err := json.Marshal(grave)
	if err != nil {
		return t, fmt.Errorf("encode the tombstone of %s: %w", name, err)
	}
	t.ops = append(t.ops, store.Op{Key: removedDir + name, Value: b})
	return t, nil
}

// ConfirmRemoval implements ControlServiceHandler.
func (s *control) ConfirmRemoval(ctx context.Context, _ *connect.Request[apiv1.ConfirmRemovalRequest]) (*connect.Response[apiv1.ConfirmRemovalResponse], error) {
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	if !v.lossy {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("no loss of attachments is held back"))
	}
	lost := make(chan []string, 1)
	select {
	case s.c.verify <- confirmation{lost}:
	case <-ctx.Done():
		return nil, answer(context.Cause(ctx))
	}
	names := <-lost
	// The index still counts them: a restart would hold again.
	revision, _, err := s.c.commit(ctx, func(v *view) (transaction, error) {
		return transaction{reindex: true}, nil
	})
	if err != nil {
		return nil, answer(err)
	}
	for _, name := range names {
		s.c.audit(ctx, "given up", intent.KindAttachment, name, revision)
	}
	if len(names) == 0 {
		s.c.log.Warn("loss of attachments confirmed; their names are not known", "revision", revision)
	}
	return connect.NewResponse(&apiv1.ConfirmRemovalResponse{Removed: names}), nil
}
