package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// backAgain is the longest pause while a proxy gives way to one that is back: the
// one's word that is taken back and the other's, each in the host's kernel.
const backAgain = time.Second

// TestBGPPair has a pair announce by its HaVip: one of the two, never both for
// long, and never none after a failover.
func TestBGPPair(t *testing.T) {
	layout := pairLayout
	layout.VPCs = []string{"red"}
	w := newRouted(t, layout)
	w.remove(t, "g2")
	p := &pair{world: w.world, interval: 100 * time.Millisecond}
	p.group(t)
	w.put(t, "red", p.movable("red", redKey, w.Hosts[0].Pods[0]))
	w.startReflector(t, 0)
	w.startNodes(t)
	answeredBy(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress, "red", innerVip)
	w.announcedBy(t, 0)
	if err := w.agents["proxy1"].process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.announcedBy(t, 1)
	answeredBy(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress, "red", innerVip)
	stream, err := traffic.StartStream(t.Context(), w.Hosts[0].Pods[0].Machine, topo.ServerAddress, streamEvery)
	if err != nil {
		t.Fatal(err)
	}
	w.agents["proxy1"].restart(t)
	w.announcedBy(t, 0) // preferred, it takes the role back when it is heard
	if report := stream.Stop(backAgain); report.LongestGap > backAgain {
		t.Errorf("nothing came back for %v when the preferred proxy took over", report.LongestGap)
	}
	answeredBy(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress, "red", innerVip)
}

// announcedBy waits until one proxy, and no other that runs, announces red, and
// the host has heard it of that one.
func (w *routedWorld) announcedBy(t *testing.T, proxy int) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		for i, p := range w.Proxies {
			a := w.agents[p.Name]
			if !a.process.Running() {
				continue
			}
			resp, err := a.bgp(ctx)
			if err != nil {
				return err
			}
			if n := len(resp.GetAnnounced()); (n == 1) != (i == proxy) {
				return fmt.Errorf("%s announces %d paths", a.Name, n)
			}
		}
		resp, err := w.agents["host1"].bgp(ctx)
		if err != nil {
			return err
		}
		for _, r := range resp.GetReceived() {
			if r.GetUsed() && !r.GetKept() && r.GetOriginator() == w.Proxies[proxy].Underlay.String() && r.GetPath().GetNextHop() == outerVip.String() {
				return nil
			}
		}
		return fmt.Errorf("the host has heard %v", resp.GetReceived())
	})
}

// TestBGPWithoutController has nodes meet in a mesh, at addresses that the
// controller has told them. Then it dies, and routes follow who is alive.
func TestBGPWithoutController(t *testing.T) {
	layout := tenants
	layout.VPCs = []string{"red"}
	p := newPlatform(t, layout)
	mesh := fmt.Sprintf("bgp: {mode: mesh, asn: %d, holdTime: %v, gracefulRestart: %v}", bgpASN, bgpHold, bgpRestart)
	for name, role := range map[string]string{"host1": "function", "proxy1": "proxy"} {
		a := p.agents[name]
		if err := a.process.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		extra := []string{mesh}
		if role == "function" {
			extra = append(extra, "podCIDRs: ["+p.Hosts[0].PodCIDR.String()+"]")
		}
		p.rejoin(t, a.Machine, role, extra...)
	}
	pod := p.Hosts[0].Pods[0].Machine
	p.mustCtl(t, p.Control, append(p.attachArgs("red", p.Hosts[0].Pods[0]), "--wait")...)
	p.agents["host1"].has(t, 1)
	p.agents["proxy1"].has(t, 1)
	p.controller.kill(t)
	red := p.Proxies[0].ENIs["red"]
	answeredBy(t, pod, topo.ServerAddress, "red", red.Address.Addr())
	peers := p.mustCtl(t, p.Hosts[0].Machine, "bgp", "peers")
	paths := p.mustCtl(t, p.Hosts[0].Machine, "bgp", "explain", topo.ServerAddress.String())
	if !strings.Contains(peers, "established") || !strings.Contains(paths, "used for attachment red") {
		t.Errorf("%s\n%s", peers, paths)
	}
	typeLines(t, p.VPCs["red"].Machine, "ip link set "+red.Port+" down")
	// A host that has just started believes that nobody is alive only when all
	// have had the time of a restart to tell.
	eventually(t, bgpRestart+routed, func(ctx context.Context) error {
		out, err := p.Hosts[0].Run(ctx, "ip", "route", "show", "table", "all", "proto", "176")
		if err == nil && strings.Contains(out, topo.Subnet.String()) {
			err = errors.New(out)
		}
		return err
	})
	typeLines(t, p.VPCs["red"].Machine, "ip link set "+red.Port+" up")
	answeredBy(t, pod, topo.ServerAddress, "red", red.Address.Addr())
}

// rejoin starts an agent again, with the certificate that it has.
func (p *platform) rejoin(t *testing.T, m *topo.Machine, role string, extra ...string) {
	t.Helper()
	p.startConfigured(t, m, append([]string{
		"roles: [" + role + "]",
		"controller: {address: 'https://" + topo.ControlAddress.String() + ":9443'}",
		"tls: {directory: " + p.bundle(m.Name) + "}",
	}, extra...)...).awaitReady(t)
}
