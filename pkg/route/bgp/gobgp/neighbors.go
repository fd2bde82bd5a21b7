package gobgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

const (
	// connectRetry is how long to wait before the next attempt to connect;
	// the library draws up to twice that.
	connectRetry = 2 * time.Second
	// targetDeferral bounds the wait for a peer's route targets before
	// routes are sent to it.
	targetDeferral = 5 * time.Second
	// maxTTL is what GTSM sends with (RFC 5082 section 3).
	maxTTL = 255
)

var families = []struct {
	afi    api.Family_Afi
	safi   api.Family_Safi
	family bgp.Family
}{
	{api.Family_AFI_IP, api.Family_SAFI_MPLS_VPN, bgp.VPNv4},
	{api.Family_AFI_IP6, api.Family_SAFI_MPLS_VPN, bgp.VPNv6},
	{api.Family_AFI_IP, api.Family_SAFI_ROUTE_TARGET_CONSTRAINTS, bgp.RouteTargetRoute},
}

// apiFamily is a family in the library's form.
func apiFamily(f bgp.Family) *api.Family {
	for _, known := range families {
		if known.family == f {
			return &api.Family{Afi: known.afi, Safi: known.safi}
		}
	}
	return nil
}

// familyOf returns "" for a family that is none of ours.
func familyOf(f *api.Family) bgp.Family {
	for _, known := range families {
		if known.afi == f.GetAfi() && known.safi == f.GetSafi() {
			return known.family
		}
	}
	return ""
}

// SetNeighbors implements bgp.Speaker.
func (s *Speaker) SetNeighbors(ctx context.Context, want bgp.Neighbors) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(ctx); err != nil {
		return err
	}
	var errs []error
	wanted := map[netip.Addr]bgp.Peer{}
	for _, p := range want.Peers {
		wanted[p.Address] = p
	}
	for addr, have := range s.peers {
		if wanted[addr] == have {
			continue
		}
		if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()}); err != nil {
			errs = append(errs, fmt.Errorf("remove peer %s: %w", addr, err))
			continue
		}
		delete(s.peers, addr)
		s.heard.forget(addr)
	}
	errs = append(errs, s.setRanges(ctx, want.Ranges))
	for _, p := range want.Peers {
		if _, ok := s.peers[p.Address]; ok {
			continue
		}
		if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(p)}); err != nil {
			errs = append(errs, fmt.Errorf("add peer %s: %w", p.Address, err))
			continue
		}
		s.peers[p.Address] = p
	}
	return errors.Join(errs...)
}

func (s *Speaker) setRanges(ctx context.Context, want []bgp.Range) error {
	var errs []error
	for prefix, have := range s.ranges {
		if slices.Contains(want, have) {
			continue
		}
		if err := s.server.DeleteDynamicNeighbor(ctx, &api.DeleteDynamicNeighborRequest{Prefix: prefix.String(), PeerGroup: groupName(have.Client)}); err != nil {
			errs = append(errs, fmt.Errorf("remove neighbor range %s: %w", prefix, err))
			continue
		}
		delete(s.ranges, prefix)
	}
	for _, r := range want {
		if _, ok := s.ranges[r.Prefix]; ok {
			continue
		}
		if !s.groups[r.Client] {
			if err := s.server.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: s.group(r.Client)}); err != nil {
				errs = append(errs, fmt.Errorf("neighbor range %s: %w", r.Prefix, err))
				continue
			}
			s.groups[r.Client] = true
		}
		err := s.server.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
			DynamicNeighbor: &api.DynamicNeighbor{Prefix: r.Prefix.String(), PeerGroup: groupName(r.Client)},
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("neighbor range %s: %w", r.Prefix, err))
			continue
		}
		s.ranges[r.Prefix] = r
	}
	return errors.Join(errs...)
}

func groupName(client bool) string {
	if client {
		return "clients"
	}
	return "neighbors"
}

func (s *Speaker) peer(p bgp.Peer) *api.Peer {
	return &api.Peer{
		Conf:   &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: s.opts.ASN, AuthPassword: s.opts.Password},
		Timers: s.timers(), AfiSafis: s.afiSafis(s.byTarget()), GracefulRestart: s.gracefulRestart(), TtlSecurity: s.ttlSecurity(),
		Transport:      &api.Transport{LocalAddress: s.local(), PassiveMode: p.Passive, RemotePort: uint32(s.opts.Port)},
		RouteReflector: s.reflector(p.Client),
	}
}

func (s *Speaker) group(client bool) *api.PeerGroup {
	restart := s.gracefulRestart()
	if restart != nil {
		restart.LocalRestarting = false // of neighbors to come, at any time
	}
	return &api.PeerGroup{
		Conf:   &api.PeerGroupConf{PeerGroupName: groupName(client), PeerAsn: s.opts.ASN, AuthPassword: s.opts.Password},
		Timers: s.timers(), AfiSafis: s.afiSafis(true), GracefulRestart: restart, TtlSecurity: s.ttlSecurity(),
		Transport:      &api.Transport{LocalAddress: s.local(), PassiveMode: true},
		RouteReflector: s.reflector(client),
	}
}

func (s *Speaker) local() string {
	if s.opts.Local.IsValid() {
		return s.opts.Local.String()
	}
	return ""
}

func (s *Speaker) reflector(client bool) *api.RouteReflector {
	return &api.RouteReflector{RouteReflectorClient: client, RouteReflectorClusterId: s.opts.RouterID.String()}
}

func (s *Speaker) timers() *api.Timers {
	hold := s.opts.HoldTime
	return &api.Timers{Config: &api.TimersConfig{
		ConnectRetry: uint64(connectRetry / time.Second),
		// A third, as RFC 4271 section 10 suggests.
		HoldTime: uint64(hold / time.Second), KeepaliveInterval: uint64(hold / 3 / time.Second),
	}}
}

// byTarget tells whether a peer that is added now is spoken with about route targets.
// Whoever wants everything asks for nothing, and is told all of it once: asked for
// everything, the library sends it at once, and again at the end of what is asked
// for. A speaker that listens must know what others want. It needs mu.
//
// A session is not ended for it: if everything is wanted later it is asked for,
// and if less is wanted later more comes than is asked for.
func (s *Speaker) byTarget() bool { return !s.all || s.opts.Listen }

func (s *Speaker) afiSafis(byTarget bool) []*api.AfiSafi {
	var out []*api.AfiSafi
	for _, f := range families {
		if !s.speaks(f.family) || f.family == bgp.RouteTargetRoute && !byTarget {
			continue
		}
		family := &api.Family{Afi: f.afi, Safi: f.safi}
		a := &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: s.opts.GracefulRestart > 0}},
		}
		if f.family == bgp.RouteTargetRoute {
			a.RouteTargetMembership = &api.RouteTargetMembership{Config: &api.RouteTargetMembershipConfig{DeferralTime: uint32(targetDeferral / time.Second)}}
		}
		out = append(out, a)
	}
	return out
}

func (s *Speaker) gracefulRestart() *api.GracefulRestart {
	g := s.opts.GracefulRestart
	if g == 0 {
		return nil
	}
	return &api.GracefulRestart{
		Enabled: true, RestartTime: uint32(g / time.Second),
		// Who hears nothing says so when its hold time is over: its routes are
		// kept then, too (RFC 8538). Who leaves sends a hard reset instead.
		NotificationEnabled: true,
		// Updates wait for what the peers have to say, but not for so
		// long that peers drop what they keep for us.
		DeferralTime:    uint32(max(g/2/time.Second, 1)),
		LocalRestarting: s.opts.Restarted && time.Since(s.started) < g,
	}
}

func (s *Speaker) ttlSecurity() *api.TtlSecurity {
	if s.opts.Hops == 0 {
		return nil
	}
	return &api.TtlSecurity{Enabled: true, TtlMin: uint32(maxTTL - s.opts.Hops + 1)}
}

// Status implements bgp.Speaker.
func (s *Speaker) Status(ctx context.Context) ([]bgp.PeerStatus, error) {
	s.mu.Lock()
	server := s.server
	configured := make(map[netip.Addr]bool, len(s.peers))
	for addr := range s.peers {
		configured[addr] = true
	}
	s.mu.Unlock()
	if server == nil {
		return nil, nil
	}
	now := time.Now()
	var out []bgp.PeerStatus
	err := server.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		addr, err := netip.ParseAddr(p.State.GetNeighborAddress())
		if err != nil {
			return
		}
		heard := s.heard.of(addr)
		st := bgp.PeerStatus{
			Address: addr, Dynamic: !configured[addr], Client: p.RouteReflector.GetRouteReflectorClient(),
			State:       strings.ToLower(p.State.SessionState.String()),
			Established: p.State.SessionState == api.PeerState_ESTABLISHED,
			Synced:      heard.synced(now), Since: heard.since, Flaps: p.State.Flops,
		}
		st.RouterID, _ = netip.ParseAddr(p.State.RouterId)
		for _, a := range p.AfiSafis {
			if f := familyOf(a.State.GetFamily()); f != "" {
				st.Families = append(st.Families, bgp.FamilyStatus{Family: f, Received: a.State.Received})
			}
		}
		out = append(out, st)
	})
	slices.SortFunc(out, func(a, b bgp.PeerStatus) int { return a.Address.Compare(b.Address) })
	return out, err
}
