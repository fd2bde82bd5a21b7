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
	heard        []*traffic.Adverts // by each proxy
	pauses       *traffic.Pauses
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
	p.listen(t)
	p.activeOn(t, 0)
}

// pausesEnv has the test program look for pauses.
const pausesEnv = "VPCPROXY_TEST_PAUSES"

// listen begins to note what times are judged by.
func (p *pair) listen(t *testing.T) {
	t.Helper()
	for _, proxy := range p.Proxies {
		a, err := traffic.StartAdverts(proxy.Machine)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Stop)
		p.heard = append(p.heard, a)
	}
	var err error
	if p.pauses, err = traffic.StartPauses(pausesEnv + "=1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.pauses.Stop)
}

// within tells whether something that began and ended at these moments took no longer
// than a limit. What the guest stood still meanwhile does not count, as far as
// there is slack.
func (p *pair) within(from, to time.Time, limit time.Duration) bool {
	return to.Sub(from) <= limit+jitter+min(p.pauses.Lost(from, to), slack)
}

// silent returns when one proxy heard the other for the last time before it took the
// HaVips, some time after a moment: it cannot know sooner that the other is gone.
func (p *pair) silent(t *testing.T, from, to int, since time.Time) time.Time {
	t.Helper()
	last, ok := p.heard[to].Last(p.Proxies[from].Underlay, taken(t, p.outer, p.outerMAC(to), since))
	if !ok {
		t.Fatalf("%s never heard %s", p.Proxies[to].Name, p.Proxies[from].Name)
	}
	return last.At
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

// taken returns when a proxy first claimed a HaVip since a moment.
func taken(t *testing.T, by *traffic.Asker, mac string, since time.Time) time.Time {
	t.Helper()
	for _, c := range by.Claims(since) {
		if c.MAC == mac {
			return c.At
		}
	}
	t.Fatalf("%s has not taken the HaVip", mac)
	return time.Time{}
}

// moved checks how the HaVips went from one proxy to the other: how long after a
// moment that was, and that both had them no longer than allowed.
func (p *pair) moved(t *testing.T, since time.Time, from, to int, gap, overlap time.Duration) {
	t.Helper()
	for name, side := range map[string]struct {
		by *traffic.Asker
		to string
	}{"outer": {p.outer, p.outerMAC(to)}, "inner": {p.inner, p.innerMAC(to)}} {
		at := taken(t, side.by, side.to, since)
		both := traffic.Overlap(traffic.Holders(side.by.Claims(since), 4*askEvery))
		t.Logf("%s HaVip: taken after %v, of which the guest stood still for %v; both answered for %v",
			name, at.Sub(since), p.pauses.Lost(since, at), both)
		if !p.within(since, at, gap) {
			t.Errorf("%s HaVip: taken after %v, want at most %v", name, at.Sub(since), gap)
		}
		if both > overlap {
			t.Errorf("%s HaVip: both answered for %v, want at most %v", name, both, overlap)
		}
	}
}
