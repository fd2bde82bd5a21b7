package netns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// reflectors are the addresses of the machines that reflect routes: control,
// and the router.
var reflectors = []netip.Addr{topo.ControlAddress, topo.PlatformAddress}

const (
	bgpASN = 65000
	// bgpHold is the least that BGP allows, bgpRestart how long routes outlive
	// a broken session here.
	bgpHold, bgpRestart = 3 * time.Second, 8 * time.Second
	// bgpSettle is how long what was believed before is kept after neighbors
	// can be heard again.
	bgpSettle = 10 * time.Second
	// routed is how long news may take from one kernel to another's.
	routed = 2 * time.Second
)

// bgpLayout is two proxies, each a group of its own, with an interface in red.
var bgpLayout = topo.Layout{Hosts: 1, Pods: 2, Proxies: 2, VPCs: []string{"red"}}

// routedWorld is a world whose nodes speak BGP: red is served by g1 (proxy1,
// zone a) and g2 (proxy2, zone b), and host1 is in zone a.
type routedWorld struct {
	*world
	restart time.Duration // graceful restart; 0: none
	zones   map[string]string
	mode    string // of hosts and proxies
	// reflected is which reflectors they have.
	reflected []netip.Addr
}

// newRouted writes the intent. No agent runs yet.
func newRouted(t *testing.T, layout topo.Layout) *routedWorld {
	t.Helper()
	w := &routedWorld{world: newWorld(t, layout), restart: bgpRestart, mode: "client", reflected: reflectors[:1], zones: map[string]string{"proxy1": "a", "proxy2": "b", "host1": "a"}}
	w.intend(t)
	return w
}

// intend writes nodes, groups and attachment.
func (w *routedWorld) intend(t *testing.T) {
	t.Helper()
	for i, h := range w.Hosts {
		w.put(t, h.Name, w.host(h, h.Underlay, i))
	}
	for i, p := range w.Proxies {
		w.cordon(t, i, false)
		w.put(t, fmt.Sprintf("g%d", i+1), fmt.Sprintf("kind: ProxyGroup\nmetadata: {name: g%d}\nspec: {members: [{node: %s}], tunnelAddress: 100.64.0.%d}\n", i+1, p.Name, 4+i))
	}
	w.put(t, "red", w.spread())
}

func (w *routedWorld) host(h *topo.Host, underlay netip.Addr, i int) string {
	return fmt.Sprintf("kind: Node\nmetadata: {name: %s}\nspec: {roles: [function], underlayAddress: %s, underlayCIDRs: [192.168.80.0/24], tunnelAddress: %s, podCIDRs: [%s]%s}\n",
		h.Name, underlay, fmt.Sprintf(hostTunnel, 80+i), h.PodCIDR, w.zone(h.Name))
}

func (w *routedWorld) zone(node string) string {
	if z := w.zones[node]; z != "" {
		return ", zone: " + z
	}
	return ""
}

// cordon drains a proxy, or takes it back.
func (w *routedWorld) cordon(t *testing.T, i int, on bool) {
	t.Helper()
	p := w.Proxies[i]
	w.put(t, p.Name, fmt.Sprintf("kind: Node\nmetadata: {name: %s}\nspec: {roles: [proxy], underlayAddress: %s, cordoned: %t%s}\n", p.Name, p.Underlay, on, w.zone(p.Name)))
}

// spread is an attachment of every proxy's group, for every pod.
func (w *routedWorld) spread() string {
	var groups, enis, pods []string
	for i, p := range w.Proxies {
		groups = append(groups, fmt.Sprintf("{name: g%d}", i+1))
		enis = append(enis, fmt.Sprintf(`{node: %s, mac: "%s"}`, p.Name, p.ENIs["red"].MAC))
	}
	for _, h := range w.Hosts {
		for _, p := range h.Pods {
			pods = append(pods, p.Address.String()+"/32")
		}
	}
	return fmt.Sprintf("kind: Attachment\nmetadata: {name: red}\nspec:\n  vpc: vpc-red\n  cidrs: [%s]\n  groups: [%s]\n  greKey: %d\n  pods: [%s]\n  enis: [%s]\n",
		topo.Subnet, strings.Join(groups, ", "), redKey, strings.Join(pods, ", "), strings.Join(enis, ", "))
}

// speaking is an agent's configuration of BGP.
func (w *routedWorld) speaking(extra ...string) string {
	settings := []string{"mode: " + w.mode, fmt.Sprintf("asn: %d", bgpASN), "holdTime: " + bgpHold.String(), "gracefulRestart: " + w.restart.String(), "flowIdle: 1s"}
	if w.mode == "client" {
		settings = append(settings, "reflectors: ["+list(w.reflected)+"]")
	}
	return "bgp: {" + strings.Join(append(settings, extra...), ", ") + "}"
}

func list(addresses []netip.Addr) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

// startReflector starts the product as a route reflector.
func (w *routedWorld) startReflector(t *testing.T, i int) *agent {
	t.Helper()
	m := []*topo.Machine{w.Control, w.Router}[i]
	a := w.startConfigured(t, m, "roles: [reflector]", fmt.Sprintf(
		"bgp: {mode: reflector, asn: %d, address: %s, ranges: [192.168.0.0/16], announcers: [192.168.4.0/24], holdTime: %v, gracefulRestart: %v}",
		bgpASN, reflectors[i], bgpHold, w.restart))
	a.awaitReady(t)
	return a
}

// startNodes starts an agent on every host and proxy; only what they speak with
// each other by is said here.
func (w *routedWorld) startNodes(t *testing.T, extra ...string) {
	t.Helper()
	for _, h := range w.Hosts {
		w.startAgent(t, h.Machine, "function", w.speaking(extra...))
	}
	for _, p := range w.Proxies {
		w.startAgent(t, p.Machine, "proxy", w.speaking(extra...))
	}
	for _, a := range w.agents {
		a.awaitReady(t)
	}
}

// through waits until new connections of host1's first pod arrive through a
// proxy.
func (w *routedWorld) through(t *testing.T, limit time.Duration, proxies ...int) {
	t.Helper()
	eventually(t, limit, func(ctx context.Context) error {
		answer, err := traffic.Get(ctx, w.Hosts[0].Pods[0].Machine, topo.ServerAddress)
		if err != nil {
			return err
		}
		for _, i := range proxies {
			if answer.Client.Addr() == w.Proxies[i].ENIs["red"].Address.Addr() {
				return nil
			}
		}
		return fmt.Errorf("the server saw %s", answer.Client)
	})
}

// bgp asks an agent what it makes of BGP.
func (a *agent) bgp(ctx context.Context) (*apiv1.BGPResponse, error) {
	resp, err := a.api().BGP(ctx, connect.NewRequest(&apiv1.BGPRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// hears waits until an agent has heard all that so many neighbors have to say.
func (a *agent) hears(t *testing.T, neighbors int) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		resp, err := a.bgp(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, p := range resp.GetPeers() {
			if p.GetSynced() {
				n++
			}
		}
		if n != neighbors {
			return fmt.Errorf("%s has heard %d neighbors out, want %d: %v", a.Name, n, neighbors, resp.GetPeers())
		}
		return nil
	})
}

// has waits until an agent has so many routes in use that neighbors told it now.
func (a *agent) has(t *testing.T, routes int) {
	t.Helper()
	a.heard(t, routes, (*apiv1.BGPRoute).GetUsed)
}

// knows waits until an agent accepts so many routes that neighbors told it now,
// in use or not.
func (a *agent) knows(t *testing.T, routes int) {
	t.Helper()
	a.heard(t, routes, (*apiv1.BGPRoute).GetAccepted)
}

func (a *agent) heard(t *testing.T, routes int, counts func(*apiv1.BGPRoute) bool) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		resp, err := a.bgp(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range resp.GetReceived() {
			if counts(r) && !r.GetKept() {
				n++
			}
		}
		if n != routes {
			return fmt.Errorf("%s has %d such routes, want %d: %v", a.Name, n, routes, resp.GetReceived())
		}
		return nil
	})
}

// routeless waits until host1 has no route to red but the one that refuses.
func (w *routedWorld) routeless(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func(ctx context.Context) error {
		routes, err := w.Hosts[0].Run(ctx, "ip", "route", "show", "table", "all", "proto", "176")
		if err != nil || strings.Contains(routes, topo.Subnet.String()) {
			return fmt.Errorf("%s (%w)", routes, err)
		}
		return nil
	})
}

// stopAll ends every agent in an orderly way.
func (w *routedWorld) stopAll(t *testing.T) {
	t.Helper()
	for _, a := range w.agents {
		if err := a.process.Stop(t.Context()); err != nil {
			t.Errorf("%s: %v", a.Name, err)
		}
	}
}
