package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// TestBGPHostileAnnouncements has a function host say what it should not: that
// it is red's proxy, the default route, the underlay and another host. Nobody's
// kernel changes by it, whether the reflector refuses the worst or not.
func TestBGPHostileAnnouncements(t *testing.T) {
	layout := bgpLayout
	layout.Hosts, layout.Proxies = 2, 1
	w := newRouted(t, layout)
	w.startReflector(t, 0)
	w.startAgent(t, w.Hosts[0].Machine, "function", w.speaking())
	w.startAgent(t, w.Proxies[0].Machine, "proxy", w.speaking())
	host, proxy := w.agents["host1"], w.agents["proxy1"]
	host.awaitReady(t)
	proxy.awaitReady(t)
	w.through(t, soon, 0)
	host.has(t, 1)
	proxy.has(t, 1)
	before := map[*agent]string{host: fingerprint(t, host.Machine), proxy: fingerprint(t, proxy.Machine)}
	load := startLoad(t, w.world)

	evil := w.Hosts[1]
	red := func(prefix netip.Prefix, hop netip.Addr) bgp.Path {
		b := hop.As4()
		return bgp.Path{
			NLRI:          bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: uint16(b[2])<<8 | uint16(b[3]), Number: redKey}, Prefix: prefix},
			NextHop:       hop,
			Encapsulation: bgp.Encapsulation{GRE: true, Keyed: true, Key: redKey},
			Targets:       []bgp.Target{{ASN: bgpASN, Number: redKey}, {Addr: netip.MustParseAddr(groupTunnel), Number: 1}},
			LocalPref:     1 << 30,
		}
	}
	other := bgp.Path{
		NLRI:    bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: 80<<8 | 9}, Prefix: netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf(hostTunnel, 80)), 32)},
		NextHop: evil.Underlay, Encapsulation: bgp.Encapsulation{GRE: true}, LocalPref: 1 << 30,
		Targets: []bgp.Target{{Addr: netip.MustParseAddr(groupTunnel), Number: 1}},
	}
	onlyRed := func(p bgp.Path) bgp.Path { p.Targets = p.Targets[:1]; return p }
	lies := []bgp.Path{
		onlyRed(red(topo.Subnet, evil.Underlay)),                        // in the proxy's place
		onlyRed(red(topo.Subnet, w.Proxies[0].Underlay)),                // in the proxy's name
		onlyRed(red(netip.MustParsePrefix("0.0.0.0/0"), evil.Underlay)), // everything
		red(netip.MustParsePrefix("192.168.0.0/16"), evil.Underlay),     // the underlay
		other, // another host
	}
	liar := says(t, evil.Machine, speech{Local: evil.Underlay, Peers: reflectors[:1], Paths: lies})
	// The reflector, which knows the proxies' range, has refused the rest.
	proxy.refuses(t, 1)
	host.has(t, 1)

	// One that lets everybody announce passes everything on. Only what would
	// take the good route's place in its table is left out here.
	if err := liar.Kill(); err != nil {
		t.Fatal(err)
	}
	liar = says(t, evil.Machine, speech{Local: evil.Underlay, Peers: reflectors[:1], Paths: slices.Delete(lies, 1, 2)})
	if err := w.agents["control"].process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	naive := w.startConfigured(t, w.Control, "roles: [reflector]", fmt.Sprintf(
		"bgp: {mode: reflector, asn: %d, address: %s, ranges: [192.168.0.0/16], announcers: [192.168.0.0/16], holdTime: %v, gracefulRestart: %v}", bgpASN, reflectors[0], bgpHold, bgpRestart))
	naive.awaitReady(t)
	host.refuses(t, 2)
	proxy.refuses(t, 2)
	for a, fp := range before {
		if now := fingerprint(t, a.Machine); now != fp {
			t.Errorf("%s has changed by lies: %v, %v", a.Name, difference(fp, now), difference(now, fp))
		}
	}
	if !liar.Running() {
		t.Errorf("nobody has lied:\n%s", liar.Log())
	}
	load.unharmed(t)
	w.through(t, soon, 0)
}

// refuses waits until an agent has heard so many routes that it ignores.
func (a *agent) refuses(t *testing.T, routes int) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		resp, err := a.bgp(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range resp.GetReceived() {
			if !r.GetAccepted() {
				n++
			}
		}
		if n < routes {
			return fmt.Errorf("%s refuses %d routes, want %d: %v", a.Name, n, routes, resp.GetReceived())
		}
		return nil
	})
}
