// Package nattest holds the contract that every nat.Backend keeps, checked with
// real packets.
//
// The machine under test is a network namespace that forwards between four
// others:
//
//	pod 10.244.1.5 ── pod0 ┌─────────┐ vpx-c1 ── peer1 10.8.1.2   a tunnel's far end
//	                       │ vpx-nat │ vpx-c2 ── peer2 10.8.2.2   another tunnel's
//	                       └─────────┘ eth1 ──── vpc   172.16.101.5
//
// The machine's address on a link ends in .1, and the same holds for IPv6, with
// fd00:N::/64 for link N.
package nattest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// Netns is the namespace of the machine under test.
const Netns = "vpx-nat"

// node is a namespace beside the machine under test.
type node struct {
	name  string
	link  string // on the machine under test
	v4    netip.Addr
	v6    netip.Addr
	gate4 netip.Addr // the machine under test
	gate6 netip.Addr
}

func newNode(n int, name, link, addr4 string) node {
	v4 := netip.MustParseAddr(addr4)
	b := v4.As4()
	b[3] = 1
	return node{
		name: name, link: link,
		v4: v4, gate4: netip.AddrFrom4(b),
		v6:    netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", n)),
		gate6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", n)),
	}
}

var (
	pod   = newNode(1, "pod", "pod0", "10.244.1.5")
	peer1 = newNode(2, "peer1", "vpx-c1", "10.8.1.2")
	peer2 = newNode(3, "peer2", "vpx-c2", "10.8.2.2")
	vpc   = newNode(4, "vpc", "eth1", "172.16.101.5")
)

// Host runs functions in namespaces by name; "" is the one of the test.
type Host interface {
	Run(ctx context.Context, netns string, f func() error) error
}

// build makes the namespaces and removes them when the test ends.
func build(t *testing.T, h Harness) {
	t.Helper()
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	nodes := []node{pod, peer1, peer2, vpc}
	say("ip netns add %s", Netns)
	say("ip -n %s link set lo up", Netns)
	for _, n := range nodes {
		say("ip netns add %s", n.name)
		say("ip link add %s netns %s type veth peer name eth0 netns %s", n.link, Netns, n.name)
		say("ip -n %s addr add %s/24 dev %s", Netns, n.gate4, n.link)
		say("ip -n %s addr add %s/64 dev %s nodad", Netns, n.gate6, n.link)
		say("ip -n %s link set %s up", Netns, n.link)
		say("ip -n %s addr add %s/24 dev eth0", n.name, n.v4)
		say("ip -n %s addr add %s/64 dev eth0 nodad", n.name, n.v6)
		say("ip -n %s link set lo up", n.name)
		say("ip -n %s link set eth0 up", n.name)
		say("ip -n %s route add default via %s", n.name, n.gate4)
		say("ip -n %s route add default via %s", n.name, n.gate6)
	}
	say("ip netns exec %s sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", Netns)
	t.Cleanup(func() {
		for _, n := range append(nodes, node{name: Netns}) {
			h.Shell(t, "ip netns del "+n.name)
		}
	})
	h.Shell(t, b.String())
}
