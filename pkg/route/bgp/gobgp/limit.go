package gobgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

const (
	// limitEvery is how often the routes of peers are counted that have said
	// something.
	limitEvery = time.Second
	// limitShare is how many times as long as counting took, the next count is
	// put off at least: a reflector has a thousand peers.
	limitShare = 20
)

// messages counts what the library has handled.
type messages struct {
	atomic.Uint64
}

// Observe implements the library's hook.
func (m *messages) Observe(op server.FSMOperation, _, _ time.Duration) {
	if op == server.FSMMessage {
		m.Add(1)
	}
}

// limit ends the sessions of peers that send more routes than they may. It never
// returns. The library has such a limit, and counts a peer's whole table at every
// message for its sake: the time that n routes take would grow with n².
func (s *Speaker) limit(heard *messages) {
	wait, seen := limitEvery, uint64(0)
	for {
		<-time.After(wait) // with no context: whoever started the server does not end it
		now := heard.Load()
		if now == seen {
			continue
		}
		seen = now
		start := time.Now()
		for _, session := range s.heard.all(start) {
			if session.Established {
				s.count(session.Address)
			}
		}
		wait = max(limitEvery, limitShare*time.Since(start))
	}
}

// count ends a peer's session if it has sent too much. The peer then stays a
// neighbor that is not spoken with, as one is whom the library stops.
func (s *Speaker) count(peer netip.Addr) {
	ctx := context.Background()
	for _, f := range families {
		if !s.speaks(f.family) {
			continue
		}
		table, err := s.server.GetTable(ctx, &api.GetTableRequest{
			TableType: api.TableType_ADJ_IN, Name: peer.String(), Family: &api.Family{Afi: f.afi, Safi: f.safi},
		})
		if err != nil || table.NumPath <= uint64(s.opts.MaxPrefixes) {
			continue // an error: it has just gone, or does not speak that family
		}
		why := fmt.Sprintf("%d %s routes, and %d are allowed", table.NumPath, f.family, s.opts.MaxPrefixes)
		err = s.server.DisablePeer(ctx, &api.DisablePeerRequest{Address: peer.String(), Communication: why})
		s.log.Error("BGP session ended", "peer", peer, "reason", why, "err", err)
		return
	}
}

// speaks tells whether peers are spoken with about a family.
func (s *Speaker) speaks(f bgp.Family) bool {
	return len(s.opts.Families) == 0 || slices.Contains(s.opts.Families, f)
}
