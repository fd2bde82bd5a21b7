package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// Addresses that move between the proxies of a pair.
var (
	outerVip = netip.MustParseAddr("192.168.4.100")
	innerVip = netip.MustParseAddr("172.16.101.100")
)

// pairLayout is a pair of proxies with an interface in each of two VPCs.
var pairLayout = topo.Layout{Hosts: 1, Pods: 2, Proxies: 2, VPCs: []string{"red", "blue"}, OneLink: true}

// askEvery is how often neighbors ask who has a HaVip.
const askEvery = 5 * time.Millisecond

// pair is a world with a pair of proxies, proxy1 preferred.
type pair struct {
	*world
	// outer hears who has the HaVip on the underlay, inner who has red's.
	outer, inner *traffic.Asker
	interval     time.Duration // between adverts
	spec         []string      // lines of the group's spec
}

// down is how long a silent proxy is waited for: three intervals and the
// longest skew.
func (p *pair) down() time.Duration { return 4 * p.interval }

// newPair starts a pair that serves red and blue, with an interval between
// adverts. The preferred proxy takes the role back after a second. extra lines
// are added to the proxies' configurations.
func newPair(t *testing.T, interval time.Duration, extra ...string) *pair {
	t.Helper()
	p := &pair{world: newWorld(t, pairLayout), interval: interval}
	p.begin(t, extra...)
	return p
}

// begin writes the intent and starts all agents, the proxies with extra lines of
// configuration.
func (p *pair) begin(t *testing.T, extra ...string) {
	t.Helper()
	p.group(t)
	for i, vpc := range []string{"red", "blue"} {
		p.put(t, vpc, p.movable(vpc, uint32(redKey+i), p.Hosts[0].Pods[i]))
	}
	p.startAgent(t, p.Hosts[0].Machine, "function")
	for _, proxy := range p.Proxies {
		p.startAgent(t, proxy.Machine, "proxy", extra...)
	}
	for _, a := range p.agents {
		a.awaitReady(t)
	}
	p.settle(t)
	p.outer, p.inner = p.ask(t, p.Router, "proxies", outerVip), p.ask(t, p.VPCs["red"].Machine, "subnet", innerVip)
	p.activeOn(t, 0)
}

// group writes the group's manifest, with more lines: proxy1 has priority 200.
func (p *pair) group(t *testing.T, spec ...string) {
	t.Helper()
	p.put(t, "g1", fmt.Sprintf(`kind: ProxyGroup
metadata: {name: g1}
spec:
  members: [{node: proxy1, priority: 200}, {node: proxy2, priority: 100}]
  tunnelAddress: %s
  haVip: %s
  vrid: 51
  advertisementInterval: %v
  preemptDelay: 1s
  %s
`, groupTunnel, outerVip, p.interval, strings.Join(append(slices.Clone(p.spec), spec...), "\n  ")))
}

// movable is a manifest with an ENI of each proxy and a HaVip.
func (p *pair) movable(vpc string, key uint32, pod *topo.Pod) string {
	var enis []string
	for _, proxy := range p.Proxies {
		enis = append(enis, fmt.Sprintf(`{node: %s, mac: "%s"}`, proxy.Name, proxy.ENIs[vpc].MAC))
	}
	return fmt.Sprintf(`kind: Attachment
metadata: {name: %[1]s}
spec:
  vpc: vpc-%[1]s
  cidrs: [%[2]s]
  group: g1
  haVip: %[3]s
  greKey: %[4]d
  pods: [%[5]s/32]
  enis: [%[6]s]
`, vpc, topo.Subnet, innerVip, key, pod.Address, strings.Join(enis, ", "))
}

func (p *pair) ask(t *testing.T, m *topo.Machine, device string, address netip.Addr) *traffic.Asker {
	t.Helper()
	a, err := traffic.StartAsker(m, device, address, askEvery)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	return a
}

// outerMAC is a proxy's MAC address on the underlay.
func (p *pair) outerMAC(i int) string {
	b := p.Proxies[i].Underlay.As4()
	return fmt.Sprintf("02:00:00:%02x:%02x:%02x", b[1], b[2], b[3])
}

func (p *pair) innerMAC(i int) string { return p.Proxies[i].ENIs["red"].MAC }

// heldBy tells whether neighbors hear a proxy, and nobody else, claim both
// HaVips.
func (p *pair) heldBy(i int) error {
	since := time.Now().Add(-4 * askEvery)
	for _, side := range []struct {
		name string
		by   *traffic.Asker
		mac  string
	}{{"outer", p.outer, p.outerMAC(i)}, {"inner", p.inner, p.innerMAC(i)}} {
		claims := side.by.Claims(since)
		if len(claims) == 0 {
			return fmt.Errorf("nobody has the %s HaVip", side.name)
		}
		for _, c := range claims {
			if c.MAC != side.mac {
				return fmt.Errorf("%s has the %s HaVip, not %s of %s", c.MAC, side.name, side.mac, p.Proxies[i].Name)
			}
		}
	}
	return nil
}

// activeOn waits until a proxy holds both HaVips alone, and pods are served.
func (p *pair) activeOn(t *testing.T, i int) {
	t.Helper()
	eventually(t, soon, func(context.Context) error { return p.heldBy(i) })
	p.served(t)
}

// served checks that both pods are answered by their own servers, who see the
// HaVip.
func (p *pair) served(t *testing.T) {
	t.Helper()
	for i, vpc := range []string{"red", "blue"} {
		answeredBy(t, p.Hosts[0].Pods[i].Machine, topo.ServerAddress, vpc, innerVip)
	}
}

// moved checks how the HaVips went from one proxy to the other after a moment:
// for how long nobody had them, and that both had them no longer than allowed.
func (p *pair) moved(t *testing.T, since time.Time, from, to int, gap, overlap time.Duration) {
	t.Helper()
	for name, side := range map[string]struct {
		by       *traffic.Asker
		from, to string
	}{"outer": {p.outer, p.outerMAC(from), p.outerMAC(to)}, "inner": {p.inner, p.innerMAC(from), p.innerMAC(to)}} {
		claims := side.by.Claims(since)
		var taken time.Duration
		for _, c := range claims {
			if c.MAC == side.to {
				taken = c.At.Sub(since)
				break
			}
		}
		both := traffic.Overlap(traffic.Holders(claims, 4*askEvery))
		t.Logf("%s HaVip: taken after %v, both answered for %v", name, taken, both)
		if taken == 0 || taken > gap {
			t.Errorf("%s HaVip: taken after %v, want at most %v", name, taken, gap)
		}
		if both > overlap {
			t.Errorf("%s HaVip: both answered for %v, want at most %v", name, both, overlap)
		}
	}
}
