package controller

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// startTLS runs a controller on https and returns a maker of clients: bundle
// names a directory of the CA.
func startTLS(t *testing.T) (control func(bundle string) vpcproxyv1alpha1connect.ControlServiceClient, agent func(bundle string) vpcproxyv1alpha1connect.AgentServiceClient) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(ca, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	issue := func(name string, o pki.Options, roles ...pki.Role) *pki.Credentials {
		dir, err := pki.Issue(ca, name, roles, o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := pki.Load(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	own := issue("ctl", pki.Options{Hosts: []string{"127.0.0.1"}}, pki.RoleController)
	for _, name := range []string{"f1", "f2"} {
		issue(name, pki.Options{}, pki.RoleNode)
	}
	issue("both", pki.Options{}, pki.RoleNode, pki.RoleController)

	addr, err := transport.ParseAddress("https://" + freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Listen: []transport.Address{addr}}, Deps{
		Credentials: own, Log: log,
		OpenStore: func(context.Context) (store.Store, error) { return dialStore(t, "/"+t.Name()+"/"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-c.Ready():
	case err := <-done:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	client := func(bundle string) transport.Client {
		creds, err := pki.Load(filepath.Join(ca, bundle), log)
		if err != nil {
			t.Fatal(err)
		}
		tc, err := transport.NewClient(addr, creds)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tc.HTTP.CloseIdleConnections)
		return tc
	}
	return func(bundle string) vpcproxyv1alpha1connect.ControlServiceClient {
			tc := client(bundle)
			return vpcproxyv1alpha1connect.NewControlServiceClient(tc.HTTP, tc.BaseURL)
		}, func(bundle string) vpcproxyv1alpha1connect.AgentServiceClient {
			tc := client(bundle)
			return vpcproxyv1alpha1connect.NewAgentServiceClient(tc.HTTP, tc.BaseURL)
		}
}

// freePort returns an address that nobody listens on. The controller has to
// know its own before it starts.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestAuthorization(t *testing.T) {
	control, agent := startTLS(t)
	denied := connect.CodePermissionDenied

	watch := func(bundle, node string) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		stream, err := agent(bundle).Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Node: object(t, node)}))
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		if stream.Receive() {
			return nil
		}
		return stream.Err()
	}
	if err := watch("f1", nodeF1); err != nil {
		t.Errorf("a node for itself: %v", err)
	}
	wantCode(t, watch("f2", nodeF1), denied, `node/f2 may not speak for node "f1"`)
	wantCode(t, watch("operator", nodeF1), denied, "operator/operator may not call")
	wantCode(t, watch("ctl", nodeF1), denied, "controller/ctl may not call")
	if err := watch("both", node("both", `"roles":["proxy"],"underlayAddress":"192.168.4.9"`)); err != nil {
		t.Errorf("a node that is a controller too: %v", err)
	}

	report := func(bundle, node string) error {
		_, err := agent(bundle).Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: &apiv1.NodeReport{Node: node}}))
		return err
	}
	if err := report("f1", "f1"); err != nil {
		t.Errorf("a node's report of itself: %v", err)
	}
	wantCode(t, report("f2", "f1"), denied, `node/f2 may not speak for node "f1"`)

	if _, err := control("operator").Apply(t.Context(), connect.NewRequest(request(t, nodeF2))); err != nil {
		t.Errorf("an operator: %v", err)
	}
	for _, bundle := range []string{"f1", "ctl", "both"} {
		c := control(bundle)
		for name, err := range map[string]error{
			"Apply":          second(c.Apply(t.Context(), connect.NewRequest(request(t, nodeF2)))),
			"Get":            second(c.Get(t.Context(), connect.NewRequest(&apiv1.GetRequest{Kind: "Node", Name: "f1"}))),
			"List":           second(c.List(t.Context(), connect.NewRequest(&apiv1.ListRequest{Kind: "Attachment"}))),
			"Delete":         second(c.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: "Node", Name: "f1"}))),
			"Status":         second(c.Status(t.Context(), connect.NewRequest(&apiv1.StatusRequest{}))),
			"ConfirmRemoval": second(c.ConfirmRemoval(t.Context(), connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))),
		} {
			if connect.CodeOf(err) != denied {
				t.Errorf("%s by %s: %v; want PermissionDenied", name, bundle, err)
			}
		}
		stream, err := c.WatchAttachment(t.Context(), connect.NewRequest(&apiv1.WatchAttachmentRequest{Name: "x"}))
		if err != nil {
			t.Fatal(err)
		}
		if stream.Receive() || connect.CodeOf(stream.Err()) != denied {
			t.Errorf("WatchAttachment by %s: %v; want PermissionDenied", bundle, stream.Err())
		}
		_ = stream.Close()
	}
}

func second[T any](_ T, err error) error { return err }

// Who is not known to the transport is nobody.
func TestUnknownCaller(t *testing.T) {
	wantCode(t, authorize(t.Context(), vpcproxyv1alpha1connect.ControlServiceStatusProcedure), connect.CodeUnauthenticated)
}
