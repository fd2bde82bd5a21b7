package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// fakeControl answers with what a test has put into it. What the real
// controller decides is tested in TestAgainstController.
type fakeControl struct {
	vpcproxyv1alpha1connect.UnimplementedControlServiceHandler
	set    intent.Set
	status *apiv1.StatusResponse
	// err is the answer to every call, if it is set.
	err error

	mu       sync.Mutex
	applied  *apiv1.ApplyRequest
	deleted  *apiv1.DeleteRequest
	outcome  apiv1.Outcome
	warnings []string
	watched  int
	// watch sends the states of an attachment; the stream ends when it
	// returns.
	watch func(ctx context.Context, call int, send func(*apiv1.WatchAttachmentResponse) error) error
}

func (f *fakeControl) Apply(_ context.Context, req *connect.Request[apiv1.ApplyRequest]) (*connect.Response[apiv1.ApplyResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = req.Msg
	if f.err != nil {
		return nil, f.err
	}
	resp := &apiv1.ApplyResponse{Revision: 20}
	for _, s := range req.Msg.GetObjects() {
		s.GetFields()["metadata"].GetStructValue().GetFields()["revision"] = structpb.NewNumberValue(17)
		if s.GetFields()["kind"].GetStringValue() == "Attachment" {
			s.Fields["status"] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"greKey": structpb.NewNumberValue(4026531841)}})
		}
		resp.Results = append(resp.Results, &apiv1.ApplyResult{Object: s, Outcome: f.outcome, Warnings: f.warnings})
	}
	return connect.NewResponse(resp), nil
}

func (f *fakeControl) Get(_ context.Context, req *connect.Request[apiv1.GetRequest]) (*connect.Response[apiv1.GetResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	for _, o := range f.objects(req.Msg.GetKind()) {
		if o.ObjectName() == req.Msg.GetName() {
			s, err := toStruct(o)
			return connect.NewResponse(&apiv1.GetResponse{Object: s}), err
		}
	}
	return nil, refused(connect.CodeNotFound, &apiv1.FieldProblem{Object: req.Msg.GetKind() + "/" + req.Msg.GetName(), Problem: "there is no such object"})
}

func (f *fakeControl) objects(kind string) (out []intent.Object) {
	switch intent.Kind(kind) {
	case intent.KindAttachment:
		for _, o := range f.set.Attachments {
			out = append(out, o)
		}
	case intent.KindProxyGroup:
		for _, o := range f.set.Groups {
			out = append(out, o)
		}
	case intent.KindNode:
		for _, o := range f.set.Nodes {
			out = append(out, o)
		}
	}
	return out
}

func (f *fakeControl) List(_ context.Context, req *connect.Request[apiv1.ListRequest]) (*connect.Response[apiv1.ListResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	resp := &apiv1.ListResponse{Revision: 20}
	for _, o := range f.objects(req.Msg.GetKind()) {
		s, err := toStruct(o)
		if err != nil {
			return nil, err
		}
		resp.Objects = append(resp.Objects, s)
	}
	return connect.NewResponse(resp), nil
}

func (f *fakeControl) Delete(_ context.Context, req *connect.Request[apiv1.DeleteRequest]) (*connect.Response[apiv1.DeleteResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleted = req.Msg
	if f.err != nil {
		return nil, f.err
	}
	return connect.NewResponse(&apiv1.DeleteResponse{Revision: 21}), nil
}

func (f *fakeControl) Status(context.Context, *connect.Request[apiv1.StatusRequest]) (*connect.Response[apiv1.StatusResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	return connect.NewResponse(f.status), nil
}

// Failover and Cordon succeed at once: what the reports then say is in status.
func (f *fakeControl) Failover(_ context.Context, req *connect.Request[apiv1.FailoverRequest]) (*connect.Response[apiv1.FailoverResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	return connect.NewResponse(&apiv1.FailoverResponse{From: "proxy-b", To: "proxy-a"}), nil
}

func (f *fakeControl) Cordon(_ context.Context, req *connect.Request[apiv1.CordonRequest]) (*connect.Response[apiv1.CordonResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	return connect.NewResponse(&apiv1.CordonResponse{Changed: req.Msg.GetCordoned(), Groups: []string{"blue"}}), nil
}

func (f *fakeControl) WatchAttachment(ctx context.Context, _ *connect.Request[apiv1.WatchAttachmentRequest], out *connect.ServerStream[apiv1.WatchAttachmentResponse]) error {
	f.mu.Lock()
	f.watched++
	call := f.watched
	f.mu.Unlock()
	return f.watch(ctx, call, out.Send)
}

func (f *fakeControl) ConfirmRemoval(context.Context, *connect.Request[apiv1.ConfirmRemovalRequest]) (*connect.Response[apiv1.ConfirmRemovalResponse], error) {
	if f.err != nil {
		return nil, f.err
	}
	return connect.NewResponse(&apiv1.ConfirmRemovalResponse{Removed: []string{"crm", "orders"}}), nil
}

type fakeNode struct {
	vpcproxyv1alpha1connect.UnimplementedNodeServiceHandler
	status *apiv1.NodeStatusResponse
	plan   *apiv1.PlanResponse
	resync *apiv1.ResyncResponse
	bgp    *apiv1.BGPResponse
}

func (f *fakeNode) BGP(_ context.Context, req *connect.Request[apiv1.BGPRequest]) (*connect.Response[apiv1.BGPResponse], error) {
	if req.Msg.GetPrefix() == "10.9.9.9" {
		return connect.NewResponse(&apiv1.BGPResponse{}), nil
	}
	return connect.NewResponse(f.bgp), nil
}

func (f *fakeNode) NodeStatus(context.Context, *connect.Request[apiv1.NodeStatusRequest]) (*connect.Response[apiv1.NodeStatusResponse], error) {
	return connect.NewResponse(f.status), nil
}

func (f *fakeNode) Plan(context.Context, *connect.Request[apiv1.PlanRequest]) (*connect.Response[apiv1.PlanResponse], error) {
	return connect.NewResponse(f.plan), nil
}

func (f *fakeNode) Resync(context.Context, *connect.Request[apiv1.ResyncRequest]) (*connect.Response[apiv1.ResyncResponse], error) {
	return connect.NewResponse(f.resync), nil
}

func (f *fakeNode) Yield(context.Context, *connect.Request[apiv1.YieldRequest]) (*connect.Response[apiv1.YieldResponse], error) {
	return connect.NewResponse(&apiv1.YieldResponse{}), nil
}

func (f *fakeNode) ConfirmRemoval(context.Context, *connect.Request[apiv1.ConfirmRemovalRequest]) (*connect.Response[apiv1.ConfirmRemovalResponse], error) {
	return nil, connect.NewError(connect.CodeFailedPrecondition, errNothingHeld)
}

type staticError string

func (e staticError) Error() string { return string(e) }

const errNothingHeld = staticError("no removal is held back")

// refused is an error as the controller sends it.
func refused(code connect.Code, problems ...*apiv1.FieldProblem) error {
	text := ""
	for _, p := range problems {
		text += p.GetObject() + ": " + p.GetProblem()
	}
	e := connect.NewError(code, staticError(text))
	for _, p := range problems {
		d, err := connect.NewErrorDetail(p)
		if err != nil {
			return err
		}
		e.AddDetail(d)
	}
	return e
}

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

// newFakeControl is a platform with something of everything.
func newFakeControl() *fakeControl {
	f := &fakeControl{outcome: apiv1.Outcome_OUTCOME_CREATED}
	meta := func(k intent.Kind) intent.TypeMeta { return intent.TypeMeta{APIVersion: intent.APIVersion, Kind: k} }
	key := uint32(4026531841)
	f.set.Put(&intent.Node{TypeMeta: meta(intent.KindNode), Metadata: intent.Metadata{Name: "host-a", Revision: 3}, Spec: intent.NodeSpec{
		Roles: []intent.Role{intent.RoleFunction}, UnderlayAddress: netip.MustParseAddr("192.168.80.8"), PodCIDRs: prefixes("10.244.1.0/24"),
	}, Status: intent.NodeStatus{TunnelAddress: netip.MustParseAddr("100.64.0.8")}})
	f.set.Put(&intent.Node{TypeMeta: meta(intent.KindNode), Metadata: intent.Metadata{Name: "host-b", Revision: 4}, Spec: intent.NodeSpec{
		Roles: []intent.Role{intent.RoleFunction}, UnderlayAddress: netip.MustParseAddr("192.168.80.9"), PodCIDRs: prefixes("10.244.2.0/24"),
	}})
	f.set.Put(&intent.Node{TypeMeta: meta(intent.KindNode), Metadata: intent.Metadata{Name: "proxy-a", Revision: 5}, Spec: intent.NodeSpec{
		Roles: []intent.Role{intent.RoleProxy, intent.RoleController}, UnderlayAddress: netip.MustParseAddr("192.168.4.100"), UnderlayCIDRs: prefixes("192.168.4.0/24"),
	}})
	f.set.Put(&intent.ProxyGroup{TypeMeta: meta(intent.KindProxyGroup), Metadata: intent.Metadata{Name: "blue", Revision: 6},
		Spec:   intent.ProxyGroupSpec{Members: []intent.Member{{Node: "proxy-a"}}},
		Status: intent.ProxyGroupStatus{TunnelAddress: netip.MustParseAddr("100.64.0.1")}})
	f.set.Put(&intent.Attachment{TypeMeta: meta(intent.KindAttachment), Metadata: intent.Metadata{Name: "orders", Revision: 17},
		Spec: intent.AttachmentSpec{VPC: "acme", CIDRs: prefixes("172.16.101.0/24", "172.16.102.0/24"), Group: "blue", Pods: prefixes("10.244.1.5/32"),
			ENIs: []intent.ENI{{Node: "proxy-a", MAC: "02:42:ac:10:65:04"}}},
		Status: intent.AttachmentStatus{GREKey: &key}})
	f.set.Put(&intent.Attachment{TypeMeta: meta(intent.KindAttachment), Metadata: intent.Metadata{Name: "plain", Revision: 12},
		Spec: intent.AttachmentSpec{VPC: "beta", CIDRs: prefixes("10.9.0.0/16"), Group: "blue", Scope: intent.ScopeHost, Nodes: []string{"host-b"},
			ENIs: []intent.ENI{{Name: "eth2", Addresses: prefixes("10.9.0.4/16"), Gateway: netip.MustParseAddr("10.9.0.1")}}, SNATAddress: netip.MustParseAddr("10.9.0.40"), AllowOverlap: true}})
	f.status = &apiv1.StatusResponse{Revision: 20, Version: "1.2.3", Nodes: []*apiv1.NodeReport{
		{Node: "host-a", Roles: []string{"function"}, Version: "1.2.3", Connected: true, LastSeen: ago(4 * time.Second), Revision: 20, InSync: true,
			UnderlayAddress: "192.168.80.8", TunnelAddress: "100.64.0.8",
			Attachments: []*apiv1.AttachmentReport{{Name: "orders", Role: "function", Ready: true}}},
		{Node: "host-b", Roles: []string{"function"}, Version: "1.2.2", LastSeen: ago(3*time.Hour + 12*time.Minute), Revision: 12, InSync: true,
			Attachments: []*apiv1.AttachmentReport{{Name: "plain", Role: "function", Ready: true}}},
		{Node: "proxy-a", Roles: []string{"proxy", "controller"}, Version: "1.2.3", Connected: true, LastSeen: ago(time.Second), Revision: 20, InSync: true,
			Attachments: []*apiv1.AttachmentReport{{Name: "orders", Role: "proxy", Ready: true}, {Name: "plain", Role: "proxy", Message: "no interface is named eth2"}},
			Interfaces:  []*apiv1.Interface{{Name: "eth1", Mac: "02:42:ac:10:65:04", Pci: "0000:00:05.0", Addresses: []string{"172.16.101.9/24"}, Attachment: "orders"}, {Name: "eth3"}},
			Problems:    []string{"clock is 3 s behind the controller's"}},
	}}
	f.watch = func(ctx context.Context, _ int, send func(*apiv1.WatchAttachmentResponse) error) error {
		if err := send(inPlace()); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return f
}

func inPlace() *apiv1.WatchAttachmentResponse {
	return &apiv1.WatchAttachmentResponse{Revision: 17, Exists: true, Converged: true, Nodes: []*apiv1.NodeProgress{
		{Node: "host-a", Role: "function", Ready: true, Connected: true, Revision: 17},
		{Node: "proxy-a", Role: "proxy", Ready: true, Connected: true, Revision: 17},
	}}
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		status: &apiv1.NodeStatusResponse{
			IntentSource: "controller https://controller:9443",
			Report: &apiv1.NodeReport{Node: "host-a", Roles: []string{"function"}, Version: "1.2.3", Connected: true, LastSeen: ago(90 * time.Second), Revision: 20,
				InSync: true, UnderlayAddress: "192.168.80.8", TunnelAddress: "100.64.0.8",
				Attachments: []*apiv1.AttachmentReport{{Name: "orders", Role: "function", Ready: true}}},
			Kinds: []*apiv1.KindStatus{
				{Kind: "links", Wanted: 1, Actual: 1, Writes: 2, Repaired: 1},
				{Kind: "routes", Wanted: 2, Actual: 1, Pending: 1, Writes: 3, Errors: []string{"route 172.16.101.0/24 table 17600000: network is down"}},
			},
		},
		plan: &apiv1.PlanResponse{
			Problems: []string{"attachment plain: its group has no proxy"},
			Changes: []*apiv1.PlannedChange{
				{Kind: "links", Op: "create", Key: "vpx-orders", Reason: "is absent", Commands: []string{
					"ip link add vpx-orders type gre local 192.168.80.8 ttl 64 key 4026531841", "ip link set vpx-orders up"}},
				{Kind: "rules", Op: "delete", Key: "17600", Commands: []string{"ip rule del pref 17600"}},
			},
		},
		resync: &apiv1.ResyncResponse{Changed: 2},
		bgp:    newFakeBGP(),
	}
}

// bench is a command line with servers to talk to.
type bench struct {
	t       *testing.T
	dir     string
	control *fakeControl
	node    *fakeNode
	binder  *fakeBinder
	stdin   string
	cleaned []string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	for _, name := range []string{controllerEnv, tlsEnv, socketEnv, stateEnv} {
		t.Setenv(name, "")
	}
	b := &bench{t: t, dir: t.TempDir(), control: newFakeControl(), node: newFakeNode(), binder: &fakeBinder{}}
	t.Setenv(socketEnv, b.socket())
	control := http.NewServeMux()
	control.Handle(vpcproxyv1alpha1connect.NewControlServiceHandler(b.control))
	serve(t, b.controller(), control)
	node := http.NewServeMux()
	node.Handle(vpcproxyv1alpha1connect.NewNodeServiceHandler(b.node))
	node.Handle(vpcproxyv1alpha1connect.NewBindServiceHandler(b.binder))
	serve(t, "unix://"+b.socket(), node)
	return b
}

func (b *bench) controller() string { return "unix://" + filepath.Join(b.dir, "c.sock") }

func (b *bench) socket() string { return filepath.Join(b.dir, "n.sock") }

func serve(t *testing.T, address string, h http.Handler) {
	t.Helper()
	parsed, err := transport.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	l, err := transport.Listen(t.Context(), parsed, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- transport.Serve(ctx, h, log, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve %s: %v", address, err)
		}
	})
}

// run executes a command line against the fake servers.
func (b *bench) run(args ...string) (code int, stdout, stderr string) {
	b.t.Helper()
	if !slices.ContainsFunc(args, func(a string) bool { return a == "--controller" }) {
		args = append(args, "--controller", b.controller())
	}
	return b.exec(args...)
}

// exec executes exactly this command line.
func (b *bench) exec(args ...string) (code int, stdout, stderr string) {
	b.t.Helper()
	var out, err bytes.Buffer
	code = Run(b.t.Context(), Deps{
		In: bytes.NewBufferString(b.stdin), Out: &out, Err: &err, Now: func() time.Time { return now },
		Cleanup: b.cleanup, Release: b.cleanup,
	}, args)
	return code, out.String(), err.String()
}

func (b *bench) cleanup(_ context.Context, state string, out io.Writer) error {
	b.cleaned = append(b.cleaned, state)
	_, err := io.WriteString(out, "removed 3 links\n")
	return err
}
