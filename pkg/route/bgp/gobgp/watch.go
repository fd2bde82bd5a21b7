package gobgp

import (
	"context"
	"errors"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// lookEvery is how often the library's table is read while paths are not followed
// one by one: how late news of others may be during a peer's first update.
const lookEvery = time.Second

// lookShare is how many times as long as reading the table took, the next reading is
// put off at least.
const lookShare = 4

// endsTogether is how long the end of a first update waits for that of another
// family, which mostly follows at once, before the table is read for it alone.
const endsTogether = 50 * time.Millisecond

// end is the end of a peer's first update of a family.
type end struct {
	peer   netip.Addr
	family bgp.Family
}

// watch follows the library for as long as the process lives: ctx may end before,
// see Run. The library tells of each path at five times the cost of
// reading its table, so that a first update, thousands of paths, is read from there
// at its end, and the paths of all peers are followed from then on. Where sessions
// come by the thousand, to who listens, each path is followed all the time; but not
// by a relay, whom that would cost as much as passing them on.
func (s *Speaker) watch(ctx context.Context) error {
	filters := []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_EOR}}
	if s.opts.Listen && !s.opts.Relay {
		filters = append(filters, &api.WatchEventRequest_Table_Filter{Type: api.WatchEventRequest_Table_Filter_POST_POLICY})
	}
	err := s.server.WatchEvent(context.WithoutCancel(ctx), &api.WatchEventRequest{
		Peer:  &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: filters},
	}, s.event)
	if err != nil || s.steady() {
		return err
	}
	s.taking.Lock()
	defer s.taking.Unlock()
	s.resume()
	return nil
}

// steady tells whether first updates make no difference: paths are always told of, or
// never.
func (s *Speaker) steady() bool { return s.opts.Listen || s.opts.Relay }

// event takes over what the library has heard.
func (s *Speaker) event(e *api.WatchEventResponse) {
	news, now := false, time.Now()
	if p := e.GetPeer(); p != nil && p.Type != api.WatchEventResponse_PeerEvent_END_OF_INIT {
		if addr, err := netip.ParseAddr(p.GetPeer().GetState().GetNeighborAddress()); err == nil {
			s.session(addr, p.Peer.State.SessionState == api.PeerState_ESTABLISHED, now)
			news = true
		}
	}
	for _, p := range e.GetTable().GetPaths() {
		news = s.path(p, now) || news
	}
	if news {
		s.heard.wake()
	}
}

// session notes that a session is up, when a first update begins, or down.
func (s *Speaker) session(peer netip.Addr, up bool, now time.Time) {
	s.taking.Lock()
	defer s.taking.Unlock()
	if len(s.ends) > 0 { // of the session before, if they are this peer's
		s.settle(now)
	}
	switch changed := s.heard.session(peer, up, now); {
	case changed && up:
		s.log.Info("BGP session established", "peer", peer)
	case changed:
		s.log.Warn("BGP session lost", "peer", peer)
	}
	switch {
	case s.steady():
	case s.unwatch == nil:
		s.settle(now)
	case up:
		s.unwatch()
		s.unwatch = nil
		go s.look()
	}
}

// follow takes over paths alone, of which no first update ends.
func (s *Speaker) follow(e *api.WatchEventResponse) {
	news, now := false, time.Now()
	for _, p := range e.GetTable().GetPaths() {
		if p.Nlri != nil {
			news = s.path(p, now) || news
		}
	}
	if news {
		s.heard.wake()
	}
}

// path takes over a path, and tells whether it is news. An End-of-RIB must not come
// with taking held.
func (s *Speaker) path(p *api.Path, now time.Time) bool {
	peer, err := netip.ParseAddr(p.NeighborIp)
	family := familyOf(p.Family)
	if err != nil || family == "" || family == bgp.RouteTargetRoute {
		return false // our own, or none that becomes a route
	}
	if p.Nlri == nil { // End-of-RIB
		return s.finish(peer, family, now)
	}
	if p.IsWithdraw {
		if n, err := decodeNLRI(p); err == nil {
			s.heard.remove(peer, n, now)
		}
	} else if r, err := s.decode(p); err == nil {
		s.heard.put(r, p.Stale, now)
	}
	return !s.heard.midway(peer, family, now)
}

// decode is decodeRoute that leaves a word of what it cannot read.
func (s *Speaker) decode(p *api.Path) (bgp.Route, error) {
	r, err := decodeRoute(p)
	if err != nil && !errors.Is(err, errNotOurs) {
		s.log.Debug("route ignored", "peer", p.NeighborIp, "err", err)
	}
	return r, err
}

// finish takes over a first update that has ended. It returns false if that is put
// off.
func (s *Speaker) finish(peer netip.Addr, f bgp.Family, now time.Time) bool {
	s.taking.Lock()
	defer s.taking.Unlock()
	if s.steady() || s.unwatch != nil {
		s.heard.finish(peer, f)
		return true
	}
	s.ends = append(s.ends, end{peer, f})
	if !s.heard.anyMidway(s.opts.Families, now, s.ends) {
		s.settle(now)
		return true
	}
	time.AfterFunc(endsTogether, func() {
		s.taking.Lock()
		defer s.taking.Unlock()
		if len(s.ends) > 0 {
			s.settle(time.Now())
			s.heard.wake()
		}
	})
	return false
}

// look reads the table now and then until paths are followed again. Where nobody has
// told anything but who is in a first update, that is as a rule over before others
// have news: the first reading is left out.
func (s *Speaker) look() {
	took := time.Duration(0)
	for first, following := true, false; !following; first = false {
		<-time.After(max(lookEvery, lookShare*took)) // it follows again, or the process ends
		s.taking.Lock()
		start := time.Now()
		if s.unwatch == nil && (!first || s.heard.others(start)) {
			s.settle(start)
			s.heard.wake()
		}
		following, took = s.unwatch != nil, time.Since(start)
		s.taking.Unlock()
	}
}

// settle reads the table, for the first updates that have ended, and follows paths
// again if no peer is in another. It needs taking, with paths not followed.
func (s *Speaker) settle(now time.Time) {
	if s.heard.anyMidway(s.opts.Families, now, s.ends) {
		for _, f := range families {
			s.read(f.family, now)
		}
	} else {
		s.resume()
	}
	for _, e := range s.ends {
		s.heard.finish(e.peer, e.family)
	}
	s.ends = nil
}

// resume follows paths from now on. What is told of them waits until the table is
// taken over: it is newer, or will be again when all of it has been told. It needs
// taking, and so does what follows: none of it comes after a table that was read
// later.
func (s *Speaker) resume() {
	ctx, cancel := context.WithCancel(context.Background())
	err := s.server.WatchEvent(ctx, &api.WatchEventRequest{Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
		{Type: api.WatchEventRequest_Table_Filter_POST_POLICY},
	}}}, func(e *api.WatchEventResponse) {
		s.taking.Lock()
		defer s.taking.Unlock()
		if ctx.Err() == nil {
			s.follow(e)
		}
	})
	if err != nil { // of the request alone
		s.log.Error("BGP routes are not followed", "err", err)
	}
	s.unwatch = cancel
	now := time.Now()
	for _, f := range families {
		s.read(f.family, now)
	}
}

// read takes over the library's table of a family. It needs taking.
func (s *Speaker) read(f bgp.Family, now time.Time) {
	if f == bgp.RouteTargetRoute || !s.speaks(f) {
		return
	}
	if all, err := s.table(s.server, f); err == nil {
		s.heard.take(f, all, now)
	}
}

// table lists the library's table of a family.
func (s *Speaker) table(of *server.BgpServer, f bgp.Family) ([]heardRoute, error) {
	var all []heardRoute
	err := of.ListPath(context.Background(), &api.ListPathRequest{
		TableType: api.TableType_GLOBAL, Family: apiFamily(f), EnableOnlyBinary: true,
	}, func(d *api.Destination) {
		for _, p := range d.Paths {
			if r, err := s.decode(p); err == nil {
				all = append(all, heardRoute{r, p.Stale})
			}
		}
	})
	if err != nil {
		s.log.Debug("BGP table not read", "family", f, "err", err)
	}
	return all, err
}

// relayed lists what a relay has heard and not lost.
func (s *Speaker) relayed() []bgp.Route {
	s.mu.Lock()
	started := s.server
	s.mu.Unlock()
	if started == nil {
		return nil
	}
	var out []bgp.Route
	for _, f := range []bgp.Family{bgp.VPNv4, bgp.VPNv6} {
		if !s.speaks(f) {
			continue
		}
		all, _ := s.table(started, f) // says why not
		for _, h := range all {
			out = append(out, h.Route)
		}
	}
	return out
}
