package gobgp

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// A peer that does not mark the end of its first update is taken to have sent it
// when it has said nothing for quiet, or after longest: what it withdraws meanwhile
// is not heard before.
const (
	quiet   = 3 * time.Second
	longest = 10 * time.Second
)

// routeID names a route of one peer.
type routeID struct {
	peer netip.Addr
	nlri bgp.NLRI
}

// session is what has been heard of one peer.
type session struct {
	up       bool
	since    time.Time
	heard    time.Time    // of its last route; zero: none yet
	finished []bgp.Family // of VPN routes that End-of-RIB has come for
}

func (s session) synced(now time.Time) bool {
	return s.up && (len(s.finished) > 0 || s.wait(now) <= 0)
}

// wait is how long the end of a first update that is not marked is waited for, if
// nothing comes.
func (s session) wait(now time.Time) time.Duration {
	last := s.since
	if s.heard.After(last) {
		last = s.heard
	}
	return min(last.Add(quiet).Sub(now), s.since.Add(longest).Sub(now))
}

// route is what a peer has sent, and what has become of it.
type route struct {
	bgp.Route
	stale bool      // kept for a peer whose session broke without a goodbye
	until time.Time // when it goes, withdrawn while it was kept; zero: it was not
}

// received is everything that peers have sent. It is safe for concurrent use.
//
// A peer that restarts, or is cut off for a moment, has its routes kept for the
// restart time (RFC 4724 section 4.2). The library ends that at the first attempt
// to connect that fails behind the connection, as when the peer is in its own pause
// after the same break; here it does not end before its time, or before the
// peer's next first update has ended.
type received struct {
	changed chan struct{} // buffered, 1
	keep    time.Duration // the restart time

	mu       sync.Mutex
	routes   map[routeID]route
	sessions map[netip.Addr]session
	seq      uint64
}

func newReceived(keep time.Duration) *received {
	return &received{changed: make(chan struct{}, 1), keep: keep, routes: map[routeID]route{}, sessions: map[netip.Addr]session{}}
}

func (r *received) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// put adds a route. One that is only said to be stale is not news.
func (r *received) put(heard bgp.Route, stale bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := routeID{heard.Peer, heard.NLRI}
	if s := r.sessions[heard.Peer]; s.up && !stale && s.wait(now) > 0 {
		s.heard = now
		r.sessions[heard.Peer] = s
	}
	if have, known := r.routes[id]; known && stale {
		have.stale = true
		r.routes[id] = have
		return
	}
	r.seq++
	heard.Seq = r.seq
	r.routes[id] = route{Route: heard, stale: stale}
}

// remove takes a route away, unless it is one to keep for a peer that can say
// nothing now.
func (r *received) remove(peer netip.Addr, n bgp.NLRI, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := routeID{peer, n}
	have, known := r.routes[id]
	s := r.sessions[peer]
	until := s.since.Add(r.keep)
	if !known || !have.stale || s.up || !now.Before(until) {
		delete(r.routes, id)
		return
	}
	if have.until.IsZero() {
		have.until = until
		r.routes[id] = have
		time.AfterFunc(until.Sub(now), func() { r.expire(id) })
	}
}

// expire ends the keeping of a route that has not been heard again.
func (r *received) expire(id routeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if until := r.routes[id].until; !until.IsZero() && !time.Now().Before(until) {
		delete(r.routes, id)
		r.wake()
	}
}

func (r *received) list() []bgp.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]bgp.Route, 0, len(r.routes))
	for _, have := range r.routes {
		out = append(out, have.Route)
	}
	return out
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
		time.AfterFunc(quiet, func() { r.overdue(peer, now) })
	}
}

// overdue wakes whoever looks when a session's first update is taken to have ended:
// there is no event then.
func (r *received) overdue(peer netip.Addr, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[peer]
	if !s.up || !s.since.Equal(since) {
		return // another session by now
	}
	if rest := s.wait(time.Now()); rest > 0 {
		time.AfterFunc(rest, func() { r.overdue(peer, since) })
		return
	}
	r.wake()
}

// finish notes the end of a peer's first update of a family: what was kept of it,
// and not said again, is no more.
func (r *received) finish(peer netip.Addr, f bgp.Family) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[peer]
	if !slices.Contains(s.finished, f) {
		s.finished = append(slices.Clone(s.finished), f)
	}
	r.sessions[peer] = s
	for id, have := range r.routes {
		if id.peer == peer && id.nlri.Family() == f && !have.until.IsZero() {
			delete(r.routes, id)
		}
	}
}

// midway tells whether a peer is in its first update of a family: half of that is no
// news, and judging it again and again would put off its end.
func (r *received) midway(peer netip.Addr, f bgp.Family, now time.Time) bool {
	s := r.of(peer)
	return s.up && !slices.Contains(s.finished, f) && s.wait(now) > 0
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
	for id, have := range r.routes {
		if id.peer == peer && !have.until.IsZero() {
			delete(r.routes, id)
		}
	}
}
