package agent

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/node"
)

var _ vpcproxyv1alpha1connect.BindServiceHandler = (*nodeTask)(nil)

// Bind implements BindServiceHandler.
func (t *nodeTask) Bind(ctx context.Context, req *connect.Request[apiv1.BindRequest]) (*connect.Response[apiv1.BindResponse], error) {
	start := time.Now()
	pod, err := podAddress(req.Msg.GetPodIp())
	var status node.BindingStatus
	if err == nil {
		status, err = t.node.Bind(ctx, node.BindRequest{
			Pod: pod, Attachments: req.Msg.GetAttachments(), Interface: req.Msg.GetInterface(), Owner: req.Msg.GetOwner(),
		})
	}
	t.metrics.bound("bind", start, err)
	if err != nil {
		return nil, bindError(err)
	}
	return connect.NewResponse(&apiv1.BindResponse{Binding: bindingMessage(status)}), nil
}

// Unbind implements BindServiceHandler.
func (t *nodeTask) Unbind(ctx context.Context, req *connect.Request[apiv1.UnbindRequest]) (*connect.Response[apiv1.UnbindResponse], error) {
	start := time.Now()
	pod, err := podAddress(req.Msg.GetPodIp())
	removed := false
	if err == nil {
		removed, err = t.node.Unbind(ctx, pod, req.Msg.GetOwner())
	}
	t.metrics.bound("unbind", start, err)
	if err != nil {
		return nil, bindError(err)
	}
	return connect.NewResponse(&apiv1.UnbindResponse{Removed: removed}), nil
}

// ListBindings implements BindServiceHandler.
func (t *nodeTask) ListBindings(_ context.Context, req *connect.Request[apiv1.ListBindingsRequest]) (*connect.Response[apiv1.ListBindingsResponse], error) {
	var pod netip.Addr
	if s := req.Msg.GetPodIp(); s != "" {
		var err error
		if pod, err = podAddress(s); err != nil {
			return nil, bindError(err)
		}
	}
	resp := &apiv1.ListBindingsResponse{}
	for _, b := range t.node.Bindings(pod) {
		resp.Bindings = append(resp.Bindings, bindingMessage(b))
	}
	return connect.NewResponse(resp), nil
}

func podAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, &intent.FieldError{Object: "binding", Field: "podIP", Problem: "\"" + s + "\" is not a pod's address, such as 10.244.1.5"}
	}
	return a, nil
}

func bindingMessage(s node.BindingStatus) *apiv1.Binding {
	b := &apiv1.Binding{PodIp: s.Pod.String(), Interface: s.Interface, Owner: s.Owner, Bound: timestamppb.New(s.Bound)}
	for _, a := range s.Attachments {
		b.Attachments = append(b.Attachments, &apiv1.BoundAttachment{Name: a.Name, Ready: a.Ready, Message: a.Message})
	}
	return b
}

// bindError gives an error the code by which the caller knows what to do.
func bindError(err error) error {
	var field *intent.FieldError
	switch {
	case errors.As(err, &field):
		code := connect.CodeInvalidArgument
		switch field.Reason {
		case intent.NotFound:
			code = connect.CodeNotFound
		case intent.Conflict:
			code = connect.CodeFailedPrecondition
		case intent.Invalid:
		}
		return connect.NewError(code, err)
	case errors.Is(err, node.ErrNoFunctionHost):
		return connect.NewError(connect.CodeFailedPrecondition, err)
	case errors.Is(err, node.ErrNotInPlace), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeUnavailable, err)
	}
	return connect.NewError(connect.CodeInternal, err)
}
