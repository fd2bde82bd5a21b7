package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/source"
)

// registrationTimeout bounds finding out the node's own address.
const registrationTimeout = 5 * time.Second

var _ vpcproxyv1alpha1connect.NodeServiceHandler = (*nodeTask)(nil)

// serve answers on the node's unix socket.
func (t *nodeTask) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(vpcproxyv1alpha1connect.NewNodeServiceHandler(t, transport.HandlerOptions()))
	mux.Handle(vpcproxyv1alpha1connect.NewBindServiceHandler(t, transport.HandlerOptions()))
	mux.Handle(vpcproxyv1alpha1connect.NewKubernetesServiceHandler(t, transport.HandlerOptions()))
	return transport.Serve(ctx, mux, t.log, t.socket)
}

// report hands the node's present state to the controller.
func (t *nodeTask) report() {
	if t.follow != nil {
		t.follow.SetReport(t.nodeReport())
	}
}

func (t *nodeTask) nodeReport() *apiv1.NodeReport {
	s := t.node.Status()
	r := &apiv1.NodeReport{
		Node:            t.cfg.Node,
		Version:         t.version,
		Connected:       t.source.Problem() == nil,
		Revision:        s.Revision,
		PlannedRevision: s.Planned,
		InSync:          s.InSync,
		Held:            t.gate.Held(),
	}
	for _, role := range t.cfg.Roles {
		r.Roles = append(r.Roles, string(role))
	}
	if set := t.gate.Accepted(); set != nil {
		if n := set.Node(t.cfg.Node); n != nil {
			r.UnderlayAddress, r.TunnelAddress = addrText(n.Spec.UnderlayAddress), addrText(n.Tunnel())
		}
	}
	for _, a := range s.Attachments {
		r.Attachments = append(r.Attachments, &apiv1.AttachmentReport{
			Name: a.Name, Role: string(a.Role), Ready: a.Ready, Message: a.Message,
		})
	}
	if t.cfg.HasRole(intent.RoleProxy) {
		r.Interfaces = interfaces(s.Interfaces, s.Attachments)
	}
	r.Groups = t.groupReports()
	for _, p := range s.Problems {
		r.Problems = append(r.Problems, p.String())
	}
	if t.kube != nil {
		r.Problems = append(r.Problems, t.kube.Problems()...)
	}
	if s.Problem != "" {
		r.Problems = append(r.Problems, s.Problem)
	}
	return r
}

// NodeStatus implements NodeServiceHandler.
func (t *nodeTask) NodeStatus(context.Context, *connect.Request[apiv1.NodeStatusRequest]) (*connect.Response[apiv1.NodeStatusResponse], error) {
	resp := &apiv1.NodeStatusResponse{Report: t.nodeReport(), IntentSource: t.source.String()}
	if err := t.source.Problem(); err != nil {
		resp.IntentSource += ": " + err.Error() + " (the last good intent stays in force)"
	}
	totals := t.node.Totals()
	for _, k := range t.node.Status().Loop.Kinds {
		ks := &apiv1.KindStatus{
			Kind: k.Name, Wanted: int32(k.Wanted), Actual: int32(k.Actual), Pending: int32(k.Pending),
			Writes: totals[k.Name].Writes, Repaired: totals[k.Name].Repaired,
		}
		if k.ListErr != nil {
			ks.Errors = append(ks.Errors, k.ListErr.Error())
		}
		for _, o := range k.Objects {
			if o.Err != nil {
				ks.Errors = append(ks.Errors, o.Err.Error())
			}
		}
		resp.Kinds = append(resp.Kinds, ks)
	}
	return connect.NewResponse(resp), nil
}

// Plan implements NodeServiceHandler.
func (t *nodeTask) Plan(ctx context.Context, _ *connect.Request[apiv1.PlanRequest]) (*connect.Response[apiv1.PlanResponse], error) {
	changes, problems, err := t.node.Plan(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	resp := &apiv1.PlanResponse{}
	for _, c := range changes {
		resp.Changes = append(resp.Changes, &apiv1.PlannedChange{
			Kind: c.Kind, Op: c.Op.String(), Key: fmt.Sprintf("%+v", c.Key), Reason: c.Reason, Commands: node.Commands(c),
		})
	}
	for _, p := range problems {
		resp.Problems = append(resp.Problems, p.String())
	}
	return connect.NewResponse(resp), nil
}

// Resync implements NodeServiceHandler.
func (t *nodeTask) Resync(ctx context.Context, _ *connect.Request[apiv1.ResyncRequest]) (*connect.Response[apiv1.ResyncResponse], error) {
	pass, err := t.node.Resync(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	resp := &apiv1.ResyncResponse{Changed: int32(pass.Writes())}
	for _, e := range split(pass.Err) {
		resp.Errors = append(resp.Errors, e.Error())
	}
	return connect.NewResponse(resp), nil
}

// ConfirmRemoval implements NodeServiceHandler.
func (t *nodeTask) ConfirmRemoval(context.Context, *connect.Request[apiv1.ConfirmRemovalRequest]) (*connect.Response[apiv1.ConfirmRemovalResponse], error) {
	removed, err := t.gate.Confirm()
	if errors.Is(err, source.ErrNothingHeld) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return connect.NewResponse(&apiv1.ConfirmRemovalResponse{Removed: removed}), err
}

// split takes joined errors apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// toStruct turns an object into the API's form.
func toStruct(o intent.Object) (*structpb.Struct, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.ObjectKind(), o.ObjectName(), err)
	}
	var m map[string]any
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&m); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.ObjectKind(), o.ObjectName(), err)
	}
	return structpb.NewStruct(m)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// interfaces reports what could serve an attachment, and what does.
func interfaces(list []plan.Interface, footprints []node.AttachmentStatus) []*apiv1.Interface {
	holder := map[string]string{}
	for _, a := range footprints {
		holder[a.Netns] = a.Name
	}
	var out []*apiv1.Interface
	for _, i := range list {
		r := &apiv1.Interface{Name: i.Name, Mac: i.MAC, Pci: i.PCI}
		if i.Netns != "" {
			r.Attachment = holder[i.Netns]
		}
		for _, p := range i.Addresses {
			r.Addresses = append(r.Addresses, p.String())
		}
		out = append(out, r)
	}
	return out
}
