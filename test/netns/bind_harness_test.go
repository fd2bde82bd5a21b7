package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// boundWorld is a running world of tenants red and blue whose pods are bound
// when they start: the attachments list none.
func boundWorld(t *testing.T, layout topo.Layout, extra ...string) *world {
	t.Helper()
	w := newWorld(t, layout)
	w.attach(t, "red", redKey)
	w.attach(t, "blue", blueKey)
	for _, h := range w.Hosts {
		w.startAgent(t, h.Machine, "function", extra...)
	}
	for _, p := range w.Proxies {
		w.startAgent(t, p.Machine, "proxy")
	}
	for _, a := range w.agents {
		a.awaitReady(t)
	}
	w.settle(t)
	return w
}

// binder is an agent's BindService, over a connection that stays.
func (a *agent) binder(t *testing.T) vpcproxyv1alpha1connect.BindServiceClient {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = a.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, "unix", nodeSocket)
			return err
		})
		return c, err
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return vpcproxyv1alpha1connect.NewBindServiceClient(&http.Client{Transport: transport}, "http://node")
}

// bind binds a pod and fails the test if that is refused.
func (a *agent) bind(t *testing.T, pod netip.Addr, attachments ...string) *apiv1.Binding {
	t.Helper()
	return a.bindAs(t, &apiv1.BindRequest{PodIp: pod.String(), Attachments: attachments})
}

func (a *agent) bindAs(t *testing.T, req *apiv1.BindRequest) *apiv1.Binding {
	t.Helper()
	start := time.Now()
	resp, err := a.binder(t).Bind(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatalf("bind %s to %v: %v", req.GetPodIp(), req.GetAttachments(), err)
	}
	t.Logf("bind %s to %v took %v", req.GetPodIp(), req.GetAttachments(), time.Since(start))
	return resp.Msg.GetBinding()
}

// bindRefused checks that a binding is refused.
func (a *agent) bindRefused(t *testing.T, code connect.Code, text string, req *apiv1.BindRequest) {
	t.Helper()
	_, err := a.binder(t).Bind(t.Context(), connect.NewRequest(req))
	if connect.CodeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("bind %v: %v; want %v: … %s …", req, err, code, text)
	}
}

func (a *agent) unbind(t *testing.T, pod netip.Addr) {
	t.Helper()
	resp, err := a.binder(t).Unbind(t.Context(), connect.NewRequest(&apiv1.UnbindRequest{PodIp: pod.String()}))
	if err != nil || !resp.Msg.GetRemoved() {
		t.Fatalf("unbind %s: %v, %v", pod, resp, err)
	}
}

// boundPods are the addresses that are bound.
func (a *agent) boundPods(t *testing.T) []string {
	t.Helper()
	resp, err := a.binder(t).ListBindings(t.Context(), connect.NewRequest(&apiv1.ListBindingsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var pods []string
	for _, b := range resp.Msg.GetBindings() {
		pods = append(pods, b.GetPodIp())
	}
	return pods
}

// atOnce asks the server from a pod, once: what bind promises holds for the
// first packet.
func (w *world) atOnce(t *testing.T, pod *topo.Pod, tenant string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := askOnce(ctx, pod.Machine, tenant, w.Proxies[0].ENIs[tenant].Address.Addr()); err != nil {
		t.Errorf("pod %s: %v", pod.Address, err)
	}
}

// session is a TCP connection from a chosen address and port, and the server
// that has answered it.
type session struct {
	net.Conn
	answer traffic.Answer
}

// dialFrom connects to the tenants' server from an address and port of a pod.
func dialFrom(ctx context.Context, m *topo.Machine, source netip.AddrPort) (*session, error) {
	s := &session{}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(source)}
	if source.Port() != 0 {
		dialer.Control = reuseAddress
	}
	if err := m.InNetwork(func() (err error) {
		s.Conn, err = dialer.DialContext(ctx, "tcp4", netip.AddrPortFrom(topo.ServerAddress, traffic.EchoPort).String())
		return err
	}); err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := s.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if err := json.NewDecoder(s).Decode(&s.answer); err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	return s, nil
}
