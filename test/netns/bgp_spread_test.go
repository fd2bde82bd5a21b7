package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// TestBGPSpread has two groups share an attachment: flows stay where they are
// when a group joins, and only its own are lost when one leaves.
func TestBGPSpread(t *testing.T) {
	w := newRouted(t, bgpLayout)
	w.zones = nil
	w.intend(t)
	// By ports, too: the test has two pods only.
	typeLines(t, w.Hosts[0].Machine, "sysctl -qw net.ipv4.fib_multipath_hash_policy=1")
	w.startReflector(t, 0)
	w.cordon(t, 1, true)
	w.startNodes(t)
	w.agents["host1"].has(t, 1)
	w.through(t, soon, 0)
	pod := w.Hosts[0].Pods[0].Machine
	var early []*traffic.Flow
	for range 12 {
		early = append(early, w.flow(t, pod, 0))
	}
	w.cordon(t, 1, false)
	w.agents["host1"].has(t, 2)
	var late *traffic.Flow
	eventually(t, soon, func(ctx context.Context) error {
		f, err := traffic.StartFlow(ctx, pod, topo.ServerAddress)
		if err != nil {
			return err
		}
		if f.Answer.Client.Addr() == w.Proxies[1].ENIs["red"].Address.Addr() {
			late = f
			return nil
		}
		return errors.Join(errors.New("nothing goes by the second group yet"), f.Stop(never).Err)
	})
	w.alive(t, early)
	w.cordon(t, 1, true)
	w.agents["host1"].has(t, 1)
	for range 12 {
		early = append(early, w.flow(t, pod, 0))
	}
	w.alive(t, early)
	late.Stop(0)
	for _, f := range early {
		if r := f.Stop(soon); r.Err != nil || r.Sent == 0 {
			t.Errorf("a flow that was there before: %+v", r)
		}
	}
}

// flow starts a connection that must go through a proxy.
func (w *routedWorld) flow(t *testing.T, m *topo.Machine, proxy int) *traffic.Flow {
	t.Helper()
	f, err := traffic.StartFlow(t.Context(), m, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.Proxies[proxy].ENIs["red"].Address.Addr(); f.Answer.Client.Addr() != want {
		t.Fatalf("the server saw %s, want %s", f.Answer.Client, want)
	}
	return f
}

// alive waits until something new has come back on every flow.
func (w *routedWorld) alive(t *testing.T, flows []*traffic.Flow) {
	t.Helper()
	for i, f := range flows {
		before := f.Report()
		eventually(t, soon, func(context.Context) error {
			r := f.Report()
			if r.Err != nil {
				t.Fatalf("flow %d: %v", i, r.Err)
			}
			if r.Returned <= before.Returned+1 {
				return fmt.Errorf("flow %d is silent", i)
			}
			return nil
		})
	}
}

// TestBGPHostMoves gives a function host another address on the underlay, of
// which the proxy hears by BGP alone: its intent, and the controller that could
// change it, are as they were.
func TestBGPHostMoves(t *testing.T) {
	layout := bgpLayout
	layout.Proxies = 1
	w := newRouted(t, layout)
	w.startReflector(t, 0)
	w.startNodes(t)
	w.through(t, soon, 0)
	moved := netip.MustParseAddr("192.168.80.99")
	host := w.agents["host1"]
	if err := host.process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	typeLines(t, w.Router, "ip route replace "+moved.String()+"/32 dev host1")
	typeLines(t, w.Hosts[0].Machine, "ip address del "+w.Hosts[0].Underlay.String()+"/24 dev eth0", "ip address add "+moved.String()+"/24 dev eth0",
		"ip route replace default via 192.168.80.1 dev eth0 src "+moved.String())
	// The host's own intent is another directory now.
	own := t.TempDir()
	for _, name := range []string{"proxy1", "g1", "red"} {
		content, err := os.ReadFile(filepath.Join(w.intent, name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(own, name+".yaml"), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manifest := "apiVersion: vpcproxy.io/v1alpha1\n" + w.host(w.Hosts[0], moved, 0)
	if err := os.WriteFile(filepath.Join(own, "host1.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	w.startConfigured(t, w.Hosts[0].Machine, "roles: [function]", "intent: {directory: "+own+"}", w.speaking()).awaitReady(t)
	w.through(t, soon, 0)
	t.Logf("reached %v after the agent was started", time.Since(start))
	entries, err := w.Proxies[0].Run(t.Context(), "ip", "-n", "vpx-red", "neighbor", "show")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(entries)
}
