package gobgp

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// quiet is how long after a session has come up a peer that does not mark the
// end of its first update is taken to have sent it.
const quiet = 3 * time.Second

// routeID names a route of one peer.
type routeID struct {
	peer netip.Addr
	nlri bgp.NLRI
}

// session is what has been heard of one peer.
type session struct {
	up       bool
	since    time.Time
	finished bool // End-of-RIB has come for a family of VPN routes
}

func (s session) synced(now time.Time) bool {
	return s.up && (s.finished || now.Sub(s.since) >= quiet)
}

// received is everything that peers have sent. It is safe for concurrent use.
type received struct {
	changed chan struct{} // buffered, 1

	mu       sync.Mutex
	routes   map[routeID]bgp.Route
	sessions map[netip.Addr]session
	seq      uint64
}

func newReceived() *received {
	return &received{changed: make(chan struct{}, 1), routes: map[routeID]bgp.Route{}, sessions: map[netip.Addr]session{}}
}

func (r *received) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// put adds a route. One that is only said to be stale is not news.
func (r *received) put(route bgp.Route, stale bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := routeID{route.Peer, route.NLRI}
	if stale {
		if _, known := r.routes[id]; known {
			return
		}
	}
	r.seq++
	route.Seq = r.seq
	r.routes[id] = route
}

func (r *received) remove(peer netip.Addr, n bgp.NLRI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.routes, routeID{peer, n})
}

func (r *received) list() []bgp.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.routes))
}

// session notes that a session is up or down.
func (r *received) session(peer netip.Addr, up bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, known := r.sessions[peer]; known && s.up == up {
		return
	}
	r.sessions[peer] = session{up: up, since: now}
	if up {
		// Without an event, somebody must look when the wait is over.
		time.AfterFunc(quiet, r.wake)
	}
}

func (r *received) finish(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[peer]
	s.finished = true
	r.sessions[peer] = s
}

func (r *received) of(peer netip.Addr) session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[peer]
}

// all lists the sessions.
func (r *received) all(now time.Time) []bgp.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]bgp.Session, 0, len(r.sessions))
	for a, s := range r.sessions {
		out = append(out, bgp.Session{Address: a, Established: s.up, Synced: s.synced(now)})
	}
	return out
}

func (r *received) forget(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, peer)
}
