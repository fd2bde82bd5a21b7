package gobgp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	api "github.com/osrg/gobgp/v3/api"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// samplePaths are paths as this product announces them.
var samplePaths = []bgp.Path{
	{
		NLRI:          bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: 1124, Number: 4097}, Prefix: netip.MustParsePrefix("172.16.101.0/24")},
		NextHop:       netip.MustParseAddr("192.168.4.100"),
		Encapsulation: bgp.Encapsulation{GRE: true, Keyed: true, Key: 4026531841},
		Targets:       []bgp.Target{{Addr: netip.MustParseAddr("100.64.0.2"), Number: 1}, {ASN: 65000, Number: 4097}},
		LocalPref:     200,
	},
	{
		NLRI:    bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: 1, Number: 1}, Prefix: netip.MustParsePrefix("fd00:1::/48")},
		NextHop: netip.MustParseAddr("192.168.4.4"), LocalPref: 100,
	},
}

// FuzzDecodeRoute feeds what a peer has sent: a route, and its attributes one behind
// the other, each behind a byte that has its length. What is understood can be
// announced, and is understood again as the same.
func FuzzDecodeRoute(f *testing.F) {
	for _, p := range samplePaths {
		encoded, err := encodePath(p)
		if err != nil {
			f.Fatal(err)
		}
		var attributes []byte
		for _, a := range encoded.PattrsBinary {
			attributes = append(append(attributes, byte(len(a))), a...)
		}
		f.Add(encoded.NlriBinary, attributes, p.Family() == bgp.VPNv6)
	}
	f.Fuzz(func(t *testing.T, nlri, attributes []byte, six bool) {
		p := &api.Path{Family: &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_MPLS_VPN}, NlriBinary: nlri, NeighborIp: "192.168.4.1", SourceId: "192.168.4.9"}
		if six {
			p.Family.Afi = api.Family_AFI_IP6
		}
		for len(attributes) > 0 {
			n := min(int(attributes[0]), len(attributes)-1)
			p.PattrsBinary = append(p.PattrsBinary, attributes[1:n+1])
			attributes = attributes[n+1:]
		}
		r, err := decodeRoute(p)
		if err != nil {
			return
		}
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4() == six {
			t.Fatalf("%+v has the prefix %v", r, r.Prefix)
		}
		if !slices.IsSortedFunc(r.Targets, bgp.Target.Compare) {
			t.Errorf("targets %v are not sorted", r.Targets)
		}
		if !r.NextHop.IsValid() {
			return // believed by nobody, and cannot be announced
		}
		encoded, err := encodePath(r.Path)
		if err != nil {
			t.Fatalf("%+v cannot be announced: %v", r.Path, err)
		}
		encoded.NeighborIp, encoded.SourceId = p.NeighborIp, p.SourceId
		again, err := decodeRoute(encoded)
		if err != nil {
			t.Fatalf("%+v cannot be read again: %v", r.Path, err)
		}
		if r.LocalPref == 0 {
			again.LocalPref = 0 // sent as the default
		}
		if d := cmp.Diff(r.Path, again.Path, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); d != "" {
			t.Error(d)
		}
	})
}
