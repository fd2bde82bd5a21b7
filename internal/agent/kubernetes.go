package agent

import (
	"context"
	"errors"
	"net/netip"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/kube"
)

// buildKubernetes adds the task that follows the pods of this node.
func (a *Agent) buildKubernetes(t *nodeTask, m *metrics) error {
	k := a.cfg.Kubernetes
	if k.Node == "" {
		return nil
	}
	var err error
	t.kube, err = kube.New(kube.Options{Node: k.Node, Kubeconfig: k.Kubeconfig, Binder: binder{t}, Log: a.log})
	if err != nil {
		return err
	}
	m.kubernetes(t.kube)
	a.tasks = append(a.tasks, t.kube)
	return nil
}

// kubernetes adds what is read from the follower when it is asked for.
func (m *metrics) kubernetes(f *kube.Follower) {
	m.gauge("vpcproxy_kubernetes_connected", "1 if the pods of this node are being followed, 0 if the last known ones are kept.",
		func() float64 { return flag(f.Connected()) })
	m.gauge("vpcproxy_kubernetes_pods_waiting", "Addresses of pods that could not be bound as their annotation says.",
		func() float64 { return float64(f.Waiting()) })
}

// binder is the bindings of this node, by the same calls as others make.
type binder struct {
	api vpcproxyv1alpha1connect.BindServiceHandler
}

// Bind implements kube.Binder.
func (b binder) Bind(ctx context.Context, w kube.Bound) error {
	_, err := b.api.Bind(ctx, connect.NewRequest(&apiv1.BindRequest{
		PodIp: w.Address.String(), Attachments: w.Attachments, Interface: w.Interface, Owner: w.Owner,
	}))
	return err
}

// Unbind implements kube.Binder.
func (b binder) Unbind(ctx context.Context, pod netip.Addr, owner string) error {
	_, err := b.api.Unbind(ctx, connect.NewRequest(&apiv1.UnbindRequest{PodIp: pod.String(), Owner: owner}))
	return err
}

// Bindings implements kube.Binder.
func (b binder) Bindings(ctx context.Context) ([]kube.Bound, error) {
	resp, err := b.api.ListBindings(ctx, connect.NewRequest(&apiv1.ListBindingsRequest{}))
	if err != nil {
		return nil, err
	}
	var out []kube.Bound
	for _, l := range resp.Msg.GetBindings() {
		w := kube.Bound{Interface: l.GetInterface(), Owner: l.GetOwner()}
		if w.Address, err = netip.ParseAddr(l.GetPodIp()); err != nil {
			return nil, err
		}
		for _, a := range l.GetAttachments() {
			w.Attachments = append(w.Attachments, a.GetName())
		}
		out = append(out, w)
	}
	return out, nil
}

// PodAttachments implements KubernetesServiceHandler.
func (t *nodeTask) PodAttachments(ctx context.Context, req *connect.Request[apiv1.PodAttachmentsRequest]) (*connect.Response[apiv1.PodAttachmentsResponse], error) {
	if t.kube == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("this agent does not follow Kubernetes: set kubernetes.node"))
	}
	m := req.Msg
	var own *string
	if a := m.GetAnnotations(); a != nil {
		own = a.Attachment
	}
	names, err := t.kube.Attachments(ctx, m.GetNamespace(), m.GetName(), m.GetUid(), own, m.GetAnnotations() != nil)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	return connect.NewResponse(&apiv1.PodAttachmentsResponse{Attachments: names}), nil
}
