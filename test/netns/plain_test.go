package netns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// The plain recipe, which the product automates, as an operator types it.
var (
	plainHost = []string{
		"ip tunnel add mgre0 mode gre local 192.168.80.8 ttl 64",
		"ip address add 10.0.0.3/24 dev mgre0",
		"ip link set mgre0 up",
		"ip neigh add 10.0.0.4 lladdr 192.168.4.4 nud permanent dev mgre0",
		"ip route add 172.16.101.0/24 via 10.0.0.4 dev mgre0",
		"iptables -t nat -I POSTROUTING -o mgre0 ! -s 10.0.0.3 -j SNAT --to-source 10.0.0.3",
	}
	plainProxy = []string{
		"ip tunnel add mgre0 mode gre local 192.168.4.4 ttl 64",
		"ip address add 10.0.0.4/24 dev mgre0",
		"ip link set mgre0 up",
		"ip neigh add 10.0.0.3 lladdr 192.168.80.8 nud permanent dev mgre0",
		"sysctl -q -w net.ipv4.ip_forward=1",
		"iptables -t nat -A POSTROUTING -o eth1 -j MASQUERADE",
	}
)

// plainMTU is what an Ethernet of 1500 leaves to GRE without a key: 20 octets
// of IPv4 and 4 of GRE less.
const plainMTU = 1476

// plainLayout is the recipe's world: one host, one proxy, one VPC.
var plainLayout = topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}}

// answeredPlainly checks what the recipe promises: the host and its pods reach
// the VPC, which sees the ENI's address.
func answeredPlainly(t *testing.T, l *testLab) {
	t.Helper()
	source := l.Proxies[0].ENIs["red"].Address.Addr()
	for _, m := range []*topo.Machine{l.Hosts[0].Machine, l.Hosts[0].Pods[0].Machine} {
		answeredBy(t, m, topo.ServerAddress, "red", source)
		if err := traffic.Ping(t.Context(), m, topo.ServerAddress, plainMTU); err != nil {
			t.Errorf("the largest packet: %v", err)
		}
	}
}

func TestPlainRecipeByHand(t *testing.T) {
	l := newLab(t, plainLayout)
	unreachable(t, l.Hosts[0].Pods[0].Machine, topo.ServerAddress)
	typeLines(t, l.Hosts[0].Machine, plainHost...)
	typeLines(t, l.Proxies[0].Machine, plainProxy...)
	answeredPlainly(t, l)
}

// newPlainWorld is a world whose intent is the recipe, to the letter: no key,
// 10.0.0.3 and 10.0.0.4, the host's own traffic too.
func newPlainWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, plainLayout)
	for name, edit := range map[string]*strings.Replacer{
		"host1": strings.NewReplacer("100.64.0.80", "10.0.0.3"),
		"g1":    strings.NewReplacer(groupTunnel, "10.0.0.4"),
	} {
		w.edit(t, name, edit)
	}
	w.put(t, "plain", fmt.Sprintf(`kind: Attachment
metadata: {name: plain}
spec:
  vpc: vpc-red
  cidrs: [%s]
  group: g1
  scope: host
  enis: [{name: eth1}]
`, topo.Subnet))
	return w
}

// plainPool is where the recipe's tunnel addresses come from.
const plainPool = "tunnel: {pool: 10.0.0.0/24}"

func TestPlainRecipe(t *testing.T) {
	for _, tc := range []struct {
		name                string
		handHost, handProxy bool
	}{
		{name: "both by vpcproxyd"},
		{name: "host by hand", handHost: true},
		{name: "proxy by hand", handProxy: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newPlainWorld(t)
			host, proxy := w.Hosts[0], w.Proxies[0]
			keyless := w.watch(t, w.Router, host.Name, isGRE(nil))
			if tc.handHost {
				typeLines(t, host.Machine, plainHost...)
			} else {
				w.startAgent(t, host.Machine, "function", plainPool).awaitReady(t)
			}
			if tc.handProxy {
				typeLines(t, proxy.Machine, plainProxy...)
			} else {
				w.startAgent(t, proxy.Machine, "proxy", plainPool).awaitReady(t)
			}
			answeredPlainly(t, w.testLab)
			if n, _ := keyless.Count(); n == 0 {
				t.Error("no GRE without a key was seen on the underlay")
			}
		})
	}
}
