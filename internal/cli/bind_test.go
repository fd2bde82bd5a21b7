package cli

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
)

// fakeBinder remembers what it was asked and answers that green has no path.
type fakeBinder struct {
	vpcproxyv1alpha1connect.UnimplementedBindServiceHandler
	bound   *apiv1.BindRequest
	unbound *apiv1.UnbindRequest
	err     error
	list    []*apiv1.Binding
}

func (f *fakeBinder) Bind(_ context.Context, req *connect.Request[apiv1.BindRequest]) (*connect.Response[apiv1.BindResponse], error) {
	f.bound = req.Msg
	if f.err != nil {
		return nil, f.err
	}
	b := &apiv1.Binding{PodIp: req.Msg.GetPodIp(), Interface: req.Msg.GetInterface(), Owner: req.Msg.GetOwner(), Bound: ago(90 * time.Second)}
	for _, name := range req.Msg.GetAttachments() {
		at := &apiv1.BoundAttachment{Name: name, Ready: name != "green"}
		if !at.GetReady() {
			at.Message = "its proxy is not there"
		}
		b.Attachments = append(b.Attachments, at)
	}
	f.list = []*apiv1.Binding{b}
	return connect.NewResponse(&apiv1.BindResponse{Binding: b}), nil
}

func (f *fakeBinder) Unbind(_ context.Context, req *connect.Request[apiv1.UnbindRequest]) (*connect.Response[apiv1.UnbindResponse], error) {
	f.unbound = req.Msg
	removed := len(f.list) > 0
	f.list = nil
	return connect.NewResponse(&apiv1.UnbindResponse{Removed: removed}), f.err
}

func (f *fakeBinder) ListBindings(_ context.Context, req *connect.Request[apiv1.ListBindingsRequest]) (*connect.Response[apiv1.ListBindingsResponse], error) {
	resp := &apiv1.ListBindingsResponse{}
	for _, b := range f.list {
		if p := req.Msg.GetPodIp(); p == "" || p == b.GetPodIp() {
			resp.Bindings = append(resp.Bindings, b)
		}
	}
	return connect.NewResponse(resp), f.err
}

func TestBindCommands(t *testing.T) {
	b := newBench(t)
	for _, step := range []struct {
		line, out, message string
		code               int
	}{
		{"get bindings", "", "no bindings", codeOK},
		{"get bindings 10.244.1.5", "", "pod 10.244.1.5 is not bound", codeNotFound},
		{"bind --pod-ip 10.244.1.5 --attachment red", "pod 10.244.1.5 bound to red\n", "", codeOK},
		{"bind --pod-ip 10.244.1.5 --attachment red --attachment green --interface veth5 --owner s1", "pod 10.244.1.5 bound to red, green\n",
			"warning: attachment green refuses packets for now: its proxy is not there", codeOK},
		{"get bindings", "POD          ATTACHMENTS   STATE                                     INTERFACE   OWNER   AGE\n" +
			"10.244.1.5   red,green     refused (green: its proxy is not there)   veth5       s1      1m30s\n", "", codeOK},
		{"unbind --pod-ip 10.244.1.5 --owner s1", "pod 10.244.1.5 unbound\n", "", codeOK},
		{"unbind --pod-ip 10.244.1.5", "pod 10.244.1.5 was not bound\n", "", codeOK},
		{"bind --attachment red", "", "--pod-ip is missing", codeUsage},
		{"bind --pod-ip 10.244.1.5", "", "--attachment is missing", codeUsage},
		{"bind --pod-ip pod --attachment red", "", `"pod" is not an IP address`, codeUsage},
		{"unbind", "", "--pod-ip is missing", codeUsage},
		{"get bindings pod", "", `"pod" is not a pod address`, codeUsage},
	} {
		code, out, stderr := b.run(strings.Fields(step.line)...)
		if code != step.code || out != step.out || !strings.Contains(stderr, step.message) || step.message == "" && stderr != "" {
			t.Errorf("$ vpcproxyctl %s\nexit code %d, answer %q, message %s\nwant %d, %q, … %s …", step.line, code, out, stderr, step.code, step.out, step.message)
		}
	}
	if r := b.binder.bound; r.GetInterface() != "veth5" || r.GetOwner() != "s1" || len(r.GetAttachments()) != 2 {
		t.Errorf("asked %v", r)
	}
	for code, exit := range map[connect.Code]int{connect.CodeNotFound: codeNotFound, connect.CodeFailedPrecondition: codeConflict, connect.CodeUnavailable: codeFailed} {
		b.binder.err = connect.NewError(code, errors.New("pod 10.244.1.5: attachments[0]: because"))
		if got, _, stderr := b.run("bind", "--pod-ip", "10.244.1.5", "--attachment", "red"); got != exit || !strings.Contains(stderr, "because") {
			t.Errorf("%v: exit code %d, %s", code, got, stderr)
		}
	}
}

func TestBindingsAsJSON(t *testing.T) {
	b := newBench(t)
	if code, _, stderr := b.run("bind", "--pod-ip", "10.244.1.5", "--attachment", "red", "--owner", "s1"); code != codeOK {
		t.Fatal(stderr)
	}
	for line, want := range map[string]string{
		"get bindings -o json":            "[\n  {\n    \"podIP\": \"10.244.1.5\",\n    \"attachments\": [\n      {\n        \"name\": \"red\",\n        \"ready\": true\n",
		"get bindings 10.244.1.5 -o yaml": "podIP: 10.244.1.5\n",
	} {
		if code, out, stderr := b.run(strings.Fields(line)...); code != codeOK || !strings.Contains(out, want) {
			t.Errorf("%s: %d, %s, %s", line, code, out, stderr)
		}
	}
}
