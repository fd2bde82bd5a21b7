package intent_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// large is 1,000 function hosts, 50 proxies and 5,000 attachments of a pod each.
func large() *intent.Set {
	s := &intent.Set{}
	for i := range 1000 {
		s.Nodes = append(s.Nodes, node(fmt.Sprintf("f%04d", i), fmt.Sprintf("192.168.%d.%d", i/250, 1+i%250), intent.RoleFunction, func(n *intent.Node) {
			n.Spec.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)}
		}))
	}
	for i := range 50 {
		p := fmt.Sprintf("p%02d", i)
		s.Nodes = append(s.Nodes, node(p, fmt.Sprintf("192.168.100.%d", 1+i), intent.RoleProxy))
		s.Groups = append(s.Groups, group(fmt.Sprintf("g%02d", i), p))
	}
	for i := range 5000 {
		s.Attachments = append(s.Attachments, attachment(fmt.Sprintf("a%04d", i), in(fmt.Sprintf("g%02d", i%50)),
			pods(fmt.Sprintf("10.%d.%d.%d/32", i%1000/250, i%250, 1+i/1000)), eni(intent.ENI{Name: fmt.Sprintf("eth%d", i)}), keyed(uint32(i+1)))) //nolint:gosec // small
	}
	return s
}

func BenchmarkVisibleToFunctionHost(b *testing.B) {
	s := large()
	for b.Loop() {
		if n := len(s.Visible("f0001").Attachments); n != 5 {
			b.Fatalf("%d attachments", n)
		}
	}
}

func BenchmarkVisibleToProxy(b *testing.B) {
	s := large()
	for b.Loop() {
		if n := len(s.Visible("p01").Attachments); n != 100 {
			b.Fatalf("%d attachments", n)
		}
	}
}

func BenchmarkCheckAttachment(b *testing.B) {
	s := large()
	a := attachment("new", in("g01"), pods("10.1.1.200/32"), eni(intent.ENI{Name: "new"}))
	for b.Loop() {
		if _, err := s.Check(a); err != nil {
			b.Fatal(err)
		}
	}
}
