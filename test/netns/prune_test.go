package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// foreign is what other software has put on a host or a proxy: beside ours, of
// the same kinds, and with numbers as close to ours as they come.
var foreign = []string{
	"ip link add foreign0 type dummy",
	"ip link set foreign0 up",
	"ip address add 10.99.0.1/24 dev foreign0",
	"ip neigh add 10.99.0.9 lladdr 02:00:00:00:99:09 nud permanent dev foreign0",
	"ip route add 10.98.0.0/16 via 10.99.0.2 proto 175",
	"ip route add 10.97.0.0/16 via 10.99.0.2 table 17600001",
	"ip rule add priority 17600 fwmark 0x1/0x3fff table 17600001",
	"ip rule add priority 17600 from 10.99.0.0/24 table 17600001 protocol 175",
	"ip link add foreign1 type gre local any remote 192.168.66.6 key 101",
	"iptables -N FOREIGN",
	"iptables -A FORWARD -s 10.99.0.0/24 -j FOREIGN",
	"iptables -A FORWARD -m comment --comment 'not vpcproxy' -s 10.96.0.0/16 -j ACCEPT",
	"iptables -t nat -A POSTROUTING -s 10.99.0.0/24 -j MASQUERADE",
	"iptables -t mangle -A FORWARD -s 10.99.0.0/24 -j MARK --set-mark 0x10000/0x10000",
	"nft add table inet foreign '{ set peers { type ipv4_addr; elements = { 10.99.0.9 }; }; chain c { type filter hook forward priority 5; ip saddr @peers accept; }; }'",
	"ip netns add foreign",
}

// orphans are of our kinds and marked as ours, and nobody wants them.
var orphans = []string{
	"ip link add vpx-ghost type gre local 192.168.66.66 key 555",
	"ip link set vpx-ghost up",
	"ip address add 100.64.99.99/32 dev vpx-ghost",
	"ip neigh add 100.64.99.98 lladdr 192.168.66.66 nud permanent dev vpx-ghost",
	"ip route add 10.95.0.0/16 dev eth0 proto 176",
	"ip route add unreachable default table 17600555 proto 176",
	"ip rule add priority 17600 fwmark 0x22b/0x3fff table 17600555 protocol 176",
	"iptables -t nat -N VPCPROXY-GHOST",
	"iptables -N VPCPROXY-GHOST",
	"nft add element inet vpcproxy peers4 '{ 192.168.66.66 . 192.168.80.8 . 0.0.2.43 }'",
}

// orphanNamespace is one that only a proxy has.
var orphanNamespace = "ip netns add vpx-ghost2"

func fingerprint(t *testing.T, m *topo.Machine) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	out, err := m.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// same waits until a machine looks as before.
func same(t *testing.T, m *topo.Machine, before string) {
	t.Helper()
	eventually(t, soon, func(context.Context) error {
		after := fingerprint(t, m)
		if gone, added := difference(before, after), difference(after, before); len(gone)+len(added) > 0 {
			return fmt.Errorf("%s differs.\ngone:\n  %s\nadded:\n  %s", m.Name, strings.Join(gone, "\n  "), strings.Join(added, "\n  "))
		}
		return nil
	})
}

// difference lists the lines of a that b lacks.
func difference(a, b string) []string {
	have := map[string]int{}
	for line := range strings.Lines(b) {
		have[line]++
	}
	var out []string
	for line := range strings.Lines(a) {
		if have[line] == 0 {
			out = append(out, strings.TrimSpace(line))
			continue
		}
		have[line]--
	}
	return out
}

// TestRestartPrunes lets agents die, takes an attachment away and leaves
// objects about that look like ours: new agents, which remember nothing,
// remove what nobody wants and touch nothing else.
func TestRestartPrunes(t *testing.T) {
	layout := tenants
	layout.Pods = 4
	layout.VPCs = []string{"red", "blue", "green", "gray"}
	w := newWorld(t, layout)
	machines := []*topo.Machine{w.Hosts[0].Machine, w.Proxies[0].Machine}
	for _, m := range machines {
		typeLines(t, m, foreign...)
	}
	pods := w.Hosts[0].Pods
	w.attach(t, "red", redKey, pods[0])
	w.attach(t, "blue", blueKey, pods[1])
	w.attach(t, "green", 103, pods[2])
	w.start(t)
	w.settle(t)
	w.reached(t)
	before := map[string]string{}
	for _, m := range machines {
		before[m.Name] = fingerprint(t, m)
	}
	w.attach(t, "gray", 104, pods[3])
	answeredBy(t, pods[3].Machine, topo.ServerAddress, "gray", w.Proxies[0].ENIs["gray"].Address.Addr())
	for _, a := range w.agents {
		a.kill(t)
	}
	w.remove(t, "gray")
	for _, m := range machines {
		typeLines(t, m, orphans...)
	}
	typeLines(t, w.Proxies[0].Machine, orphanNamespace)
	for _, a := range w.agents {
		a.restart(t)
	}
	for _, m := range machines {
		same(t, m, before[m.Name])
	}
	w.reached(t)
}

// TestStoppingIsNotTearingDown ends agents as systemd does: all stays.
func TestStoppingIsNotTearingDown(t *testing.T) {
	w := newTenants(t)
	before := map[string]string{}
	for name, a := range w.agents {
		before[name] = fingerprint(t, a.Machine)
		if err := a.process.Stop(t.Context()); err != nil {
			t.Errorf("vpcproxyd on %s: %v", name, err)
		}
	}
	for name, a := range w.agents {
		same(t, a.Machine, before[name])
	}
	w.reached(t)
}

// TestNodeCleanup removes all that is ours, leaves all that is not, and does
// nothing the second time. The ENIs are back with their addresses and routes.
func TestNodeCleanup(t *testing.T) {
	w := newWorld(t, tenants)
	machines := []*topo.Machine{w.Hosts[0].Machine, w.Proxies[0].Machine}
	before := map[string]string{}
	for _, m := range machines {
		typeLines(t, m, foreign...)
	}
	typeLines(t, w.Proxies[0].Machine,
		"ip route add 172.16.200.0/24 via 172.16.101.1 dev eth1",
		"ip address add 172.16.101.77/32 dev eth1")
	for _, m := range machines {
		before[m.Name] = fingerprint(t, m)
	}
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
	w.attach(t, "blue", blueKey, w.Hosts[0].Pods[1])
	w.start(t)
	w.settle(t)
	w.reached(t)
	for _, m := range machines {
		if after := fingerprint(t, m); after == before[m.Name] {
			t.Fatalf("%s looks as if nothing had been made", m.Name)
		}
		if _, code := w.vpcproxyctl(t, m, "node", "cleanup", "--yes"); code == 0 {
			t.Errorf("%s was cleaned up under a running agent", m.Name)
		}
	}
	for _, a := range w.agents {
		if err := a.process.Stop(t.Context()); err != nil {
			t.Error(errors.Join(errors.New("stop vpcproxyd"), err))
		}
	}
	for range 2 {
		for _, m := range machines {
			w.mustCtl(t, m, "node", "cleanup", "--yes")
			same(t, m, before[m.Name])
		}
	}
}
