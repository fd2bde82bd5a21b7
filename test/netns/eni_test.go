package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// TestENI finds an interface by each of its properties, moves it in with its
// addresses and routes, and gives it back with them.
func TestENI(t *testing.T) {
	named := netip.MustParseAddr("172.16.101.99")
	for _, tc := range []struct {
		name   string
		spec   string // in place of the manifest's ENI and after
		source netip.Addr
	}{
		{name: "by MAC", spec: `enis: [{mac: "%[2]s"}]`},
		{name: "by MAC in upper case", spec: `enis: [{mac: "%[3]s"}]`},
		{name: "by name", spec: `enis: [{name: %[1]s}]`},
		{name: "with an address of its own", spec: `enis: [{name: %[1]s, addresses: [172.16.101.98/24]}]`},
		{name: "with a named SNAT address", spec: "enis: [{mac: \"%[2]s\"}]\n  snatAddress: 172.16.101.99", source: named},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, plainLayout)
			proxy, pod := w.Proxies[0], w.Hosts[0].Pods[0]
			eni := proxy.ENIs["red"]
			typeLines(t, proxy.Machine,
				"ip address add 172.16.101.77/24 dev eth1",
				"ip route add 172.16.200.0/24 via 172.16.101.1 dev eth1")
			before := fingerprint(t, proxy.Machine)
			manifest := strings.Replace(w.attachment("red", redKey, pod), "cidrs: [", "cidrs: [172.16.200.0/24, ", 1)
			manifest, _, _ = strings.Cut(manifest, "enis:")
			w.put(t, "red", manifest+fmt.Sprintf(tc.spec+"\n", eni.Name, eni.MAC, strings.ToUpper(eni.MAC)))
			w.start(t)
			source := tc.source
			if !source.IsValid() {
				source = eni.Address.Addr()
			}
			answeredBy(t, pod.Machine, topo.ServerAddress, "red", source)
			// By the route that the interface brought along.
			answeredBy(t, pod.Machine, topo.FarAddress, "red", source)
			if links := look(t, proxy.Machine, "ip -o link show"); strings.Contains(links, ": eth1") {
				t.Errorf("the ENI has stayed where other software can use it:\n%s", links)
			}
			w.remove(t, "red")
			w.agents[proxy.Name].confirm(t) // it was the only attachment
			same(t, proxy.Machine, before)
		})
	}
}

// TestENIAddressChanged gives the ENI another address under an attachment that
// masquerades: the VPC sees the new one, within a moment.
func TestENIAddressChanged(t *testing.T) {
	w := newTenants(t)
	proxy, pod := w.Proxies[0], w.Hosts[0].Pods[0]
	changed := netip.MustParseAddr("172.16.101.44")
	leaks := w.watch(t, w.VPCs["red"].Machine, proxy.ENIs["red"].Port,
		notFrom(proxy.ENIs["red"].Address.Addr(), changed))
	typeLines(t, proxy.Machine,
		// Or the second address of a subnet would go with the first.
		inRed+"sysctl -q -w net.ipv4.conf.all.promote_secondaries=1",
		"ip -n vpx-red address add 172.16.101.44/24 dev eth1",
		"ip -n vpx-red address del 172.16.101.10/24 dev eth1")
	eventually(t, unhurried(t, proxy.Machine, repairLimit), func(ctx context.Context) error {
		return askOnce(ctx, pod.Machine, "red", changed)
	})
	if n, found := leaks.Count(); n > 0 {
		t.Errorf("%d packets left with neither address: %v", n, headers(found))
	}
}

// TestENIArrivesLate attaches before the cloud has delivered the interface.
func TestENIArrivesLate(t *testing.T) {
	w := newWorld(t, plainLayout)
	proxy, pod := w.Proxies[0], w.Hosts[0].Pods[0]
	typeLines(t, proxy.Machine, "ip netns add cloud", "ip link set eth1 netns cloud")
	w.attach(t, "red", redKey, pod)
	w.start(t)
	eventually(t, soon, func(context.Context) error {
		for _, a := range w.agents[proxy.Name].status(t).Report.Attachments {
			if a.Name == "red" && !a.Ready && strings.Contains(a.Message, proxy.ENIs["red"].MAC) {
				return nil
			}
		}
		return errors.New("the status does not say that the ENI is missing")
	})
	unreachable(t, pod.Machine, topo.ServerAddress)
	typeLines(t, proxy.Machine,
		"ip -n cloud link set eth1 netns $$",
		"ip address add 172.16.101.10/24 dev eth1 2>/dev/null || ip -n vpx-red address add 172.16.101.10/24 dev eth1")
	answeredBy(t, pod.Machine, topo.ServerAddress, "red", proxy.ENIs["red"].Address.Addr())
}
