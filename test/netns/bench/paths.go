package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// path is one way from a pod to a server, in a lab of its own.
type path struct {
	name string
	lab  *topo.Lab
}

func (p *path) client() *topo.Machine { return p.lab.Hosts[0].Pods[0].Machine }
func (p *path) server() *topo.Machine { return p.lab.VPCs["red"].Machine }

// small is the lab of every path: the hops are the same.
var small = topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}}

// routed is the path without a tunnel and without address translation.
var routed = map[string][]string{
	"host1":   {"ip route add 172.16.101.0/24 via 192.168.80.1", "iptables -t nat -F"},
	"router":  {"ip route add 172.16.101.0/24 via 192.168.4.4"},
	"proxy1":  {"sysctl -q -w net.ipv4.ip_forward=1"},
	"vpc-red": {"ip route add 10.244.0.0/16 via 172.16.101.10"},
}

// byHand is the product's path as an operator makes it with ip and iptables:
// keyed GRE, a rule and a table for the pod, a namespace for the VPC, the same
// address translation and MSS clamps. It has none of the product's filters.
var byHand = map[string][]string{
	"host1": {
		"ip link add mgre0 type gre local 192.168.80.8 key 101 ttl 64",
		"ip address add 100.64.0.80/32 dev mgre0",
		"ip link set mgre0 up",
		"ip neigh add 100.64.0.4 lladdr 192.168.4.4 nud permanent dev mgre0",
		"ip route add 172.16.101.0/24 via 100.64.0.4 dev mgre0 onlink table 100",
		"ip route add unreachable default table 100 metric 4294967295",
		"ip rule add from 10.244.1.5 to 172.16.101.0/24 lookup 100",
		"iptables -t nat -I POSTROUTING -o mgre0 -j SNAT --to-source 100.64.0.80 --random-fully",
		"iptables -t mangle -A FORWARD -o mgre0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1432",
		"iptables -t mangle -A FORWARD -i mgre0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1432",
		"sysctl -q -w net.ipv4.conf.mgre0.rp_filter=0",
	},
	"proxy1": {
		"ip netns add red",
		"ip link add mgre0 type gre local 192.168.4.4 key 101 ttl 64",
		"ip link set mgre0 netns red",
		"ip link set eth1 netns red",
		"ip -n red address add 100.64.0.4/32 dev mgre0",
		"ip -n red link set mgre0 up",
		"ip -n red address add 172.16.101.10/24 dev eth1",
		"ip -n red link set eth1 up",
		"ip -n red neigh add 100.64.0.80 lladdr 192.168.80.8 nud permanent dev mgre0",
		"ip -n red route add 100.64.0.0/16 dev mgre0",
		"ip netns exec red sysctl -q -w net.ipv4.ip_forward=1",
		"ip netns exec red iptables -t nat -A POSTROUTING -o eth1 -j MASQUERADE --random-fully",
		"ip netns exec red iptables -t mangle -A FORWARD -i mgre0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1432",
		"ip netns exec red iptables -t mangle -A FORWARD -o mgre0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1432",
	},
}

// guards are the rules by which an operator gets from iptables and tc what the
// product promises besides: GRE from known peers with their key only, and not
// tracked; none of others to a proxy; a connection tracking zone for the VPC; no
// connection from the VPC to pods, hosts or the proxy; nothing untranslated to it.
var guards = map[string][]string{
	"host1": append(peers("192.168.80.8", "192.168.4.4"),
		"iptables -t raw -A PREROUTING -i mgre0 -j CT --zone 101",
		"iptables -t raw -A PREROUTING -s 10.244.1.5 -d 172.16.101.0/24 -j CT --zone 101",
		"iptables -A INPUT -i mgre0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"iptables -A INPUT -i mgre0 -j DROP",
		"iptables -A FORWARD -p gre -d 192.168.4.4 -j DROP",
		"iptables -A FORWARD -i mgre0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"iptables -A FORWARD -i mgre0 -j DROP",
		"iptables -A FORWARD -o mgre0 -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
	),
	"proxy1": append(peers("192.168.4.4", "192.168.80.8"),
		"iptables -A FORWARD -p gre -d 192.168.80.8 -j DROP",
		"ip netns exec red iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"ip netns exec red iptables -A INPUT -i mgre0 -j DROP",
		"ip netns exec red iptables -A INPUT -i eth1 -j DROP",
		"ip netns exec red iptables -A FORWARD -i eth1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"ip netns exec red iptables -A FORWARD -i eth1 -j DROP",
		"ip netns exec red iptables -A FORWARD -o eth1 -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
		"ip netns exec red iptables -A FORWARD -i mgre0 -o eth1 -j ACCEPT",
		"ip netns exec red iptables -A FORWARD -i mgre0 -j DROP",
		"tc -n red qdisc add dev eth1 clsact",
		"tc -n red filter add dev eth1 egress protocol ip pref 1 u32 match ip src 172.16.101.10/32 action pass",
		"tc -n red filter add dev eth1 egress protocol ip pref 2 u32 match u32 0 0 action drop",
	),
}

// peers lets one peer speak GRE to an address, with the key 101: iptables has no
// match for a key, but for a header's words.
func peers(local, peer string) []string {
	const header = "'0>>22&0x3C@0=0x20000800&&0>>22&0x3C@4=101'"
	known := "iptables -t raw -A PREROUTING -p gre ! -f -s " + peer + " -d " + local + " -m u32 --u32 " + header + " -j "
	return []string{
		known + "CT --notrack",
		known + "ACCEPT",
		"iptables -t raw -A PREROUTING -p gre -d " + local + " -j DROP",
		"iptables -t raw -A OUTPUT -p gre -s " + local + " -j CT --notrack",
	}
}

// typed makes a path out of command lines, by machine.
func typed(parts ...map[string][]string) func(context.Context, *topo.Lab, string) error {
	return func(ctx context.Context, lab *topo.Lab, _ string) error {
		for _, lines := range parts {
			for _, m := range lab.Machines() {
				if err := m.Type(ctx, lines[m.Name]...); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

const manifests = `apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: host1}
spec: {roles: [function], underlayAddress: 192.168.80.8, tunnelAddress: 100.64.0.80}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: proxy1}
spec: {roles: [proxy], underlayAddress: 192.168.4.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec: {members: [{node: proxy1}], tunnelAddress: 100.64.0.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: red}
spec: {vpc: red, cidrs: [172.16.101.0/24], group: g1, greKey: 101, pods: [10.244.1.5/32], enis: [{name: eth1}]}
`

// ours makes the path by the product, from static intent.
func ours(_ context.Context, lab *topo.Lab, files string) error { return oursWith(lab, files) }

// writeIntent writes the manifests and returns their directory.
func writeIntent(files string) (string, error) {
	intent := filepath.Join(files, "intent")
	if err := os.MkdirAll(intent, 0o755); err != nil {
		return "", err
	}
	return intent, os.WriteFile(filepath.Join(intent, "all.yaml"), []byte(manifests), 0o644)
}

// startAgent starts vpcproxyd with the lines as its configuration.
func startAgent(m *topo.Machine, files string, lines ...string) (*topo.Process, error) {
	path := filepath.Join(files, m.Name+".yaml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	return m.Start(nil, program("vpcproxyd"), "--config", path)
}

// buildPath makes a lab and a path through it, and waits until it carries.
func buildPath(ctx context.Context, files, name string, build func(context.Context, *topo.Lab, string) error) (*path, error) {
	files = filepath.Join(files, strings.ReplaceAll(name, " ", "-"))
	lab, err := topo.Build(ctx, files, small)
	if err != nil {
		return nil, err
	}
	p := &path{name: name, lab: lab}
	if err := build(ctx, lab, files); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	if err := awaitPing(ctx, p.client()); err != nil {
		return nil, errors.Join(fmt.Errorf("the path %q does not carry: %w", name, err), lab.Close())
	}
	return p, nil
}

// awaitPing waits until the server answers a ping.
func awaitPing(ctx context.Context, m *topo.Machine) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		err := traffic.Ping(attempt, m, topo.ServerAddress, 64)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}
