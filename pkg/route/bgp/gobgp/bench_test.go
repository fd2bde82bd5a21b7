//go:build !race

package gobgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// BenchmarkFirstUpdate is a peer's first update to its end, with the peer in the
// same process. What grows faster than the number of routes shows here.
func BenchmarkFirstUpdate(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				firstUpdate(b, n)
			}
		})
	}
}

// firstUpdate has the timer run while the host hears so many routes.
func firstUpdate(b *testing.B, n int) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(proxyAddr, 0).String())
	if err != nil {
		b.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	begin := func(local netip.Addr, listen bool) *Speaker {
		s, err := New(bgp.Options{
			ASN: asn, RouterID: local, Local: local, Port: port, Listen: listen, HoldTime: 9 * time.Second,
			GracefulRestart: 10 * time.Second, MaxPrefixes: 100_000,
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	proxy, host := begin(proxyAddr, true), begin(hostAddr, false)
	defer func() { _, _ = host.Leave(context.Background()), proxy.Leave(context.Background()) }()
	var paths []bgp.Path
	for i := range uint32(n) {
		paths = append(paths, path(1, 1+i, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&0xff), "192.168.4.100"))
	}
	for _, err := range proxy.Announce(b.Context(), paths) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, err := range []error{
		host.SetInterest(b.Context(), bgp.Interest{All: true}),
		proxy.SetNeighbors(b.Context(), bgp.Neighbors{Peers: []bgp.Peer{{Address: hostAddr, Passive: true}}}),
		host.SetNeighbors(b.Context(), bgp.Neighbors{Peers: []bgp.Peer{{Address: proxyAddr}}}),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
	for !host.heard.of(proxyAddr).up {
		time.Sleep(time.Millisecond)
	}
	b.StartTimer()
	for host.heard.midway(proxyAddr, bgp.VPNv4, time.Now()) {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	if got := len(host.Received()); got != n {
		b.Errorf("%d routes, want %d", got, n)
	}
}
