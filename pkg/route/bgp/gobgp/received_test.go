package gobgp

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// A peer's session broke; the library has told that its route is stale, and then,
// because an attempt to connect failed, that it is gone.
func TestKeptForTheRestartTime(t *testing.T) {
	const keep = 20 * time.Second
	peer := netip.MustParseAddr("192.168.4.4")
	other := samplePaths[0]
	other.Prefix = netip.MustParsePrefix("172.16.102.0/24")
	begin := func() *received {
		r := newReceived(keep)
		r.session(peer, true, time.Now())
		r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
		r.session(peer, false, time.Now())
		r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, true, time.Now())
		time.Sleep(time.Second)
		r.remove(peer, samplePaths[0].NLRI, time.Now())
		return r
	}
	for _, c := range []struct {
		name string
		then func(r *received)
		want int
	}{
		{"nothing for a while", func(*received) { time.Sleep(keep - 2*time.Second) }, 1},
		{"nothing for too long", func(*received) { time.Sleep(keep) }, 0},
		{"a session without a first update", func(r *received) { r.session(peer, true, time.Now()) }, 1},
		{"the first update ends without it", func(r *received) {
			r.session(peer, true, time.Now())
			r.put(bgp.Route{Path: other, Peer: peer}, false, time.Now())
			r.finish(peer, bgp.VPNv4)
		}, 1},
		{"the first update of another family", func(r *received) {
			r.session(peer, true, time.Now())
			r.finish(peer, bgp.VPNv6)
		}, 1},
		{"it is said again", func(r *received) {
			r.session(peer, true, time.Now())
			r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
			r.finish(peer, bgp.VPNv4)
			time.Sleep(keep)
		}, 1},
		{"it is said again, and withdrawn", func(r *received) {
			r.session(peer, true, time.Now())
			r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
			r.remove(peer, samplePaths[0].NLRI, time.Now())
		}, 0},
		{"the peer is a neighbor no longer", func(r *received) { r.forget(peer) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := begin()
				c.then(r)
				synctest.Wait()
				if got := r.list(time.Now()); len(got) != c.want {
					t.Errorf("%d routes, want %d", len(got), c.want)
				}
				time.Sleep(2 * keep) // timers end with the test
			})
		})
	}
}

// A goodbye is no restart: the library tells of no stale route before.
func TestNotKeptAfterAGoodbye(t *testing.T) {
	peer := netip.MustParseAddr("192.168.4.4")
	r := newReceived(20 * time.Second)
	r.session(peer, true, time.Now())
	r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
	r.session(peer, false, time.Now())
	r.remove(peer, samplePaths[0].NLRI, time.Now())
	if got := r.list(time.Now()); len(got) != 0 {
		t.Errorf("kept: %v", got)
	}
}

// A route that comes before word of its session is not taken for one of the session
// before: the table tells of it at the end of the first update, once.
func TestPathBeforeItsSession(t *testing.T) {
	peer, now := netip.MustParseAddr("192.168.4.4"), time.Now()
	said := bgp.Route{Path: samplePaths[0], Peer: peer}
	r := newReceived(20 * time.Second)
	r.put(said, false, now)
	r.session(peer, true, now)
	if got := r.list(now); len(got) != 0 {
		t.Errorf("before the end of the first update: %v", got)
	}
	r.take(bgp.VPNv4, []heardRoute{{said, false}}, now)
	r.finish(peer, bgp.VPNv4)
	if got := r.list(now); len(got) != 1 || got[0].Seq != 1 {
		t.Errorf("after its end: %v", got)
	}
}

// What a peer says in its first update is news when that has ended, or has had the
// time to.
func TestFirstUpdateIsNewsAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer := netip.MustParseAddr("192.168.4.4")
		r := newReceived(time.Minute)
		if r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("a peer without a session is in an update")
		}
		r.session(peer, true, time.Now())
		if !r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("a session that has just come up is past its first update")
		}
		r.finish(peer, bgp.VPNv6)
		if !r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("the end of another family's update was taken for that of this one's")
		}
		r.finish(peer, bgp.VPNv4)
		if r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("the end of the update was not heard")
		}
		r.session(peer, false, time.Now())
		r.session(peer, true, time.Now())
		time.Sleep(quiet / 2)
		r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
		time.Sleep(quiet / 2)
		if synctest.Wait(); !r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("a peer that goes on is taken to have ended")
		}
		time.Sleep(quiet / 2)
		synctest.Wait()
		if r.midway(peer, bgp.VPNv4, time.Now()) {
			t.Error("a peer that marks no end is waited for")
		}
		select {
		case <-r.changed:
		default:
			t.Error("nobody is told that the wait is over")
		}
	})
}

// A peer that marks no end and never stops is heard after a bounded time: what it
// withdraws must not wait for a silence.
func TestPeerThatNeverStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer := netip.MustParseAddr("192.168.4.4")
		r := newReceived(time.Minute)
		r.session(peer, true, time.Now())
		for range 11 {
			time.Sleep(time.Second)
			r.put(bgp.Route{Path: samplePaths[0], Peer: peer}, false, time.Now())
		}
		if synctest.Wait(); r.midway(peer, bgp.VPNv4, time.Now()) || !r.of(peer).synced(time.Now()) {
			t.Error("it is waited for after eleven seconds")
		}
	})
}

// What is new in a first update is listed at its end, and what was known before
// all the time: it would be gone for a moment after each break of a session.
func TestFirstUpdateIsListedAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, other := netip.MustParseAddr("192.168.4.4"), netip.MustParseAddr("192.168.4.5")
		r := newReceived(time.Minute)
		route := func(peer netip.Addr, key uint32, prefix string) bgp.Route {
			return bgp.Route{Peer: peer, Path: bgp.Path{NLRI: bgp.NLRI{RD: bgp.RouteDistinguisher{Number: key}, Prefix: netip.MustParsePrefix(prefix)}}}
		}
		put := func(p netip.Addr, key uint32) { r.put(route(p, key, "10.0.0.0/8"), false, time.Now()) }
		want := func(when string, n int) {
			t.Helper()
			if got := r.list(time.Now()); len(got) != n {
				t.Errorf("%s: %d routes, want %d", when, len(got), n)
			}
		}
		r.session(other, true, time.Now())
		r.finish(other, bgp.VPNv4)
		put(other, 1)
		r.session(peer, true, time.Now())
		put(peer, 1)
		put(peer, 1)
		r.put(route(peer, 1, "fd00::/64"), false, time.Now())
		want("midway", 1)
		r.finish(peer, bgp.VPNv6)
		want("at the end of another family", 2)
		r.finish(peer, bgp.VPNv4)
		want("at the end", 3)

		r.session(peer, false, time.Now())
		r.put(route(peer, 1, "10.0.0.0/8"), true, time.Now())
		want("without a session", 3)
		r.session(peer, true, time.Now())
		want("in another session", 3)
		put(peer, 1)
		put(peer, 2)
		want("midway in another session", 3)
		r.session(peer, false, time.Now())
		want("after a session that broke midway", 4)
		r.session(peer, true, time.Now())
		put(peer, 3)
		time.Sleep(quiet)
		want("after a silence", 5)
	})
}

func TestOthersHaveToldRoutes(t *testing.T) {
	r := newReceived(time.Minute)
	peer, other, now := netip.MustParseAddr("192.168.4.4"), netip.MustParseAddr("192.168.4.5"), time.Now()
	want := func(when string, want bool) {
		t.Helper()
		if got := r.others(now); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	put := func(peer netip.Addr) {
		r.put(bgp.Route{Peer: peer, Path: bgp.Path{NLRI: bgp.NLRI{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}, false, now)
	}
	r.session(other, true, now)
	r.finish(other, bgp.VPNv4)
	r.session(peer, true, now)
	put(peer)
	want("who is in its first update alone", false)
	put(other)
	want("another one has told a route", true)
}

// The library's table is taken over: what it says as before is no news, what is said
// again in another session is, and what has gone is removed, but for what is kept.
func TestTableIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer := netip.MustParseAddr("192.168.4.4")
		r := newReceived(time.Minute)
		route := func(key uint32, prefix string, pref uint32) heardRoute {
			return heardRoute{Route: bgp.Route{Peer: peer, Path: bgp.Path{
				NLRI: bgp.NLRI{RD: bgp.RouteDistinguisher{Number: key}, Prefix: netip.MustParsePrefix(prefix)}, LocalPref: pref,
			}}}
		}
		stale := func(h heardRoute) heardRoute { h.stale = true; return h }
		one, two, six := route(1, "10.0.0.0/8", 100), route(2, "10.0.0.0/8", 100), route(1, "fd00::/64", 100)
		take := func(what string, seq uint64, want int, all ...heardRoute) {
			t.Helper()
			r.take(bgp.VPNv4, all, time.Now())
			if got := r.list(time.Now()); r.seq != seq || len(got) != want {
				t.Errorf("%s: %d news and %d routes, want %d and %d", what, r.seq, len(got), seq, want)
			}
		}
		r.session(peer, true, time.Now())
		r.finish(peer, bgp.VPNv4)
		r.finish(peer, bgp.VPNv6)
		r.put(six.Route, false, time.Now())
		take("the first", 3, 3, one, two)
		take("as before", 3, 3, two, one)
		take("another preference", 4, 3, route(1, "10.0.0.0/8", 200), two)
		take("one less", 4, 2, two)
		r.session(peer, false, time.Now())
		take("a break", 4, 2, stale(two))
		r.session(peer, true, time.Now())
		take("not said again yet", 4, 2, stale(two))
		take("said again", 5, 2, two)
		r.session(peer, false, time.Now())
		r.session(peer, true, time.Now())
		take("said again after a break that was over at once", 6, 2, two)
		r.session(peer, false, time.Now())
		take("another break", 6, 2, stale(two))
		take("given up by the library", 6, 2)
		take("still kept", 6, 2)
		r.session(peer, true, time.Now())
		take("not said again", 6, 2)
		r.finish(peer, bgp.VPNv4)
		take("never said again", 6, 1)
		time.Sleep(2 * time.Minute) // timers end with the test
	})
}
