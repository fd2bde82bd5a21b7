package netns

import (
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

// plainLayout is the recipe's world: one host, one proxy, one VPC.
var plainLayout = topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}}

func TestPlainRecipeByHand(t *testing.T) {
	lab := newLab(t, plainLayout)
	host, pod, proxy := lab.Hosts[0], lab.Hosts[0].Pods[0], lab.Proxies[0]
	unreachable(t, pod.Machine, topo.ServerAddress)
	typeLines(t, host.Machine, plainHost...)
	typeLines(t, proxy.Machine, plainProxy...)
	seen := proxy.ENIs["red"].Address.Addr()
	for _, m := range []*topo.Machine{host.Machine, pod.Machine} {
		answeredBy(t, m, topo.ServerAddress, "red", seen)
		if err := traffic.Ping(t.Context(), m, topo.ServerAddress, 1476); err != nil {
			t.Errorf("the largest packet: %v", err)
		}
	}
}
