package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// tuple is an entry's attribute with two addresses of a family.
func tuple(typ uint16, src, dst netip.Addr) []byte {
	var ip, nest, m message
	s, d := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if src.Is6() {
		s, d = ctaIPv6Src, ctaIPv6Dst
	}
	ip.attrAddr(s, src)
	ip.attrAddr(d, dst)
	nest.attr(ctaTupleIP|unix.NLA_F_NESTED, ip.b)
	m.attr(typ|unix.NLA_F_NESTED, nest.b)
	return m.b
}

func TestAddFlow(t *testing.T) {
	ip := netip.MustParseAddr
	flows := map[netip.Addr]struct{}{}
	for _, pair := range [][2]netip.Addr{{ip("100.64.0.3"), ip("172.16.101.4")}, {ip("fd00::3"), ip("fd00::4")}} {
		body := []byte{unix.AF_INET, 0, 0, 0}
		body = append(body, tuple(ctaTupleOrig, pair[0], pair[1])...)
		body = append(body, tuple(2, ip("10.9.9.9"), ip("10.9.9.10"))...) // CTA_TUPLE_REPLY
		if err := addFlow(flows, body); err != nil {
			t.Fatal(err)
		}
	}
	want := []netip.Addr{ip("100.64.0.3"), ip("172.16.101.4"), ip("fd00::3"), ip("fd00::4")}
	if got := slices.SortedFunc(maps.Keys(flows), netip.Addr.Compare); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}
