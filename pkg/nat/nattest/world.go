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

// Host makes namespaces by name and runs functions in them; "" is the one of the
// test.
type Host interface {
	CreateNamespace(ctx context.Context, name string) error
	DeleteNamespace(ctx context.Context, name string) error
	Run(ctx context.Context, netns string, f func() error) error
}

// build makes the namespaces and removes them when the test ends. It starts few
// programs: they are slow where the kernel is emulated.
func build(t *testing.T, h Harness) {
	t.Helper()
	nodes := []node{pod, peer1, peer2, vpc}
	create(t, h.Host, Netns)
	var links, batch strings.Builder
	fmt.Fprintln(&batch, "link set lo up")
	for _, n := range nodes {
		create(t, h.Host, n.name)
		fmt.Fprintf(&links, "link add %s netns %s type veth peer name eth0 netns %s\n", n.link, Netns, n.name)
		fmt.Fprintf(&batch, "addr add %s/24 dev %s\naddr add %s/64 dev %s nodad\nlink set %s up\n", n.gate4, n.link, n.gate6, n.link, n.link)
	}
	h.Shell(t, "", ip(links.String()))
	h.Shell(t, Netns, ip(batch.String())+`
		echo 1 > /proc/sys/net/ipv4/ip_forward
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`)
	for _, n := range nodes {
		h.Shell(t, n.name, ip(fmt.Sprintf(`link set lo up
			addr add %s/24 dev eth0
			addr add %s/64 dev eth0 nodad
			link set eth0 up
			route add default via %s
			route add default via %s
		`, n.v4, n.v6, n.gate4, n.gate6)))
	}
}

func create(t *testing.T, h Host, netns string) {
	t.Helper()
	if err := h.CreateNamespace(t.Context(), netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.DeleteNamespace(context.Background(), netns); err != nil {
			t.Error(err)
		}
	})
}

// ip returns the command that runs a batch of ip commands.
func ip(batch string) string { return "ip -batch - <<-BATCH\n" + batch + "BATCH\n" }
