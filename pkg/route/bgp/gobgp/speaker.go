// Package gobgp speaks BGP with the GoBGP library, inside this process. The
// library's own API listens nowhere.
package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Speaker implements bgp.Speaker.
type Speaker struct {
	opts   bgp.Options
	log    *slog.Logger
	heard  *received
	ready  chan struct{}
	failed chan error // buffered, 1: why the server could not be started

	// mu serializes what changes the library's state, which it has no
	// transactions for.
	mu sync.Mutex
	// server is nil until there are neighbors to speak with: it would take
	// their calls and hang up on them, and who calls then lets five seconds
	// go by where a refused connection is tried again after one.
	server    *server.BgpServer
	started   time.Time
	announced map[bgp.NLRI]bgp.Path
	interest  map[bgp.Target]bool
	all       bool
	peers     map[netip.Addr]bgp.Peer
	ranges    map[netip.Prefix]bgp.Range
	groups    map[bool]bool // peer groups made, by Client

	// taking serializes what takes over the library's table.
	taking  sync.Mutex
	unwatch context.CancelFunc // ends the following of paths; nil while they are not
	ends    []end              // of first updates, not taken over yet
}

var _ bgp.Speaker = (*Speaker)(nil)

// New returns a Speaker that Run starts.
func New(o bgp.Options, log *slog.Logger) (*Speaker, error) {
	switch {
	case o.ASN == 0:
		return nil, errors.New("the AS number is missing")
	case !o.RouterID.Is4():
		return nil, fmt.Errorf("the router id %s is not an IPv4 address", o.RouterID)
	case o.HoldTime != 0 && o.HoldTime < minHoldTime:
		return nil, fmt.Errorf("a hold time of %s is less than %s (RFC 4271 section 4.2)", o.HoldTime, minHoldTime)
	}
	if o.Port == 0 {
		o.Port = bgp.Port
	}
	return &Speaker{
		opts: o, log: log, heard: newReceived(o.GracefulRestart), ready: make(chan struct{}), failed: make(chan error, 1),
		announced: map[bgp.NLRI]bgp.Path{}, interest: map[bgp.Target]bool{},
		peers: map[netip.Addr]bgp.Peer{}, ranges: map[netip.Prefix]bgp.Range{}, groups: map[bool]bool{},
	}, nil
}

// minHoldTime is the least that is allowed (RFC 4271 section 4.2).
const minHoldTime = 3 * time.Second

// Ready implements bgp.Speaker.
func (s *Speaker) Ready() <-chan struct{} { return s.ready }

// Run implements bgp.Speaker. The library's own goroutines, and with them the
// sessions, end with the process: a session that is closed in an orderly way is
// a goodbye, and peers would forget our routes.
func (s *Speaker) Run(ctx context.Context) error {
	close(s.ready)
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return fmt.Errorf("bgp: %w", err)
	}
}

// open starts the server, with all that is announced and asked for. It needs mu.
func (s *Speaker) open(ctx context.Context) error {
	if s.server != nil {
		return nil
	}
	if err := s.start(ctx); err != nil {
		select {
		case s.failed <- err:
		default:
		}
		return err
	}
	var errs []error
	for n, p := range s.announced {
		if err := s.add(ctx, p); err != nil {
			delete(s.announced, n)
			errs = append(errs, err)
		}
	}
	if s.all {
		errs = append(errs, s.membership(ctx, nil, true))
	}
	for t := range s.interest {
		errs = append(errs, s.membership(ctx, &t, true))
	}
	return errors.Join(errs...)
}

func (s *Speaker) start(ctx context.Context) error {
	if s.opts.Listen && s.opts.Password != "" {
		if err := probeMD5(ctx, s.opts.Local); err != nil {
			return err
		}
	}
	s.started = time.Now()
	// Behind a failure, the process ends.
	heard := &messages{}
	s.server = server.NewBgpServer(server.LoggerOption(&logger{s.log}), server.TimingHookOption(heard))
	go s.server.Serve() // the library has no way to end it
	global := &api.Global{Asn: s.opts.ASN, RouterId: s.opts.RouterID.String(), ListenPort: -1}
	if s.opts.Listen {
		global.ListenPort = int32(s.opts.Port)
		if s.opts.Local.IsValid() {
			global.ListenAddresses = []string{s.opts.Local.String()}
		}
	}
	if err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("listen on %s port %d: %w", s.opts.Local, s.opts.Port, err)
	}
	if err := errors.Join(s.restrict(ctx), s.confide(ctx)); err != nil {
		return err
	}
	if s.opts.MaxPrefixes > 0 {
		go s.limit(heard) // ends with the process, as the server does
	}
	return s.watch(ctx)
}

// Received implements bgp.Speaker.
func (s *Speaker) Received() []bgp.Route {
	if s.opts.Relay {
		return s.relayed()
	}
	return s.heard.list(time.Now())
}

// Changes implements bgp.Speaker.
func (s *Speaker) Changes() <-chan struct{} { return s.heard.changed }

// Sessions implements bgp.Speaker.
func (s *Speaker) Sessions() []bgp.Session { return s.heard.all(time.Now()) }

// Announced implements bgp.Speaker.
func (s *Speaker) Announced() []bgp.Path {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.announced))
}

// Announce implements bgp.Speaker.
func (s *Speaker) Announce(ctx context.Context, paths []bgp.Path) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(paths))
	for i, p := range paths {
		if have, ok := s.announced[p.NLRI]; ok && have.Equal(p) {
			continue
		}
		if errs[i] = s.add(ctx, p); errs[i] == nil {
			s.announced[p.NLRI] = p
		}
	}
	return errs
}

func (s *Speaker) add(ctx context.Context, p bgp.Path) error {
	encoded, err := encodePath(p)
	if err != nil || s.server == nil {
		return err
	}
	if _, err := s.server.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: encoded}); err != nil {
		return fmt.Errorf("announce %s: %w", p.NLRI, err)
	}
	return nil
}

// Withdraw implements bgp.Speaker.
func (s *Speaker) Withdraw(ctx context.Context, routes []bgp.NLRI) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(routes))
	for i, n := range routes {
		if p, ok := s.announced[n]; ok {
			if errs[i] = s.remove(ctx, p); errs[i] == nil {
				delete(s.announced, n)
			}
		}
	}
	return errs
}

func (s *Speaker) remove(ctx context.Context, p bgp.Path) error {
	encoded, err := encodePath(p)
	if err != nil || s.server == nil {
		return err
	}
	if err := s.server.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: encoded}); err != nil {
		return fmt.Errorf("withdraw %s: %w", p.NLRI, err)
	}
	return nil
}

// SetInterest implements bgp.Speaker.
func (s *Speaker) SetInterest(ctx context.Context, want bgp.Interest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	targets := map[bgp.Target]bool{}
	if !want.All {
		for _, t := range want.Targets {
			targets[t] = true
		}
	}
	var errs []error
	// What is asked for additionally first, so that nothing is missed.
	if want.All && !s.all {
		errs = append(errs, s.membership(ctx, nil, true))
		s.all = true
	}
	for t := range targets {
		if !s.interest[t] {
			errs = append(errs, s.membership(ctx, &t, true))
			s.interest[t] = true
		}
	}
	for t := range s.interest {
		if !targets[t] {
			errs = append(errs, s.membership(ctx, &t, false))
			delete(s.interest, t)
		}
	}
	if !want.All && s.all {
		errs = append(errs, s.membership(ctx, nil, false))
		s.all = false
	}
	return errors.Join(errs...)
}

func (s *Speaker) membership(ctx context.Context, t *bgp.Target, join bool) error {
	p, err := encodeMembership(s.opts.ASN, t, s.opts.RouterID)
	if err != nil || s.server == nil {
		return err
	}
	if join {
		_, err = s.server.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: p})
		return err
	}
	return s.server.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: p})
}

// Leave implements bgp.Speaker.
func (s *Speaker) Leave(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.announced)
	clear(s.interest)
	clear(s.peers)
	clear(s.ranges)
	s.all = false
	if s.server == nil {
		return nil
	}
	return s.server.StopBgp(ctx, &api.StopBgpRequest{})
}
