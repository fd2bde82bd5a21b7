package netns

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// flushes is what tears the rules down on a proxy, by every way there is.
var flushes = []string{
	inRed + "iptables -t nat -F",
	inRed + "nft flush ruleset",
	inRed + "iptables -F",
	inRed + "iptables -t nat -D POSTROUTING 1",
	"nft flush ruleset",
}

// TestNeverLeaks takes the rules of a loaded proxy away in a loop: whatever
// leaves the ENI still has the ENI's address.
func TestNeverLeaks(t *testing.T) {
	w := newTenants(t)
	proxy, pod := w.Proxies[0], w.Hosts[0].Pods[0].Machine
	eni := proxy.ENIs["red"]
	leaks := w.watch(t, w.VPCs["red"].Machine, eni.Port, notFrom(eni.Address.Addr()))
	stream, err := traffic.StartStream(t.Context(), pod, topo.ServerAddress, streamEvery)
	if err != nil {
		t.Fatal(err)
	}
	loop, stop := context.WithTimeout(t.Context(), 8*time.Second)
	defer stop()
	for round := 0; loop.Err() == nil; round++ {
		// New connections meet whatever rules there are just then.
		attempt, cancel := context.WithTimeout(loop, 200*time.Millisecond)
		_, _ = traffic.Get(attempt, pod, topo.ServerAddress)
		cancel()
		_, err := proxy.Run(t.Context(), "sh", "-c", flushes[round%len(flushes)])
		if _, refused := errors.AsType[*topo.ExitError](err); err != nil && !refused {
			t.Fatal(err)
		}
	}
	report := stream.Stop(time.Second)
	if count, found := leaks.Count(); count > 0 {
		t.Errorf("%d of %d packets left the ENI with a source that is not its own: %v", count, leaks.Total(), headers(found))
	}
	if report.Sent == report.Lost {
		t.Error("no datagram came back: there was no load")
	}
	w.reached(t)

	// The same watch sees what leaks when nothing of ours is there.
	w.agents[proxy.Name].kill(t)
	typeLines(t, proxy.Machine, inRed+"iptables -t nat -F", inRed+"iptables -F", inRed+"tc qdisc del dev eth1 clsact")
	attempt, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	_, _ = traffic.Get(attempt, pod, topo.ServerAddress)
	if count, _ := leaks.Count(); count == 0 {
		t.Error("the watch is blind: without our rules nothing leaked either")
	}
}

func headers(packets []traffic.Packet) []traffic.IPv4 {
	var out []traffic.IPv4
	for _, p := range packets {
		h, _, _ := p.IPv4()
		out = append(out, h)
	}
	return out
}

// TestNoPathNoTraffic takes the path of a pod away while the agent is dead:
// the pod is told at once that its VPC is unreachable, no packet for it leaves
// by another way, and everything else goes on.
func TestNoPathNoTraffic(t *testing.T) {
	w := newTenants(t)
	host, pod := w.Hosts[0], w.Hosts[0].Pods[0]
	astray := w.watch(t, w.Router, host.Name, toPrefix(topo.Subnet))
	w.agents[host.Name].kill(t)
	typeLines(t, host.Machine, "ip link del vpx-red")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	start := time.Now()
	_, err := traffic.Get(ctx, pod.Machine, topo.ServerAddress)
	if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("the pod was told %v after %v, want that the host or network is unreachable", err, time.Since(start))
	}
	answeredBy(t, pod.Machine, topo.PlatformAddress, "platform", netip.Addr{})
	if count, found := astray.Count(); count > 0 {
		t.Errorf("%d packets for the VPC went by the underlay: %v", count, headers(found))
	}
	// The neighbor is not touched by it.
	answeredBy(t, host.Pods[1].Machine, topo.ServerAddress, "blue", netip.Addr{})
	w.agents[host.Name].restart(t)
	w.reached(t)
}

// TestDetachedPodIsRefused takes the attachment away from a pod.
func TestDetachedPodIsRefused(t *testing.T) {
	w := newTenants(t)
	pods := w.Hosts[0].Pods
	w.attach(t, "red", redKey, pods[2])
	answeredBy(t, pods[2].Machine, topo.ServerAddress, "red", netip.Addr{})
	unreachable(t, pods[0].Machine, topo.ServerAddress)
	answeredBy(t, pods[1].Machine, topo.ServerAddress, "blue", netip.Addr{})
}
