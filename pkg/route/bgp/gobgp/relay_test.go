//go:build !race

package gobgp

import (
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Who only passes routes on is told of none, and lists what it passes on.
func TestRelayListsWhatItPassesOn(t *testing.T) {
	port := freePort(t)
	reflector := startReflector(t, port)
	proxy, host := start(t, proxyAddr, port), start(t, hostAddr, port)
	red, blue := path(1124, 4097, "172.16.101.0/24", "192.168.4.100"), path(1124, 4098, "172.16.101.0/24", "192.168.4.100")
	if got := reflector.Received(); len(got) != 0 {
		t.Errorf("before anybody has said anything: %v", got)
	}
	announce(t, proxy, red, blue)
	for _, s := range []*Speaker{proxy, host} {
		speakWith(t, s, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	}
	eventually(t, "both routes", func() bool { return len(reflector.Received()) == 2 })
	for _, r := range reflector.Received() {
		if r.Peer != proxyAddr || r.Originator != proxyAddr || r.NextHop != red.NextHop || len(r.Targets) != 1 {
			t.Errorf("%+v", r)
		}
	}
	eventually(t, "the ends of both first updates", func() bool {
		peers, err := reflector.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(peers) == 2 && peers[0].Synced && peers[1].Synced
	})
	if got := reflector.heard.list(time.Now().Add(longest)); len(got) != 0 {
		t.Errorf("told of %v", got)
	}
	for _, err := range proxy.Withdraw(t.Context(), []bgp.NLRI{red.NLRI}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a withdrawal", func() bool { got := reflector.Received(); return len(got) == 1 && got[0].NLRI == blue.NLRI })
}
