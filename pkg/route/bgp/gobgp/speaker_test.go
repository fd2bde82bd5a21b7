//go:build !race

// The library serializes attributes that its goroutines share, and notes their
// lengths while it does (TunnelEncapSubTLV.Serialize): always the same ones, but
// the race detector cannot know. make test-unit runs this package without it.

//go:debug multipathtcp=0
package gobgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

var (
	reflectorAddr = netip.MustParseAddr("127.0.0.91")
	proxyAddr     = netip.MustParseAddr("127.0.0.92")
	hostAddr      = netip.MustParseAddr("127.0.0.93")
	loopback      = netip.MustParsePrefix("127.0.0.0/24")
)

const asn = 65000

// limit is what a session takes at most here; the library waits up to 2 s
// before it connects for the first time.
const limit = 30 * time.Second

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// freePort returns a port that nobody listens at on any loopback address.
func freePort(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func start(t *testing.T, local netip.Addr, port uint16, change ...func(*bgp.Options)) *Speaker {
	t.Helper()
	o := bgp.Options{ASN: asn, RouterID: local, Local: local, Port: port, HoldTime: 9 * time.Second, GracefulRestart: 10 * time.Second}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Leave(context.Background()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func listening(o *bgp.Options) { o.Listen = true }

// startReflector starts one with the whole of loopback as clients.
func startReflector(t *testing.T, port uint16, change ...func(*bgp.Options)) *Speaker {
	t.Helper()
	s := start(t, reflectorAddr, port, append(change, listening, func(o *bgp.Options) { o.Reflector, o.Relay = true, true })...)
	if err := s.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	speakWith(t, s, bgp.Neighbors{Ranges: []bgp.Range{{Prefix: loopback, Client: true}}})
	return s
}

// A neighbor that were answered and hung up on would not call again for seconds.
func TestNobodyIsAnsweredBeforeThereAreNeighbors(t *testing.T) {
	port := freePort(t)
	s := start(t, proxyAddr, port, listening)
	announce(t, s, samplePaths[0])
	target := net.TCPAddrFromAddrPort(netip.AddrPortFrom(proxyAddr, port)).String()
	if c, err := net.Dial("tcp", target); err == nil {
		_ = c.Close()
		t.Error("a speaker without neighbors has taken a call")
	}
	speakWith(t, s, bgp.Neighbors{Ranges: []bgp.Range{{Prefix: loopback}}})
	c, err := net.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	host := start(t, hostAddr, port)
	if err := host.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: proxyAddr}}})
	eventually(t, "what was announced before there were neighbors", func() bool { return len(host.Received()) == 1 })
}

func speakWith(t *testing.T, s *Speaker, n bgp.Neighbors) {
	t.Helper()
	if err := s.SetNeighbors(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func announce(t *testing.T, s *Speaker, paths ...bgp.Path) {
	t.Helper()
	for _, err := range s.Announce(t.Context(), paths) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// peerOf returns a speaker's only peer.
func peerOf(t *testing.T, s *Speaker) bgp.PeerStatus {
	t.Helper()
	list, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return bgp.PeerStatus{}
	}
	return list[0]
}

func texts(routes []bgp.Route) string {
	var out []string
	for _, r := range routes {
		out = append(out, fmt.Sprintf("%s via %s %s %v pref %d from %s by %s", r.NLRI, r.NextHop, r.Encapsulation, r.Targets, r.LocalPref, r.Originator, r.Peer))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func path(rd uint16, key uint32, dst, hop string) bgp.Path {
	return bgp.Path{
		NLRI:          bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: rd, Number: key}, Prefix: prefix(dst)},
		NextHop:       netip.MustParseAddr(hop),
		Encapsulation: bgp.Encapsulation{GRE: true, Keyed: true, Key: key},
		Targets:       []bgp.Target{{ASN: asn, Number: key}},
	}
}

// A proxy's routes reach a function host through a reflector, those only that
// it asks for, with all that they say, and change as they change.
func TestReflection(t *testing.T) {
	port := freePort(t)
	reflector := startReflector(t, port)
	proxy, host := start(t, proxyAddr, port), start(t, hostAddr, port)

	red, blue := path(1124, 4097, "172.16.101.0/24", "192.168.4.100"), path(1124, 4098, "172.16.101.0/24", "192.168.4.100")
	red6 := path(1124, 4097, "fd00:101::/64", "192.168.4.100")
	red6.LocalPref = 200
	own := bgp.Path{
		NLRI: bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: 7}, Prefix: prefix("100.64.0.9/32")}, NextHop: hostAddr,
		Encapsulation: bgp.Encapsulation{GRE: true}, Targets: []bgp.Target{{Addr: netip.MustParseAddr("100.64.0.2"), Number: 1}},
	}
	announce(t, proxy, red, blue, red6)
	announce(t, host, own)
	want := bgp.Interest{Targets: red.Targets}
	if err := host.SetInterest(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := proxy.SetInterest(t.Context(), bgp.Interest{Targets: own.Targets}); err != nil {
		t.Fatal(err)
	}
	speakWith(t, proxy, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})

	const redText = "1124:4097:172.16.101.0/24 via 192.168.4.100 GRE key 4097 [65000:4097] pref 100 from 127.0.0.92 by 127.0.0.91"
	const red6Text = "1124:4097:fd00:101::/64 via 192.168.4.100 GRE key 4097 [65000:4097] pref 200 from 127.0.0.92 by 127.0.0.91"
	hears := func(s *Speaker, want ...string) {
		t.Helper()
		eventually(t, strings.Join(want, "\n"), func() bool { return texts(s.Received()) == strings.Join(want, "\n") })
	}
	hears(host, redText, red6Text)
	hears(proxy, "7:0:100.64.0.9/32 via 127.0.0.93 GRE without a key [100.64.0.2:1] pref 100 from 127.0.0.93 by 127.0.0.91")
	eventually(t, "status", func() bool {
		p := peerOf(t, host)
		return p.Established && p.Synced && p.Address == reflectorAddr && p.RouterID == reflectorAddr && !p.Dynamic && !p.Since.IsZero() &&
			slices.Contains(p.Families, bgp.FamilyStatus{Family: bgp.VPNv4, Received: 1})
	})
	// What others ask for is the reflector's business alone.
	if p := peerOf(t, proxy); !slices.Contains(p.Families, bgp.FamilyStatus{Family: bgp.RouteTargetRoute, Received: 1}) {
		t.Errorf("the reflector asks for %+v", p.Families)
	}
	if p := peerOf(t, reflector); !p.Dynamic || !p.Client {
		t.Errorf("the reflector says of its client: %+v", p)
	}

	red.Encapsulation.Key = 5
	announce(t, proxy, red)
	hears(host, strings.Replace(redText, "GRE key 4097", "GRE key 5", 1), red6Text)
	if errs := proxy.Withdraw(t.Context(), []bgp.NLRI{red6.NLRI, red6.NLRI}); errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	hears(host, strings.Replace(redText, "GRE key 4097", "GRE key 5", 1))
	want.Targets = blue.Targets
	if err := host.SetInterest(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	blueText := strings.ReplaceAll(redText, "4097", "4098")
	hears(host, blueText)
	if err := proxy.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	hears(host, "")
}

// All that is announced before the first peer is in its first update: when
// that has ended, nothing is missing.
func TestFirstUpdateIsComplete(t *testing.T) {
	const n = 500
	port := freePort(t)
	proxy, host := start(t, proxyAddr, port, listening), start(t, hostAddr, port)
	var paths []bgp.Path
	for i := range uint32(n) {
		paths = append(paths, path(1, 1+i, "10.0.0.0/8", "192.168.4.100"))
	}
	announce(t, proxy, paths...)
	if err := host.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	speakWith(t, proxy, bgp.Neighbors{Peers: []bgp.Peer{{Address: hostAddr, Passive: true}}})
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: proxyAddr}}})
	eventually(t, "the end of the first update", func() bool { return slices.Contains(host.heard.of(proxyAddr).finished, bgp.VPNv4) })
	if got := len(host.Received()); got != n {
		t.Errorf("%d routes at the end of the first update, want %d", got, n)
	}
	select {
	case <-host.Changes():
	default:
		t.Error("nobody was told of a change")
	}
	for _, r := range host.Received() {
		if r.Reflected || r.Originator != proxyAddr || r.Seq == 0 {
			t.Fatalf("%+v", r)
		}
	}
}

// A reflector takes routes to attachments only from those who may announce
// them, so that none of anybody else's hides them.
func TestReflectorRefusesStrangers(t *testing.T) {
	port := freePort(t)
	startReflector(t, port, func(o *bgp.Options) { o.Announcers = []netip.Prefix{netip.PrefixFrom(proxyAddr, 32)} })
	proxy, host := start(t, proxyAddr, port), start(t, hostAddr, port)
	for _, s := range []*Speaker{proxy, host} {
		if err := s.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	good := path(1124, 4097, "172.16.101.0/24", "192.168.4.100")
	hostile := good
	hostile.LocalPref, hostile.NextHop = 1000, hostAddr
	own := bgp.Path{
		NLRI: bgp.NLRI{Prefix: prefix("100.64.0.9/32")}, NextHop: hostAddr, Targets: []bgp.Target{{Addr: netip.MustParseAddr("100.64.0.2"), Number: 1}},
	}
	announce(t, host, hostile, own)
	announce(t, proxy, good)
	for _, s := range []*Speaker{host, proxy} {
		speakWith(t, s, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	}
	eventually(t, "the good routes", func() bool { return len(host.Received()) == 1 && len(proxy.Received()) == 1 })
	if r := host.Received()[0]; r.NLRI != good.NLRI || r.NextHop != good.NextHop {
		t.Errorf("reflected: %+v", r)
	}
	if r := proxy.Received()[0]; r.NLRI != own.NLRI {
		t.Errorf("reflected: %+v", r)
	}
}

// A session needs the right password and comes from near enough.
func TestSessionsAreGuarded(t *testing.T) {
	port := freePort(t)
	guard := func(password string, hops uint8) func(*bgp.Options) {
		return func(o *bgp.Options) { o.Password, o.Hops = password, hops }
	}
	reflector := start(t, reflectorAddr, port, listening, guard("secret", 1))
	speakWith(t, reflector, bgp.Neighbors{Peers: []bgp.Peer{{Address: hostAddr, Passive: true}}, Ranges: []bgp.Range{{Prefix: netip.PrefixFrom(proxyAddr, 32)}}})
	proxy, host := start(t, proxyAddr, port, guard("secret", 1)), start(t, hostAddr, port, guard("secret", 1))
	wrong := start(t, netip.MustParseAddr("127.0.0.94"), port, guard("guess", 1))
	for _, s := range []*Speaker{wrong, proxy, host} {
		speakWith(t, s, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	}
	eventually(t, "sessions with the password", func() bool { return peerOf(t, proxy).Established && peerOf(t, host).Established })
	if p := peerOf(t, wrong); p.Established || p.Synced {
		t.Errorf("a session with the wrong password: %+v", p)
	}
}

func TestUnencodable(t *testing.T) {
	s := start(t, proxyAddr, freePort(t))
	good := path(1, 1, "10.0.0.0/8", "192.168.4.100")
	bad := func(change func(*bgp.Path)) bgp.Path { p := good; change(&p); return p }
	errs := s.Announce(t.Context(), []bgp.Path{
		bad(func(p *bgp.Path) { p.Prefix = prefix("10.0.0.1/8") }),
		bad(func(p *bgp.Path) { p.NextHop = netip.Addr{} }),
		bad(func(p *bgp.Path) { p.Targets = []bgp.Target{{Addr: netip.MustParseAddr("fd00::1")}} }),
		bad(func(p *bgp.Path) { p.Targets = []bgp.Target{{Addr: proxyAddr, Number: 1 << 16}} }),
		good,
	})
	for i, text := range []string{"host bits", "next hop", "IPv4", "65536"} {
		if errs[i] == nil || !strings.Contains(errs[i].Error(), text) {
			t.Errorf("%d: %v", i, errs[i])
		}
	}
	if got := s.Announced(); errs[4] != nil || len(got) != 1 || !got[0].Equal(good) {
		t.Errorf("%v, %v", errs[4], got)
	}
	for _, o := range []bgp.Options{{RouterID: proxyAddr}, {ASN: 1}, {ASN: 1, RouterID: netip.IPv6Loopback()}, {ASN: 1, RouterID: proxyAddr, HoldTime: time.Second}} {
		if _, err := New(o, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// A peer that sends more routes than it may is not listened to, and one that
// sends as many is.
func TestPeerThatSendsTooMuch(t *testing.T) {
	port := freePort(t)
	proxy := start(t, proxyAddr, port, listening)
	speakWith(t, proxy, bgp.Neighbors{Ranges: []bgp.Range{{Prefix: loopback}}})
	host := start(t, hostAddr, port, func(o *bgp.Options) { o.MaxPrefixes = 2 })
	if err := host.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	announce(t, proxy, path(1, 1, "10.0.0.0/8", "192.168.4.100"), path(1, 2, "10.0.0.0/8", "192.168.4.100"))
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: proxyAddr}}})
	eventually(t, "as many routes as are allowed", func() bool { return len(host.Received()) == 2 })
	time.Sleep(2 * limitEvery)
	if !peerOf(t, host).Established {
		t.Fatal("a session ended that had no more routes than are allowed")
	}
	announce(t, proxy, path(1, 3, "10.0.0.0/8", "192.168.4.100"))
	eventually(t, "the end of the session", func() bool { return !peerOf(t, host).Established && len(host.Received()) == 0 })
	time.Sleep(4 * connectRetry)
	if peerOf(t, host).Established || len(host.Received()) != 0 {
		t.Error("it is listened to again")
	}
}

// Whoever wants everything is sent it once, and what it wants later changes nothing
// of that: more than it asks for does no harm.
func TestEverythingIsSentOnce(t *testing.T) {
	port := freePort(t)
	startReflector(t, port)
	proxy, host := start(t, proxyAddr, port), start(t, hostAddr, port)
	red, blue := path(1124, 4097, "172.16.101.0/24", "192.168.4.100"), path(1124, 4098, "172.16.101.0/24", "192.168.4.100")
	announce(t, proxy, red, blue)
	speakWith(t, proxy, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	eventually(t, "the reflector's peer", func() bool { return peerOf(t, proxy).Synced })
	if err := host.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: reflectorAddr}}})
	heard := func() (newest uint64) {
		for _, r := range host.Received() {
			newest = max(newest, r.Seq)
		}
		return newest
	}
	eventually(t, "the end of the first update", func() bool { return slices.Contains(host.heard.of(reflectorAddr).finished, bgp.VPNv4) })
	if len(host.Received()) != 2 || heard() != 2 {
		t.Errorf("%d routes were heard %d times", len(host.Received()), heard())
	}
	if err := host.SetInterest(t.Context(), bgp.Interest{Targets: red.Targets}); err != nil {
		t.Fatal(err)
	}
	red.LocalPref = 7
	announce(t, proxy, red)
	eventually(t, "a change of what is asked for", func() bool { return heard() == 3 && len(host.Received()) == 2 })
	if p := peerOf(t, host); !p.Established || p.Flaps != 0 {
		t.Errorf("the session was ended: %+v", p)
	}
}

// During one peer's first update others are heard, though later, and at once when it
// has ended.
func TestOthersAreHeardDuringAFirstUpdate(t *testing.T) {
	port := freePort(t)
	proxy, host := start(t, proxyAddr, port, listening), start(t, hostAddr, port)
	if err := host.SetInterest(t.Context(), bgp.Interest{All: true}); err != nil {
		t.Fatal(err)
	}
	red := path(1, 1, "10.0.0.0/8", "192.168.4.100")
	announce(t, proxy, red)
	speakWith(t, proxy, bgp.Neighbors{Peers: []bgp.Peer{{Address: hostAddr, Passive: true}}})
	speakWith(t, host, bgp.Neighbors{Peers: []bgp.Peer{{Address: proxyAddr}}})
	eventually(t, "the first route", func() bool { return len(host.Received()) == 1 })
	following := func() bool {
		host.taking.Lock()
		defer host.taking.Unlock()
		return host.unwatch != nil
	}
	eventually(t, "the end of the first update", following)
	within := func(what string, d time.Duration, pref uint32) {
		t.Helper()
		red.LocalPref = pref
		begin := time.Now()
		announce(t, proxy, red)
		eventually(t, what, func() bool { return host.Received()[0].LocalPref == pref })
		if took := time.Since(begin); took > d {
			t.Errorf("%s after %v", what, took)
		}
	}
	within("a change", lookEvery/2, 7)
	host.session(netip.MustParseAddr("127.0.0.99"), true, time.Now())
	if following() {
		t.Error("paths are followed during a first update")
	}
	within("a change during another's first update", 2*lookEvery, 8)
	eventually(t, "that a peer is not waited for any more", following)
	within("a change after it", lookEvery/2, 9)
}
