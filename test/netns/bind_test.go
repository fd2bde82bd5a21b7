package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

var boundLayout = topo.Layout{Hosts: 1, Pods: 4, Proxies: 1, VPCs: []string{"red", "blue"}}

// reuseAddress lets a source port be used again at once.
func reuseAddress(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	}), err)
}

// TestBind binds pods of two tenants that have the same destination.
func TestBind(t *testing.T) {
	w := boundWorld(t, boundLayout, "bind: {linger: 1s}")
	host := w.Hosts[0]
	a := w.agents[host.Name]
	before := fingerprint(t, host.Machine)

	t.Run("first packet", func(t *testing.T) {
		for i, tenant := range []string{"red", "blue"} {
			if b := a.bind(t, host.Pods[i].Address, tenant); !b.GetAttachments()[0].GetReady() {
				t.Errorf("the path is not ready: %v", b)
			}
			w.atOnce(t, host.Pods[i], tenant)
		}
		unreachable(t, host.Pods[2].Machine, topo.ServerAddress)
	})
	astray := w.watch(t, w.Router, host.Name, toPrefix(topo.Subnet))
	t.Run("same ports", func(t *testing.T) { w.samePorts(t, host.Pods[0], host.Pods[1]) })
	t.Run("answers of another tenant", func(t *testing.T) { w.injectAnswer(t, host.Pods[0]) })
	t.Run("rebind under traffic", func(t *testing.T) { w.rebind(t, a, host.Pods[0]) })
	if n, _ := astray.Count(); n > 0 {
		t.Errorf("%d packets of bound pods went by the underlay", n)
	}
	t.Run("requests", func(t *testing.T) { w.bindRequests(t, a, host.Pods[2].Address) })
	t.Run("address reused", func(t *testing.T) { w.reuse(t, a, host.Pods[2]) })
	t.Run("unbind under traffic", func(t *testing.T) {
		flow, err := traffic.StartFlow(t.Context(), host.Pods[0].Machine, topo.ServerAddress)
		if err != nil {
			t.Fatal(err)
		}
		a.unbind(t, host.Pods[0].Address)
		a.unbind(t, host.Pods[1].Address)
		unreachable(t, host.Pods[0].Machine, topo.ServerAddress)
		flow.Stop(0)
		noZonedFlows(t, host.Machine)
	})
	// Nothing is left, once the paths have lingered.
	eventually(t, soon, func(ctx context.Context) error {
		now, err := host.Fingerprint(ctx)
		if err != nil {
			return err
		}
		if now != before {
			return fmt.Errorf("before the first binding:\n%s\nafter the last:\n%s", before, now)
		}
		return nil
	})
}

// zonedFlows are the tracked connections in zones of ours.
func zonedFlows(t *testing.T, m *topo.Machine) string {
	t.Helper()
	return look(t, m, "conntrack -L 2>/dev/null | grep zone= || true")
}

// noZonedFlows waits until no connection is in a zone of ours.
func noZonedFlows(t *testing.T, m *topo.Machine) {
	t.Helper()
	eventually(t, soon, func(context.Context) error {
		if left := zonedFlows(t, m); left != "" {
			return fmt.Errorf("connections go on:\n%s", left)
		}
		return nil
	})
}

// samePorts opens connections of two tenants with the same ports to the same
// server at a time.
func (w *world) samePorts(t *testing.T, red, blue *topo.Pod) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for port := uint16(40000); port < 40010; port++ {
		for tenant, pod := range map[string]*topo.Pod{"red": red, "blue": blue} {
			s, err := dialFrom(ctx, pod.Machine, netip.AddrPortFrom(pod.Address, port))
			if err != nil {
				t.Fatalf("%s, port %d: %v", tenant, port, err)
			}
			defer s.Close()
			if err := wrong(s.answer, tenant, w.Proxies[0].ENIs[tenant].Address.Addr()); err != nil {
				t.Errorf("port %d: %v", port, err)
			}
		}
	}
}

var answerPort = regexp.MustCompile(`src=172\.16\.101\.5 dst=100\.64\.0\.\d+ sport=7 dport=(\d+)`)

// injectAnswer has blue's side of a proxy send what looks like an answer in a
// flow of red's pod. The same from red's side arrives.
func (w *world) injectAnswer(t *testing.T, pod *topo.Pod) {
	host, proxy := w.Hosts[0], w.Proxies[0]
	stream, err := traffic.StartStream(t.Context(), pod.Machine, topo.ServerAddress, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Stop(0)
	var port uint64
	eventually(t, soon, func(context.Context) error {
		list := look(t, host.Machine, "conntrack -L -p udp 2>/dev/null | grep src="+pod.Address.String()+" || true")
		m := answerPort.FindStringSubmatch(list)
		if m == nil {
			return fmt.Errorf("no flow of the pod in:\n%s", list)
		}
		port, err = strconv.ParseUint(m[1], 10, 16)
		return err
	})
	const mark = "injected"
	for _, c := range []struct {
		tenant    string
		key       uint32
		delivered bool
	}{{"blue", blueKey, false}, {"red", redKey, true}} {
		seen := w.watch(t, host.Machine, pod.Veth, func(p traffic.Packet) bool {
			_, payload, ok := p.IPv4()
			return ok && strings.Contains(string(payload), mark)
		})
		inner := traffic.IPv4{Source: topo.ServerAddress, Destination: netip.MustParseAddr(fmt.Sprintf(hostTunnel, 80)), Protocol: unix.IPPROTO_UDP}.
			Packet(traffic.UDP(traffic.EchoPort, uint16(port), []byte(mark)))
		outer := traffic.IPv4{Source: proxy.Underlay, Destination: host.Underlay, Protocol: unix.IPPROTO_GRE}
		if err := traffic.Inject(proxy.Machine, outer.Packet(traffic.GRE{Key: &c.key}.Packet(inner))); err != nil {
			t.Fatal(err)
		}
		if c.delivered {
			eventually(t, soon, func(context.Context) error {
				if n, _ := seen.Count(); n == 0 {
					return errors.New("red's own answer does not arrive: the test is blind")
				}
				return nil
			})
			continue
		}
		time.Sleep(never)
		if n, _ := seen.Count(); n > 0 {
			t.Errorf("an answer of %s entered red's flow", c.tenant)
		}
	}
}

// bindRequests are refused, or change nothing.
func (w *world) bindRequests(t *testing.T, a *agent, free netip.Addr) {
	pod := free.String()
	request := func(change func(*apiv1.BindRequest)) *apiv1.BindRequest {
		r := &apiv1.BindRequest{PodIp: pod, Attachments: []string{"red"}}
		change(r)
		return r
	}
	before := a.boundPods(t)
	a.bindRefused(t, connect.CodeInvalidArgument, "podIP", request(func(r *apiv1.BindRequest) { r.PodIp = "pod" }))
	a.bindRefused(t, connect.CodeInvalidArgument, "none of the pod ranges", request(func(r *apiv1.BindRequest) { r.PodIp = "10.99.0.5" }))
	a.bindRefused(t, connect.CodeInvalidArgument, "is empty", request(func(r *apiv1.BindRequest) { r.Attachments = nil }))
	a.bindRefused(t, connect.CodeInvalidArgument, "appears twice", request(func(r *apiv1.BindRequest) { r.Attachments = []string{"red", "red"} }))
	a.bindRefused(t, connect.CodeNotFound, `no attachment "green"`, request(func(r *apiv1.BindRequest) { r.Attachments = []string{"red", "green"} }))
	a.bindRefused(t, connect.CodeFailedPrecondition, "overlaps 172.16.101.0/24 of attachment red", request(func(r *apiv1.BindRequest) { r.Attachments = []string{"red", "blue"} }))
	a.bindRefused(t, connect.CodeInvalidArgument, "no interface veth99", request(func(r *apiv1.BindRequest) { r.Interface = "veth99" }))
	if after := a.boundPods(t); !slices.Equal(before, after) {
		t.Errorf("bound pods were %v, are %v", before, after)
	}

	// A late unbind of an earlier owner does not touch what is there now.
	a.bindAs(t, request(func(r *apiv1.BindRequest) { r.Owner = "second" }))
	for owner, removed := range map[string]bool{"first": false, "second": true} {
		resp, err := a.binder(t).Unbind(t.Context(), connect.NewRequest(&apiv1.UnbindRequest{PodIp: pod, Owner: owner}))
		if err != nil || resp.Msg.GetRemoved() != removed && owner == "first" {
			t.Errorf("unbind as %s: %v, %v", owner, resp, err)
		}
	}
	if out, code := w.vpcproxyctl(t, a.Machine, "get", "bindings", pod); code != 4 {
		t.Errorf("get bindings of an unbound pod: %d, %s", code, out)
	}
	w.mustCtl(t, a.Machine, "bind", "--pod-ip", pod, "--attachment", "red")
	if out := w.mustCtl(t, a.Machine, "get", "bindings"); !regexp.MustCompile(`(?m)^` + pod + ` +red +ready`).MatchString(out) {
		t.Errorf("get bindings:\n%s", out)
	}
	w.mustCtl(t, a.Machine, "unbind", "--pod-ip", pod)
	w.mustCtl(t, a.Machine, "unbind", "--pod-ip", pod)
}

// rebind moves a loaded pod from one tenant to the other and back.
func (w *world) rebind(t *testing.T, a *agent, pod *topo.Pod) {
	stream, err := traffic.StartStream(t.Context(), pod.Machine, topo.ServerAddress, streamEvery)
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"blue", "red"} {
		a.bind(t, pod.Address, tenant)
		w.atOnce(t, pod, tenant)
		other := map[string]string{"blue": "red", "red": "blue"}[tenant]
		seen := len(w.servers[other].Seen())
		for range 20 {
			w.atOnce(t, pod, tenant)
		}
		if now := len(w.servers[other].Seen()); now != seen {
			t.Errorf("bound to %s, yet %d packets came to %s", tenant, now-seen, other)
		}
	}
	report := stream.Stop(time.Second)
	t.Logf("%d datagrams, %d lost, %d errors (%v)", report.Sent, report.Lost, report.Errors, report.LastError)
	if report.Errors > 0 {
		t.Errorf("the pod was refused for a moment: %v", report.LastError)
	}
}

// reuse gives a pod's address to another tenant: with the same ports the new
// pod is answered by its own tenant's server at once, and hears nothing of the
// old pod's.
func (w *world) reuse(t *testing.T, a *agent, pod *topo.Pod) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for i, tenant := range []string{"red", "blue", "red", "red"} {
		source := netip.AddrPortFrom(pod.Address, 41000)
		a.bindAs(t, &apiv1.BindRequest{PodIp: pod.Address.String(), Attachments: []string{tenant}, Owner: strconv.Itoa(i)})
		s, err := dialFrom(ctx, pod.Machine, source)
		if err != nil {
			t.Fatalf("%d: %s: %v", i, tenant, err)
		}
		if err := wrong(s.answer, tenant, w.Proxies[0].ENIs[tenant].Address.Addr()); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if i%2 == 0 { // otherwise the next pod's binding ends it
			a.unbind(t, pod.Address)
		}
		// The old pod ends without a word to its server.
		typeLines(t, pod.Machine, "iptables -I OUTPUT -p tcp --sport 41000 -j DROP")
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		typeLines(t, pod.Machine, "iptables -D OUTPUT 1")
	}
	a.unbind(t, pod.Address)
}
