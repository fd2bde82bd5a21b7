package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// agentAPI implements AgentService.
type agentAPI struct{ c *Controller }

var _ vpcproxyv1alpha1connect.AgentServiceHandler = (*agentAPI)(nil)

// mayBe refuses a caller who speaks for another node. Local callers are
// trusted: whoever may use the socket may read the store beside it.
func mayBe(ctx context.Context, node string) error {
	p, ok := transport.PeerFrom(ctx)
	if ok && (p.Local || p.Identity.Name == node) {
		return nil
	}
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s may not speak for node %q", p, node))
}

// Report implements AgentServiceHandler.
func (s *agentAPI) Report(ctx context.Context, req *connect.Request[apiv1.ReportRequest]) (*connect.Response[apiv1.ReportResponse], error) {
	report := req.Msg.GetReport()
	if err := mayBe(ctx, report.GetNode()); err != nil {
		return nil, err
	}
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	if v.revisionOf(intent.KindNode, report.GetNode()) == 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("node %q is not registered; it has to watch first", report.GetNode()))
	}
	s.c.agents.put(report.GetNode(), report, s.c.now())
	return connect.NewResponse(&apiv1.ReportResponse{}), nil
}

// Watch implements AgentServiceHandler.
func (s *agentAPI) Watch(ctx context.Context, req *connect.Request[apiv1.WatchRequest], out *connect.ServerStream[apiv1.WatchResponse]) error {
	o, err := intent.Decode(req.Msg.GetNode().AsMap())
	if err != nil {
		return answer(err)
	}
	node, ok := o.(*intent.Node)
	if !ok {
		return answer(&intent.FieldError{Object: intent.Reference(o.ObjectKind(), o.ObjectName()), Field: "kind", Problem: "is not Node"})
	}
	name := node.ObjectName()
	if err := mayBe(ctx, name); err != nil {
		return err
	}
	if err := s.c.register(ctx, node); err != nil {
		return answer(err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	st := s.c.agents.enter(name, s.c.now(), cancel)
	defer func() { s.c.agents.leave(name, st, s.c.now()) }()
	s.c.log.Debug("agent connected", "node", name)
	err = s.c.stream(ctx, name, req.Msg.GetKnown(), st, out.Send)
	s.c.log.Debug("agent disconnected", "node", name, "err", err)
	if errors.Is(err, errReplaced) {
		return connect.NewError(connect.CodeAborted, err)
	}
	return answer(err)
}

// register stores the Node that an agent says it is, unless an operator has
// applied one for it.
func (c *Controller) register(ctx context.Context, node *intent.Node) error {
	name := node.ObjectName()
	node.Metadata = intent.Metadata{Name: name, ManagedBy: intent.ManagedByAgent}
	var ch *change
	revision, _, err := c.commit(ctx, func(v *view) (transaction, error) {
		ch = nil
		before := v.set.Node(name)
		_, broken := v.unreadable[objectKey(intent.KindNode, name)]
		if broken || before != nil && before.Metadata.ManagedBy != intent.ManagedByAgent {
			return transaction{}, nil
		}
		if before != nil {
			node.Spec.Cordoned = before.Spec.Cordoned // an operator's decision
		}
		list, err := c.registration(v, node)
		if err != nil {
			return transaction{}, err
		}
		ch = list
		var t transaction
		if ch.outcome == apiv1.Outcome_OUTCOME_UNCHANGED {
			return t, nil
		}
		return t, t.put(v, ch.object)
	})
	if err != nil {
		return err
	}
	if ch != nil && ch.outcome != apiv1.Outcome_OUTCOME_UNCHANGED {
		c.audit(ctx, "registered", intent.KindNode, name, revision)
	}
	return nil
}

// registration is a change of a node by itself: unlike an operator, it is not
// asked what depends on it, because its machine is as it says.
func (c *Controller) registration(v *view, node *intent.Node) (*change, error) {
	o := clone(node)
	ch, err := newChange(v, o, false)
	if err != nil || ch.outcome == apiv1.Outcome_OUTCOME_UNCHANGED {
		return ch, err
	}
	set := v.set.Clone()
	set.Put(ch.object)
	if _, err := set.Check(ch.object); err != nil {
		return nil, err
	}
	return ch, c.allocate(set, v.served, ch.object)
}

// stream sends a node what it may know, at once and whenever that changes, what
// it is told to hand over, and heartbeats in between. A reader that is slow misses what is outdated.
func (c *Controller) stream(ctx context.Context, node string, known []string, st *stream, send func(*apiv1.WatchResponse) error) error {
	beat := time.NewTicker(c.beat)
	defer beat.Stop()
	var last *intent.Set
	names := newHistory(known)
	for greeted := false; ; greeted = true {
		v, err := c.current()
		if err != nil {
			return err
		}
		if v.revisionOf(intent.KindNode, node) == 0 {
			return connect.NewError(connect.CodeAborted, fmt.Errorf("node %q was deleted; register it again by connecting again", node))
		}
		if v.served != nil && v.served.Node(node) != nil {
			seen := v.served.Visible(node, names.list()...)
			if last == nil || differs(last, seen) {
				b, err := json.Marshal(seen)
				if err != nil {
					return fmt.Errorf("encode the snapshot for %s: %w", node, err)
				}
				if err := send(&apiv1.WatchResponse{Snapshot: b}); err != nil {
					return err
				}
				last = seen
				names.add(seen)
			}
			names.prune(v.served)
		} else if !greeted {
			// Otherwise the agent would wait for the answer's beginning.
			if err := send(&apiv1.WatchResponse{}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-v.newer:
		case q := <-st.asks:
			if err := send(&apiv1.WatchResponse{Question: q}); err != nil {
				return err
			}
		case group := <-st.yields:
			if err := send(&apiv1.WatchResponse{Yield: group}); err != nil {
				return err
			}
		case <-beat.C:
			if err := send(&apiv1.WatchResponse{}); err != nil {
				return err
			}
		}
	}
}

// differs compares what two snapshots tell. Objects that have not changed are
// the same in memory.
func differs(a, b *intent.Set) bool {
	return a.Pool != b.Pool || !slices.Equal(a.Nodes, b.Nodes) || !slices.Equal(a.Groups, b.Groups) ||
		!slices.Equal(a.Attachments, b.Attachments) || !slices.Equal(a.Unreadable, b.Unreadable)
}

// history is the attachments that a node may have, because it said so or was
// told of them. It shrinks only when nobody knows them any more: a node may
// have held a snapshot back that removed them.
type history map[string]struct{}

func newHistory(known []string) history {
	h := history{}
	for _, name := range known {
		h[name] = struct{}{}
	}
	return h
}

func (h history) add(s *intent.Set) {
	for _, a := range s.Attachments {
		h[a.ObjectName()] = struct{}{}
	}
}

func (h history) prune(s *intent.Set) {
	if len(h) <= len(s.Attachments)+len(s.Removed) {
		return // nearly always
	}
	exists := make(map[string]struct{}, len(s.Attachments)+len(s.Removed))
	for _, list := range [][]*intent.Attachment{s.Attachments, s.Removed} {
		for _, a := range list {
			exists[a.ObjectName()] = struct{}{}
		}
	}
	for name := range h {
		if _, ok := exists[name]; !ok {
			delete(h, name)
		}
	}
}

func (h history) list() []string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
