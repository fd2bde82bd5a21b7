package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
)

// agent is a node agent with bindings and nothing else.
type agent struct {
	mu     sync.Mutex
	bound  map[string]*apiv1.BindRequest
	refuse string // address that cannot be bound
	asked  *apiv1.PodAttachmentsRequest
	pods   map[string][]string // by name
}

func (a *agent) Bind(_ context.Context, r *connect.Request[apiv1.BindRequest]) (*connect.Response[apiv1.BindResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Msg.PodIp == a.refuse {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is no such attachment"))
	}
	a.bound[r.Msg.PodIp] = r.Msg
	return connect.NewResponse(&apiv1.BindResponse{}), nil
}

func (a *agent) Unbind(_ context.Context, r *connect.Request[apiv1.UnbindRequest]) (*connect.Response[apiv1.UnbindResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.bound[r.Msg.PodIp]; b != nil && (r.Msg.Owner == "" || b.Owner == r.Msg.Owner) {
		delete(a.bound, r.Msg.PodIp)
	}
	return connect.NewResponse(&apiv1.UnbindResponse{}), nil
}

func (a *agent) ListBindings(context.Context, *connect.Request[apiv1.ListBindingsRequest]) (*connect.Response[apiv1.ListBindingsResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resp := &apiv1.ListBindingsResponse{}
	for _, b := range a.bound {
		l := &apiv1.Binding{PodIp: b.PodIp, Interface: b.Interface, Owner: b.Owner}
		for _, n := range b.Attachments {
			l.Attachments = append(l.Attachments, &apiv1.BoundAttachment{Name: n})
		}
		resp.Bindings = append(resp.Bindings, l)
	}
	return connect.NewResponse(resp), nil
}

func (a *agent) PodAttachments(_ context.Context, r *connect.Request[apiv1.PodAttachmentsRequest]) (*connect.Response[apiv1.PodAttachmentsResponse], error) {
	a.asked = r.Msg
	names, ok := a.pods[r.Msg.Name]
	if !ok {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("not known yet"))
	}
	if v := r.Msg.GetAnnotations(); v != nil && v.Attachment != nil {
		names = strings.Split(*v.Attachment, ",")
	}
	return connect.NewResponse(&apiv1.PodAttachmentsResponse{Attachments: names}), nil
}

// summary is one word for each binding, sorted.
func (a *agent) summary() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for ip, b := range a.bound {
		out = append(out, ip+"="+strings.Join(b.Attachments, ",")+"@"+b.Owner)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func start(t *testing.T) (*agent, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "node.sock")
	address, err := transport.ParseAddress("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	l, err := transport.Listen(t.Context(), address, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{bound: map[string]*apiv1.BindRequest{}, pods: map[string][]string{}}
	mux := http.NewServeMux()
	mux.Handle(vpcproxyv1alpha1connect.NewBindServiceHandler(a))
	mux.Handle(vpcproxyv1alpha1connect.NewKubernetesServiceHandler(a))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- transport.Serve(ctx, mux, log, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, socket
}

const previous = `{"cniVersion": "1.1.0",
 "interfaces": [{"name": "br-none"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
 "ips": [{"address": "10.244.1.5/24", "interface": 1}, {"address": "fd00::5/64", "interface": 1}]}`

// args are those of a container named c1; extra are further keys of the
// network configuration.
func args(socket, extra string, pod ...string) *skel.CmdArgs {
	a := &skel.CmdArgs{ContainerID: "c1", Netns: "/run/netns/x", IfName: "eth0"}
	if len(pod) == 2 {
		a.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + pod[0] + ";K8S_POD_NAME=" + pod[1] + ";K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=c1"
	}
	a.StdinData = fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "pods", "type": "vpcproxy-cni", "socket": %q, "timeout": "5s" %s}`, socket, extra)
	return a
}

const withPrevious = `, "prevResult": ` + previous

// run calls a command with its output thrown away, and returns its error's code.
func run(t *testing.T, command func(*skel.CmdArgs) error, a *skel.CmdArgs) (printed string, code uint, err error) {
	t.Helper()
	r, w, pipeErr := os.Pipe()
	if pipeErr != nil {
		t.Fatal(pipeErr)
	}
	stdout := os.Stdout
	os.Stdout = w
	err = command(a)
	os.Stdout = stdout
	_ = w.Close()
	out, readErr := io.ReadAll(r)
	if readErr != nil {
		t.Fatal(readErr)
	}
	var e *types.Error
	if errors.As(err, &e) {
		code = e.Code
	}
	return string(out), code, err
}

func TestLifeOfAPod(t *testing.T) {
	a, socket := start(t)
	a.pods["web-1"] = []string{"blue", "red"}
	in := args(socket, withPrevious, "shop", "web-1")
	out, _, err := run(t, add, in)
	if err != nil || !strings.Contains(out, `"10.244.1.5/24"`) {
		t.Fatalf("ADD: %v; printed %s", err, out)
	}
	want := "10.244.1.5=blue,red@cni/pods/c1/eth0 fd00::5=blue,red@cni/pods/c1/eth0"
	if got := a.summary(); got != want {
		t.Fatalf("bound %q, want %q", got, want)
	}
	if a.bound["10.244.1.5"].Interface != "br-none" || a.asked.Uid != "u1" || a.asked.Annotations != nil {
		t.Errorf("interface %q, asked %v", a.bound["10.244.1.5"].Interface, a.asked)
	}
	if _, _, err := run(t, check, in); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	a.bound["10.244.1.5"].Attachments = []string{"red"}
	if _, _, err := run(t, check, in); err == nil || !strings.Contains(err.Error(), "10.244.1.5 is bound to [red], not to [blue, red]") {
		t.Errorf("CHECK: %v", err)
	}
	for range 2 {
		if _, _, err := run(t, del, args(socket, "", "shop", "web-1")); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if got := a.summary(); got != "" {
		t.Errorf("bound %q after DEL", got)
	}
	if _, _, err := run(t, status, args(socket, "")); err != nil {
		t.Errorf("STATUS: %v", err)
	}
}

func TestAnnotationsOfTheRuntime(t *testing.T) {
	a, socket := start(t)
	a.pods["web-1"] = []string{"fallback"}
	const capable = withPrevious + `, "capabilities": {"io.kubernetes.cri.pod-annotations": true}, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": %s}`
	for given, want := range map[string]string{
		`{"vpcproxy.io/attachment": "red"}`: "red",
		`{"other": "x"}`:                    "fallback",
		`{}`:                                "fallback",
	} {
		if _, _, err := run(t, add, args(socket, fmt.Sprintf(capable, given), "shop", "web-1")); err != nil {
			t.Fatal(err)
		}
		if got := a.bound["10.244.1.5"].Attachments; !slices.Equal(got, []string{want}) {
			t.Errorf("%s: bound to %v, want %s", given, got, want)
		}
		if known := a.asked.Annotations != nil; known != (given != `{}`) {
			t.Errorf("%s: told that the annotations are known: %t", given, known)
		}
	}
}

func TestPodsWithoutAttachments(t *testing.T) {
	a, socket := start(t)
	a.pods["plain"] = nil
	a.bound["10.244.1.5"] = &apiv1.BindRequest{PodIp: "10.244.1.5", Attachments: []string{"red"}, Owner: "cni/pods/dead/eth0"}
	if _, _, err := run(t, add, args(socket, withPrevious, "shop", "plain")); err != nil {
		t.Fatal(err)
	}
	if got := a.summary(); got != "" {
		t.Errorf("bound %q: what a dead pod has left must not serve the next", got)
	}
	if _, _, err := run(t, add, args("/nonexistent/node.sock", withPrevious, "kube-system", "dns")); err != nil {
		t.Errorf("ADD in kube-system: %v; the cluster must come up without us", err)
	}
}

func TestNetworkWithAttachments(t *testing.T) {
	a, socket := start(t)
	if _, _, err := run(t, add, args(socket, withPrevious+`, "attachments": ["red"]`)); err != nil {
		t.Fatal(err)
	}
	if got := a.bound["fd00::5"].GetAttachments(); !slices.Equal(got, []string{"red"}) {
		t.Errorf("bound to %v", got)
	}
	// What follows annotations must leave it alone.
	if got := a.bound["fd00::5"].GetOwner(); got != "cni-network/pods/c1/eth0" {
		t.Errorf("owner %q", got)
	}
	if _, _, err := run(t, del, args(socket, `, "attachments": ["red"]`)); err != nil || a.summary() != "" {
		t.Errorf("DEL: %v, bound %q", err, a.summary())
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	a, socket := start(t)
	a.pods["web-1"], a.refuse = []string{"red"}, "fd00::5"
	out, code, err := run(t, add, args(socket, withPrevious, "shop", "web-1"))
	if code != types.ErrTryAgainLater || out != "" || !strings.Contains(err.Error(), "pod address fd00::5 cannot be bound to red") {
		t.Errorf("ADD: code %d, %v, printed %q", code, err, out)
	}
	if got := a.summary(); got != "" {
		t.Errorf("bound %q after a failed ADD", got)
	}
}

func TestErrors(t *testing.T) {
	_, socket := start(t)
	for name, c := range map[string]struct {
		command func(*skel.CmdArgs) error
		args    *skel.CmdArgs
		code    uint
		want    string
	}{
		"no previous result": {add, args(socket, "", "shop", "a"), types.ErrInvalidNetworkConfig, "put vpcproxy-cni after the plugin"},
		"no address":         {add, args(socket, `, "attachments": ["red"], "prevResult": {"cniVersion": "1.1.0"}`), types.ErrInvalidNetworkConfig, "gave the pod no address"},
		"not known yet":      {add, args(socket, withPrevious, "shop", "unknown"), types.ErrTryAgainLater, "the attachments of pod shop/unknown are not known"},
		"no agent, ADD":      {add, args("/nonexistent/n.sock", withPrevious, "shop", "a"), types.ErrTryAgainLater, "agent at /nonexistent/n.sock"},
		"no agent, STATUS":   {status, args("/nonexistent/n.sock", ""), errNotAvailable, "does not answer"},
		"no agent, DEL":      {del, args("/nonexistent/n.sock", ""), 0, ""},
		"no agent, GC":       {gc, args("/nonexistent/n.sock", ""), types.ErrTryAgainLater, "bindings cannot be removed"},
		"bad timeout":        {status, args(socket, `, "timeout": "5"`), types.ErrInvalidNetworkConfig, "timeout"},
		"bad socket":         {status, args("node.sock", ""), types.ErrInvalidNetworkConfig, "socket"},
		"empty attachment":   {status, args(socket, `, "attachments": [""]`), types.ErrInvalidNetworkConfig, "attachments"},
		"no JSON":            {status, &skel.CmdArgs{StdinData: []byte("{")}, types.ErrDecodingFailure, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			_, code, err := run(t, c.command, c.args)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if code != c.code || !strings.Contains(text, c.want) {
				t.Errorf("code %d, %q; want %d, %q", code, text, c.code, c.want)
			}
		})
	}
}

func TestGarbage(t *testing.T) {
	a, socket := start(t)
	for ip, owner := range map[string]string{
		"10.0.0.1": "cni/pods/c1/eth0", "10.0.0.2": "cni/pods/gone/eth0", "10.0.0.3": "cni/other/gone/eth0", "10.0.0.4": "kubernetes/u", "10.0.0.5": "",
	} {
		a.bound[ip] = &apiv1.BindRequest{PodIp: ip, Attachments: []string{"red"}, Owner: owner}
	}
	if _, _, err := run(t, gc, args(socket, `, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]`)); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.bound["10.0.0.2"]; ok || len(a.bound) != 4 {
		t.Errorf("left: %s", a.summary())
	}
}
