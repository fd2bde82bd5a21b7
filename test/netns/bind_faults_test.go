package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// refusedAtOnce checks that a pod is told without delay that a server cannot
// be reached.
func refusedAtOnce(t *testing.T, pod *topo.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	start := time.Now()
	_, err := traffic.Get(ctx, pod.Machine, topo.ServerAddress)
	if took := time.Since(start); !errors.Is(err, syscall.EHOSTUNREACH) || took > 5*time.Second {
		t.Errorf("pod %s was told %v after %v; want that the host is unreachable, at once", pod.Address, err, took)
	}
}

// TestBindAgentKilled ends the agent between a binding and the pod's first
// packet: the kernel has all it takes, and the next agent knows the binding.
func TestBindAgentKilled(t *testing.T) {
	w := boundWorld(t, boundLayout)
	host := w.Hosts[0]
	a := w.agents[host.Name]
	a.bindAs(t, &apiv1.BindRequest{PodIp: host.Pods[0].Address.String(), Attachments: []string{"red"}, Interface: host.Pods[0].Veth})
	a.bindAs(t, &apiv1.BindRequest{PodIp: host.Pods[1].Address.String(), Attachments: []string{"blue"}, Interface: host.Pods[1].Veth})
	a.kill(t)
	w.atOnce(t, host.Pods[0], "red")
	w.atOnce(t, host.Pods[1], "blue")
	flow, err := traffic.StartFlow(t.Context(), host.Pods[0].Machine, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	a.restart(t)
	a.settled(t)
	if n := a.writes(t); n != 0 {
		t.Errorf("the new agent wrote %d objects: %v", n, a.status(t).Kinds)
	}
	if n := a.resync(t); n != 0 {
		t.Errorf("the new agent changed %d objects in a resync", n)
	}
	if report := flow.Stop(soon); report.Err != nil || report.Sent == 0 {
		t.Errorf("the connection: %+v", report)
	}
	if got := a.boundPods(t); len(got) != 2 {
		t.Errorf("bound pods %v", got)
	}

	// A pod that goes while no agent runs is found to be gone; one that goes
	// later is found at the event. Both with their connections.
	for i, running := range []bool{false, true} {
		if !running {
			a.kill(t)
		}
		typeLines(t, host.Machine, "ip link del "+host.Pods[i].Veth)
		if !running {
			a.restart(t)
		}
		eventually(t, soon, func(context.Context) error {
			if slices.Contains(a.boundPods(t), host.Pods[i].Address.String()) {
				return fmt.Errorf("pod %s is still bound", host.Pods[i].Address)
			}
			return nil
		})
	}
	noZonedFlows(t, host.Machine)

	// A record that is damaged while no agent runs: the pod is refused, not let
	// go, until it is bound again.
	pod := host.Pods[2]
	a.bind(t, pod.Address, "red")
	a.kill(t)
	path := "/var/lib/vpcproxy/bindings/" + pod.Address.String() + ".json"
	typeLines(t, host.Machine, "truncate -s 40 "+path)
	a.restart(t)
	a.settled(t)
	refusedAtOnce(t, pod)
	a.bind(t, pod.Address, "red")
	w.atOnce(t, pod, "red")
}

// TestBindPathDown binds pods to attachments that have no path.
func TestBindPathDown(t *testing.T) {
	w := boundWorld(t, boundLayout)
	host := w.Hosts[0]
	a := w.agents[host.Name]
	// Another program's device has the tunnel's key.
	typeLines(t, host.Machine, fmt.Sprintf("ip link add squatter type gre local %s key 103", host.Underlay))
	w.put(t, "green", fmt.Sprintf(`kind: Attachment
metadata: {name: green}
spec:
  vpc: vpc-green
  cidrs: [%s]
  group: g1
  greKey: 103
  enis: [{name: eth9}]
`, topo.Subnet))
	pod := host.Pods[0]
	var b *apiv1.Binding
	eventually(t, soon, func(ctx context.Context) error {
		resp, err := a.binder(t).Bind(ctx, connect.NewRequest(&apiv1.BindRequest{PodIp: pod.Address.String(), Attachments: []string{"green"}}))
		if err == nil {
			b = resp.Msg.GetBinding()
		}
		return err
	})
	astray := w.watch(t, w.Router, host.Name, toPrefix(topo.Subnet))
	if at := b.GetAttachments()[0]; at.GetReady() || at.GetMessage() == "" {
		t.Errorf("a path without a device: %v", at)
	}
	refusedAtOnce(t, pod)
	a.bind(t, pod.Address, "red")
	w.atOnce(t, pod, "red")

	// The attachment goes from under its pod: refused, until it is there again.
	other := host.Pods[1]
	a.bind(t, other.Address, "blue")
	w.remove(t, "blue")
	// One of three is not so many that it has to be confirmed.
	eventually(t, soon, func(ctx context.Context) error {
		if _, err := traffic.Get(ctx, other.Machine, topo.ServerAddress); !errors.Is(err, syscall.EHOSTUNREACH) {
			return fmt.Errorf("want that the host is unreachable, got %w", err)
		}
		return nil
	})
	eventually(t, soon, func(context.Context) error {
		if left := look(t, host.Machine, "conntrack -L 2>/dev/null | grep 'src="+other.Address.String()+".*zone=' || true"); left != "" {
			return fmt.Errorf("connections of the detached pod go on:\n%s", left)
		}
		return nil
	})
	if out := w.mustCtl(t, host.Machine, "get", "bindings"); !strings.Contains(out, "refused (blue: ") {
		t.Errorf("get bindings:\n%s", out)
	}
	w.attach(t, "blue", blueKey)
	answeredBy(t, other.Machine, topo.ServerAddress, "blue", netip.Addr{})

	// The device goes while the agent is dead.
	a.kill(t)
	typeLines(t, host.Machine, "ip link del vpx-red")
	refusedAtOnce(t, pod)
	a.restart(t)
	answeredBy(t, pod.Machine, topo.ServerAddress, "red", netip.Addr{})
	if n, found := astray.Count(); n > 0 {
		t.Errorf("%d packets of bound pods went by the underlay: %v", n, headers(found))
	}
}
