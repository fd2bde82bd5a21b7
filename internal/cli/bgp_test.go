package cli

import apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"

// newFakeBGP is what a function host knows that is a proxy, too.
func newFakeBGP() *apiv1.BGPResponse {
	path := func(prefix, hop string) *apiv1.BGPPath {
		return &apiv1.BGPPath{Prefix: prefix, RouteDistinguisher: "1124:4097", NextHop: hop, Encapsulation: "GRE key 4097", RouteTargets: []string{"65000:4097"}, LocalPreference: 100}
	}
	return &apiv1.BGPResponse{
		Mode: "client", Asn: 65000,
		Peers: []*apiv1.BGPPeer{
			{Address: "192.168.4.9", RouterId: "192.168.4.9", State: "established", Established: true, Synced: true, SinceUnix: 1795276800, Received: map[string]uint64{"vpnv4": 4, "rtc": 2}},
			{Address: "192.168.4.10", State: "active"},
			{Address: "192.168.80.9", State: "idle", Dynamic: true, Client: true, Flaps: 2},
		},
		Announced: []*apiv1.BGPPath{{Prefix: "172.16.101.0/24", RouteDistinguisher: "1030:7", NextHop: "192.168.4.6", Encapsulation: "GRE key 7", RouteTargets: []string{"65000:7"}}},
		Received: []*apiv1.BGPRoute{
			{Path: path("172.16.101.0/24", "192.168.4.100"), Peer: "192.168.4.9", Originator: "192.168.4.4", Accepted: true, Used: true, Attachment: "orders", Group: "blue", Preference: 1100},
			{Path: path("172.16.101.0/24", "192.168.4.5"), Peer: "192.168.4.9", Originator: "192.168.4.5", Accepted: true, Kept: true, Attachment: "orders", Group: "green", Preference: 100,
				Detail: "preference 100, and another group has 1100"},
			{Path: path("172.16.101.0/24", "192.168.80.66"), Peer: "192.168.4.9", Originator: "192.168.80.66", Reason: "next-hop",
				Detail: "192.168.80.66 is the outer address of no group of attachment orders"},
			{Path: &apiv1.BGPPath{Prefix: "100.64.0.8/32", RouteDistinguisher: "20488:0", NextHop: "192.168.80.8", Encapsulation: "GRE without a key", RouteTargets: []string{"100.64.0.2:1"}},
				Peer: "192.168.4.9", Originator: "192.168.80.8", Accepted: true, Used: true, Host: "host-a"},
		},
	}
}
