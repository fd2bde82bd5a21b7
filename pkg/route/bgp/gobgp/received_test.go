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
				if got := r.list(); len(got) != c.want {
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
	if got := r.list(); len(got) != 0 {
		t.Errorf("kept: %v", got)
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
