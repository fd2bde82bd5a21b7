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
	number   uint64 // of all sessions
	up       bool
	since    time.Time
	heard    time.Time    // of its last route; zero: none yet
	finished []bgp.Family // of VPN routes that End-of-RIB has come for
}

// midway tells whether the peer is in its first update of a family.
func (s session) midway(f bgp.Family, now time.Time) bool {
	return s.up && !slices.Contains(s.finished, f) && s.wait(now) > 0
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
	first uint64    // the session that it was unknown before
	heard uint64    // the session that it was heard in last
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
	number   uint64 // of the newest session
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
	r.add(heard, stale, now)
}

// heardRoute is a route as the library's table has it.
type heardRoute struct {
	bgp.Route
	stale bool
}

// take takes over the library's table of a family: what is new there or heard again
// is put, and what is missing removed. A route that it says as before is no news.
func (r *received) take(f bgp.Family, all []heardRoute, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	there := make(map[routeID]bool, len(all))
	for _, h := range all {
		id := routeID{h.Peer, h.NLRI}
		there[id] = true
		if have, known := r.routes[id]; !known || have.stale != h.stale || have.heard != r.sessions[h.Peer].number && !h.stale || !have.says(h.Route) {
			r.add(h.Route, h.stale, now)
		}
	}
	for id, have := range r.routes {
		// What the library has withdrawn before goes by its own time.
		if id.nlri.Family() == f && !there[id] && have.until.IsZero() {
			r.drop(id, now)
		}
	}
}

// says tells whether a route is told as before.
func (r route) says(o bgp.Route) bool {
	return r.Path.Equal(o.Path) && r.Originator == o.Originator && r.Reflected == o.Reflected
}

// add is put. Sessions and paths are told apart from each other: what comes before
// word of its session is left to the table, which is read at the end of the
// session's first update. It needs mu.
func (r *received) add(heard bgp.Route, stale bool, now time.Time) {
	id := routeID{heard.Peer, heard.NLRI}
	s := r.sessions[heard.Peer]
	if !s.up && !stale {
		return
	}
	if !stale && s.wait(now) > 0 {
		s.heard = now
		r.sessions[heard.Peer] = s
	}
	have, known := r.routes[id]
	if known && stale {
		have.stale = true
		r.routes[id] = have
		return
	}
	first := s.number
	if known {
		first = have.first
	}
	r.seq++
	heard.Seq = r.seq
	r.routes[id] = route{Route: heard, stale: stale, first: first, heard: s.number}
}

// remove takes a route away, unless it is one to keep for a peer that can say
// nothing now.
func (r *received) remove(peer netip.Addr, n bgp.NLRI, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(routeID{peer, n}, now)
}

// drop is remove. It needs mu.
func (r *received) drop(id routeID, now time.Time) {
	have, known := r.routes[id]
	s := r.sessions[id.peer]
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

// list leaves out what is new in a first update that has not ended. A route that
// was known before is listed as it is said now.
func (r *received) list(now time.Time) []bgp.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	type update struct {
		session uint64
		family  bgp.Family
	}
	open := map[update]bool{}
	for _, s := range r.sessions {
		for _, f := range []bgp.Family{bgp.VPNv4, bgp.VPNv6} {
			if s.midway(f, now) {
				open[update{s.number, f}] = true
			}
		}
	}
	out := make([]bgp.Route, 0, len(r.routes))
	for _, have := range r.routes {
		if len(open) == 0 || !open[update{have.first, have.Family()}] {
			out = append(out, have.Route)
		}
	}
	return out
}

// session notes that a session is up or down, and tells whether it changed: one that
// has never been up has not.
func (r *received) session(peer netip.Addr, up bool, now time.Time) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, known := r.sessions[peer]
	if known && s.up == up {
		return false
	}
	r.number++
	r.sessions[peer] = session{number: r.number, up: up, since: now}
	if up {
		time.AfterFunc(quiet, func() { r.overdue(peer, now) })
	}
	return known || up
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
	return r.of(peer).midway(f, now)
}

// anyMidway tells whether any peer is in its first update of one of the families,
// or of any if there are none, but for those that have ended.
func (r *received) anyMidway(of []bgp.Family, now time.Time, ended []end) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for peer, s := range r.sessions {
		for _, f := range []bgp.Family{bgp.VPNv4, bgp.VPNv6} {
			if !slices.Contains(ended, end{peer, f}) && (len(of) == 0 || slices.Contains(of, f)) && s.midway(f, now) {
				return true
			}
		}
	}
	return false
}

// others tells whether routes are known of a peer that is not in a first update.
func (r *received) others(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.routes {
		if s := r.sessions[id.peer]; !s.midway(id.nlri.Family(), now) {
			return true
		}
	}
	return false
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
