package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Status implements ControlServiceHandler.
func (s *control) Status(_ context.Context, _ *connect.Request[apiv1.StatusRequest]) (*connect.Response[apiv1.StatusResponse], error) {
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	agents := s.c.agents.snapshot()
	resp := &apiv1.StatusResponse{Revision: v.set.Revision, Held: v.held, Version: s.c.cfg.Version}
	for _, n := range v.set.Nodes {
		report := agents.reports[n.ObjectName()]
		if report == nil {
			report = &apiv1.NodeReport{Node: n.ObjectName()}
		}
		report.Roles = nil
		for _, r := range n.Spec.Roles {
			report.Roles = append(report.Roles, string(r))
		}
		if u := n.Spec.UnderlayAddress; u.IsValid() { // a controller alone has none
			report.UnderlayAddress = u.String()
		}
		if t := n.Tunnel(); t.IsValid() {
			report.TunnelAddress = t.String()
		}
		resp.Nodes = append(resp.Nodes, report)
	}
	return connect.NewResponse(resp), nil
}

// WatchAttachment implements ControlServiceHandler.
func (s *control) WatchAttachment(ctx context.Context, req *connect.Request[apiv1.WatchAttachmentRequest], out *connect.ServerStream[apiv1.WatchAttachmentResponse]) error {
	name := req.Msg.GetName()
	var last *apiv1.WatchAttachmentResponse
	for {
		v, err := s.c.current()
		if err != nil {
			return answer(err)
		}
		agents := s.c.agents.snapshot()
		p := progress(v, agents.reports, name)
		if p == nil {
			return answer(absent(intent.KindAttachment, name))
		}
		if !proto.Equal(last, p) {
			if err := out.Send(p); err != nil {
				return err
			}
			last = p
		}
		select {
		case <-ctx.Done():
			return answer(context.Cause(ctx))
		case <-v.newer:
		case <-agents.changed:
		}
	}
}

// progress tells how far the nodes are with an attachment; nil if there is and
// was none.
func progress(v *view, reports map[string]*apiv1.NodeReport, name string) *apiv1.WatchAttachmentResponse {
	resp := &apiv1.WatchAttachmentResponse{}
	var functions, proxies []string
	if a := v.set.Attachment(name); a != nil {
		resp.Exists = true
		functions, proxies = concerned(v.set, a)
		resp.Revision = a.Metadata.Revision
	} else if t, ok := v.tombstones[name]; ok {
		functions, proxies = t.Functions, t.Proxies
		resp.Revision = t.revision
	} else {
		return nil
	}
	resp.Converged = !v.lossy
	add := func(role intent.Role, nodes []string) {
		for _, n := range nodes {
			if !resp.Exists && v.set.Node(n) == nil {
				continue // deleted since; there is nothing to wait for
			}
			want := resp.Revision
			if resp.Exists {
				want = needs(v.set, name, n, role, functions)
				resp.Revision = max(resp.Revision, want)
			}
			p := nodeProgress(reports[n], n, role, name, want, resp.Exists)
			if v.lossy {
				p.Ready, p.Message = false, "not told yet: "+v.held
			}
			resp.Nodes = append(resp.Nodes, p)
			// A function host that went away catches up when it is back,
			// and nothing runs on it meanwhile. Without its proxy, the
			// attachment does not work.
			away := reports[n] != nil && !p.GetConnected() && role == intent.RoleFunction
			resp.Converged = resp.Converged && (p.GetReady() || away)
		}
	}
	add(intent.RoleProxy, proxies)
	add(intent.RoleFunction, functions)
	slices.SortStableFunc(resp.Nodes, func(a, b *apiv1.NodeProgress) int {
		return cmp.Or(cmp.Compare(a.GetNode(), b.GetNode()), cmp.Compare(a.GetRole(), b.GetRole()))
	})
	return resp
}

// needs is the revision in which the last of the objects changed that a node's
// share of an attachment is made of, among those that the node can see: others
// never make it take a newer intent over.
func needs(set *intent.Set, attachment, node string, role intent.Role, functions []string) int64 {
	a := set.Attachment(attachment)
	revision := a.Metadata.Revision
	nodes := []string{node}
	for _, g := range set.GroupsOf(a) {
		revision = max(revision, g.Metadata.Revision)
		for _, m := range g.Spec.Members {
			nodes = append(nodes, m.Node)
		}
	}
	if role == intent.RoleProxy {
		nodes = append(nodes, functions...)
	}
	for _, name := range nodes {
		if n := set.Node(name); n != nil {
			revision = max(revision, n.Metadata.Revision)
		}
	}
	return revision
}

func nodeProgress(report *apiv1.NodeReport, node string, role intent.Role, name string, want int64, exists bool) *apiv1.NodeProgress {
	planned := cmp.Or(report.GetPlannedRevision(), report.GetRevision())
	p := &apiv1.NodeProgress{Node: node, Role: string(role), Connected: report.GetConnected(), Revision: planned}
	i := slices.IndexFunc(report.GetAttachments(), func(a *apiv1.AttachmentReport) bool {
		return a.GetName() == name && a.GetRole() == string(role)
	})
	switch {
	case report == nil:
		p.Message = "its agent has not connected since the controller started"
	case !report.GetConnected():
		p.Message = "its agent is not connected, last seen " + report.GetLastSeen().AsTime().Format(time.RFC3339)
	case report.GetHeld() != "":
		p.Message = "it holds the intent back: " + report.GetHeld()
	case planned < want:
		p.Message = fmt.Sprintf("has not taken revision %d over yet", want)
	case exists && i < 0:
		p.Message = "has not reported on it yet"
	case exists:
		p.Ready, p.Message = report.GetAttachments()[i].GetReady(), report.GetAttachments()[i].GetMessage()
	case i >= 0:
		p.Message = cmp.Or(report.GetAttachments()[i].GetMessage(), "still removes it")
	default:
		p.Ready = true
	}
	return p
}
