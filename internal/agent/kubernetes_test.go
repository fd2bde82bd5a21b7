package agent

import (
	"context"
	"net/netip"
	"reflect"
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/kube"
)

// bindService remembers what it is asked.
type bindService struct {
	bind   *apiv1.BindRequest
	unbind *apiv1.UnbindRequest
	list   []*apiv1.Binding
}

func (s *bindService) Bind(_ context.Context, r *connect.Request[apiv1.BindRequest]) (*connect.Response[apiv1.BindResponse], error) {
	s.bind = r.Msg
	return connect.NewResponse(&apiv1.BindResponse{}), nil
}

func (s *bindService) Unbind(_ context.Context, r *connect.Request[apiv1.UnbindRequest]) (*connect.Response[apiv1.UnbindResponse], error) {
	s.unbind = r.Msg
	return connect.NewResponse(&apiv1.UnbindResponse{}), nil
}

func (s *bindService) ListBindings(context.Context, *connect.Request[apiv1.ListBindingsRequest]) (*connect.Response[apiv1.ListBindingsResponse], error) {
	return connect.NewResponse(&apiv1.ListBindingsResponse{Bindings: s.list}), nil
}

func TestBinderSpeaksBindService(t *testing.T) {
	api := &bindService{list: []*apiv1.Binding{{PodIp: "10.244.1.5", Interface: "veth1", Owner: "cni/n/c/eth0",
		Attachments: []*apiv1.BoundAttachment{{Name: "red"}, {Name: "blue"}}}}}
	b := binder{api}
	want := kube.Bound{Address: netip.MustParseAddr("10.244.1.5"), Attachments: []string{"red", "blue"}, Interface: "veth1", Owner: "cni/n/c/eth0"}
	got, err := b.Bindings(t.Context())
	if err != nil || !reflect.DeepEqual(got, []kube.Bound{want}) {
		t.Errorf("Bindings = %+v, %v", got, err)
	}
	if err := b.Bind(t.Context(), want); err != nil || api.bind.PodIp != "10.244.1.5" || len(api.bind.Attachments) != 2 || api.bind.Interface != "veth1" || api.bind.Owner != want.Owner {
		t.Errorf("Bind: %v, asked %v", err, api.bind)
	}
	if err := b.Unbind(t.Context(), want.Address, want.Owner); err != nil || api.unbind.PodIp != "10.244.1.5" || api.unbind.Owner != want.Owner {
		t.Errorf("Unbind: %v, asked %v", err, api.unbind)
	}
	api.list[0].PodIp = "nonsense"
	if _, err := b.Bindings(t.Context()); err == nil {
		t.Error("an address that is none is no error")
	}
}

func TestPodAttachmentsWithoutKubernetes(t *testing.T) {
	_, err := (&nodeTask{}).PodAttachments(t.Context(), connect.NewRequest(&apiv1.PodAttachmentsRequest{}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("%v, want %v", err, connect.CodeFailedPrecondition)
	}
}
