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

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// neighborAge is for how long unused neighbors stay in this test, which is how
// long the kernel tracks a ping, too.
const neighborAge = 2 * time.Second

// onDemand is a world of red, used by a pod on each of two hosts, whose proxy
// makes neighbors on demand.
type onDemand struct {
	*world
	proxy *agent
}

func newOnDemand(t *testing.T) *onDemand {
	w := newWorld(t, topo.Layout{Hosts: 2, Pods: 1, Proxies: 1, VPCs: []string{"red"}})
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0], w.Hosts[1].Pods[0])
	for _, h := range w.Hosts {
		w.startAgent(t, h.Machine, "function")
	}
	o := &onDemand{world: w}
	o.proxy = w.startAgent(t, w.Proxies[0].Machine, "proxy",
		"tunnel: {neighbors: on-demand, neighborAge: "+neighborAge.String()+"}", "metrics: {address: '127.0.0.1:9464'}")
	for _, a := range w.agents {
		a.awaitReady(t)
	}
	w.settle(t)
	typeLines(t, o.proxy.Machine, inRed+"sysctl -q -w net.netfilter.nf_conntrack_icmp_timeout=1")
	return o
}

// hostNBMA is where the proxy's kernel reaches a host (from 0), "" if it does not
// know.
func (o *onDemand) hostNBMA(t *testing.T, host int) string {
	t.Helper()
	out := look(t, o.proxy.Machine, fmt.Sprintf("ip -n vpx-red neigh show dev vpx-red nud permanent to "+hostTunnel, 80+host))
	_, rest, _ := strings.Cut(out, "lladdr ")
	nbma, _, _ := strings.Cut(rest, " ")
	return nbma
}

func (o *onDemand) expect(t *testing.T, limit time.Duration, host int, nbma string) {
	t.Helper()
	eventually(t, limit, func(context.Context) error {
		if got := o.hostNBMA(t, host); got != nbma {
			return fmt.Errorf("host %d is at %q, want %q", host, got, nbma)
		}
		return nil
	})
}

// forget makes the proxy's kernel forget a host, as if it had never been asked for.
func (o *onDemand) forget(t *testing.T, host int) {
	t.Helper()
	typeLines(t, o.proxy.Machine, fmt.Sprintf("ip -n vpx-red neigh del "+hostTunnel+" dev vpx-red 2>/dev/null || true", 80+host))
}

// ping sends one packet, which must be answered.
func (o *onDemand) ping(t *testing.T, host int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := traffic.Ping(ctx, o.Hosts[host].Pods[0].Machine, topo.ServerAddress, 64); err != nil {
		t.Fatalf("a packet is lost: %v", err)
	}
}

// metric is the sum of a metric's values whose line begins so.
func (o *onDemand) metric(t *testing.T, prefix string) (sum float64) {
	t.Helper()
	out := look(t, o.proxy.Machine, "curl -s http://127.0.0.1:9464/metrics")
	for line := range strings.Lines(out) {
		var value float64
		if strings.HasPrefix(line, prefix) {
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' '):], &value); err != nil {
				t.Fatalf("metrics: %q: %v", line, err)
			}
			sum += value
		}
	}
	return sum
}

func TestNeighborsOnDemand(t *testing.T) {
	o := newOnDemand(t)
	first := o.Hosts[0].Underlay.String()
	t.Run("the first packet is answered", func(t *testing.T) {
		for range 20 {
			o.forget(t, 0)
			o.ping(t, 0)
		}
		o.expect(t, soon, 0, first)
		if got := o.hostNBMA(t, 1); got != "" {
			t.Errorf("the other host, which is silent, is known at %s", got)
		}
	})
	t.Run("an unused one ages, a used one stays", func(t *testing.T) {
		// A connection that says nothing is in use.
		quiet, err := traffic.Dial(t.Context(), o.Hosts[1].Pods[0].Machine, "tcp4", netip.AddrPortFrom(topo.ServerAddress, traffic.EchoPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer quiet.Close()
		o.expect(t, soon, 0, "")
		o.expect(t, soon, 1, o.Hosts[1].Underlay.String())
		o.ping(t, 0)
		if o.metric(t, `vpcproxy_neighbors_removed_total{reason="unused"}`) < 1 {
			t.Error("no metric tells of it")
		}
	})
	t.Run("one that is tampered with is put right", func(t *testing.T) {
		for _, how := range []string{"lladdr 192.168.4.99 nud permanent", "lladdr " + first + " nud stale"} {
			o.ping(t, 0)
			typeLines(t, o.proxy.Machine, fmt.Sprintf("ip -n vpx-red neigh replace "+hostTunnel+" dev vpx-red %s", 80, how))
			o.expect(t, unhurried(t, o.proxy.Machine, repairLimit), 0, first)
		}
	})
	t.Run("a flood of unknown addresses", func(t *testing.T) { floodNeighbors(t, o) })
	t.Run("a host that moves", func(t *testing.T) { moveHost(t, o) })
	t.Run("a stopped agent stops no packet", func(t *testing.T) { stopWithNeighbors(t, o) })
}

// floodNeighbors has a host send from addresses that nobody has: the answers ask
// for them.
func floodNeighbors(t *testing.T, o *onDemand) {
	h, outer := o.Hosts[0], traffic.IPv4{Source: o.Hosts[0].Underlay, Destination: o.Proxies[0].Underlay, Protocol: syscall.IPPROTO_GRE}
	key := uint32(redKey)
	before := o.metric(t, `vpcproxy_neighbor_requests_total{outcome="unknown"}`)
	const strangers = 1500
	worst := 0
	for i := range strangers {
		inner := traffic.IPv4{
			Source: netip.AddrFrom4([4]byte{100, 64, byte(8 + i>>8), byte(i)}), Destination: topo.ServerAddress,
			Protocol: syscall.IPPROTO_ICMP,
		}
		gre := traffic.GRE{Key: &key}
		if err := traffic.Inject(h.Machine, outer.Packet(gre.Packet(inner.Packet(traffic.Echo(uint16(i), 1, nil))))); err != nil {
			t.Fatal(err)
		}
		if i%300 == 299 {
			o.forget(t, 1)
			o.ping(t, 1) // a host that was not known either
			entries := strings.Count(look(t, o.proxy.Machine, "ip -n vpx-red neigh show dev vpx-red"), "\n")
			worst = max(worst, entries)
		}
	}
	eventually(t, soon, func(context.Context) error {
		if n := o.metric(t, `vpcproxy_neighbor_requests_total{outcome="unknown"}`) - before; n < strangers/2 {
			return fmt.Errorf("%v requests were counted", n)
		}
		return nil
	})
	t.Logf("%d entries at most", worst)
	if n := strings.Count(o.proxy.process.Log(), "asked for that no node has"); n != 1 {
		t.Errorf("%d lines of log", n)
	}
	if strings.Contains(look(t, o.proxy.Machine, "dmesg 2>/dev/null | tail -50"), "neighbor table overflow") {
		t.Error("the kernel's table of neighbors has overflowed")
	}
}

// moveHost gives the first host another underlay address.
func moveHost(t *testing.T, o *onDemand) {
	h := o.Hosts[0]
	flow, err := traffic.StartFlow(t.Context(), h.Pods[0].Machine, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	from, to := h.Underlay, netip.MustParseAddr("192.168.80.88")
	typeLines(t, h.Machine, "ip address add "+to.String()+"/24 dev eth0")
	typeLines(t, o.Router, "ip route add "+to.String()+"/32 dev "+h.Name)
	o.edit(t, h.Name, strings.NewReplacer(from.String(), to.String()))
	o.expect(t, unhurried(t, o.proxy.Machine, repairLimit), 0, to.String())
	o.ping(t, 0)
	if r := flow.Stop(soon); r.Err != nil {
		t.Errorf("a connection did not survive: %v", r.Err)
	}
}

// stopWithNeighbors stops the proxy's agent in both ways.
func stopWithNeighbors(t *testing.T, o *onDemand) {
	flow, err := traffic.StartFlow(t.Context(), o.Hosts[0].Pods[0].Machine, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	at := o.hostNBMA(t, 0)
	o.expect(t, soon, 1, "")
	o.proxy.kill(t)
	select { // long enough for a neighbor to age
	case <-t.Context().Done():
	case <-time.After(2 * neighborAge):
	}
	if got := o.hostNBMA(t, 0); got != at || at == "" {
		t.Errorf("without an agent the host is at %q, was at %q", got, at)
	}
	o.ping(t, 0)
	o.proxy.restart(t)
	o.ping(t, 1)
	o.expect(t, soon, 1, "")
	// One that ends in order leaves neighbors for those who come later.
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := errors.Join(o.proxy.process.Signal(syscall.SIGTERM), o.proxy.process.Wait(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := o.hostNBMA(t, 1); got != o.Hosts[1].Underlay.String() {
		t.Errorf("the other host is at %q", got)
	}
	o.ping(t, 1)
	o.proxy.restart(t)
	o.expect(t, soon, 1, "") // and they age like others
	if r := flow.Stop(soon); r.Err != nil || r.LongestGap > 2*time.Second {
		t.Errorf("the connection: %v, longest gap %v", r.Err, r.LongestGap)
	}
	if errs := slices.DeleteFunc(strings.Split(o.proxy.process.Log(), "\n"), func(l string) bool { return !strings.Contains(l, "level=ERROR") }); len(errs) > 0 {
		t.Errorf("the agent logged errors:\n%s", strings.Join(errs, "\n"))
	}
}
