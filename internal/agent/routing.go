package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/peering"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp/gobgp"
)

const (
	// gather is how long changes are collected before they are judged: they
	// come by the thousands.
	gather = 20 * time.Millisecond
	// gatherShare is how many times as long as judging took, they are
	// collected at least.
	gatherShare = 4
	// minSettle is how long what was believed is kept after neighbors can be
	// heard again, at least.
	minSettle = 10 * time.Second
	// tellWait bounds how long preference waits for neighbors to hear: one
	// that is gone for good must not decide who is active.
	tellWait = time.Minute
	// electionWait bounds the wait for the elections before neighbors are
	// told that all is announced: a lone proxy becomes active in less than a
	// second at the default interval.
	electionWait = 2 * time.Second
	// leaveTimeout bounds the goodbyes; the sessions end with the process.
	leaveTimeout = 5 * time.Second
)

// routing is a node's part in BGP.
type routing struct {
	cfg      config.BGP
	name     string
	log      *slog.Logger
	speaker  bgp.Speaker
	peering  peering.Config
	node     *node.Node // nil on a mere reflector
	file     string
	boot     string
	wake     chan struct{} // buffered, 1: the intent has changed
	elected  chan struct{} // closed when a group's active proxy is here
	electing sync.Once
	handOver handOver

	mu        sync.Mutex
	set       *intent.Set // nil before the first
	unjudged  bool        // nothing was judged by it yet
	table     *peering.Table
	judged    []peering.Judged
	neighbors bgp.Neighbors
	met       time.Time // when neighbors were spoken with first; zero: not yet
	problem   string    // why neighbors could not be set; "" if they could
}

// newRouting makes the speaker that the configuration describes; nil if BGP is
// off. host is nil on a mere reflector.
func newRouting(ctx context.Context, cfg *config.Config, host kernel.Host, log *slog.Logger) (*routing, error) {
	if !cfg.BGP.On() {
		return nil, nil
	}
	local := cfg.BGP.Address
	if !local.IsValid() {
		local = cfg.Underlay.Address
	}
	if !local.IsValid() {
		p, err := node.DefaultUnderlay(ctx, host, cfg.Underlay.Interface)
		if err != nil {
			return nil, fmt.Errorf("bgp.address: %w", err)
		}
		local = p.Addr()
	}
	password, err := cfg.BGP.Password()
	if err != nil {
		return nil, fmt.Errorf("bgp.passwordFile: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	r := &routing{
		cfg: cfg.BGP, name: cfg.Node, log: log, file: filepath.Join(cfg.StateDirectory, "bgp.json"), boot: strings.TrimSpace(string(boot)),
		wake: make(chan struct{}, 1), elected: make(chan struct{}),
		peering: peering.Config{
			Mode: peering.Mode(cfg.BGP.Mode), BGP: plan.BGP{ASN: cfg.BGP.ASN}, Reflectors: cfg.BGP.Reflectors, Ranges: cfg.BGP.Ranges,
		},
	}
	memory, err := peering.LoadMemory(r.file)
	if err != nil {
		log.Warn("starting without", "err", err)
	}
	r.table = peering.NewTable(cfg.Node, r.peering, max(cfg.BGP.GracefulRestart, minSettle))
	if memory.Boot == r.boot {
		r.table.Restore(memory.Routes)
	}
	var families []bgp.Family
	for _, f := range cfg.BGP.Families {
		families = append(families, bgp.Family(f))
	}
	r.speaker, err = gobgp.New(bgp.Options{
		ASN: cfg.BGP.ASN, RouterID: local, Local: local, Port: uint16(cfg.BGP.Port),
		Listen:   cfg.BGP.Mode == config.BGPReflector || cfg.BGP.Mode == config.BGPMesh && cfg.HasRole(intent.RoleProxy),
		HoldTime: cfg.BGP.HoldTime, GracefulRestart: cfg.BGP.GracefulRestart, Restarted: memory.Boot == r.boot,
		Password: password, Hops: uint8(cfg.BGP.Hops), MaxPrefixes: cfg.BGP.MaxPrefixes, Announcers: cfg.BGP.Announcers,
		Reflector: cfg.BGP.Mode == config.BGPReflector, Relay: host == nil, Families: families,
	}, log)
	if err != nil {
		return nil, fmt.Errorf("bgp: %w", err)
	}
	return r, nil
}

// setIntent hands over a newer intent.
func (r *routing) setIntent(set *intent.Set) {
	r.mu.Lock()
	r.set, r.unjudged = set, true
	r.table.SetIntent(set)
	r.mu.Unlock()
	r.planned()
}

// planned has the neighbors asked for what the node has a part in now.
func (r *routing) planned() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// setElected tells the node of which groups it is to announce the attachments.
func (r *routing) setElected(groups []election.Group) {
	r.mu.Lock()
	set := r.set
	r.mu.Unlock()
	r.handOver.follow(groups, func(g election.Group) bool { return set != nil && handed(g, set, r.name) }, r.node.SetActive)
	if slices.ContainsFunc(groups, election.Group.Active) {
		r.electing.Do(func() { close(r.elected) })
	}
}

// start has the node go on from what was believed before it was restarted, and
// returns when paths can be announced. Nobody is spoken with yet.
func (r *routing) start(ctx context.Context, run func(func(context.Context) error)) {
	r.refresh()
	run(r.speaker.Run)
	select {
	case <-ctx.Done():
	case <-r.speaker.Ready():
	}
}

// follow speaks with the neighbors once all is announced that can be, and hands
// the node what they say. At the end it says goodbye, if it is to.
func (r *routing) follow(ctx context.Context) error {
	defer r.part()
	if !r.announced(ctx) {
		return nil
	}
	r.meet(ctx)
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	var kept keeper
	look := time.NewTimer(0)
	defer look.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	var took time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			r.meet(ctx)
			// Another plan alone changes nothing of what is believed.
			if r.unread() {
				look.Reset(gather)
			}
		case <-r.speaker.Changes():
			look.Reset(max(gather, gatherShare*took))
			// Not put off by further changes: the timer is awaited.
			select {
			case <-ctx.Done():
				return nil
			case <-look.C:
			}
			took = r.lookAgain(again)
		case <-look.C:
			took = r.lookAgain(again)
		case <-again.C:
			took = r.lookAgain(again)
		case <-save.C:
			r.keep(&kept)
		}
	}
}

// unread tells whether there is an intent that nothing was judged by.
func (r *routing) unread() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unjudged
}

// part says goodbye to the neighbors if the configuration has it so.
func (r *routing) part() {
	if r.cfg.OnStop != config.BGPLeave {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := r.speaker.Leave(ctx); err != nil {
		r.log.Warn("no goodbye to the BGP neighbors", "err", err)
	}
}

// lookAgain returns how long it took.
func (r *routing) lookAgain(again *time.Timer) time.Duration {
	start := time.Now()
	if next := r.refresh(); !next.IsZero() {
		again.Reset(time.Until(next))
	}
	return time.Since(start)
}

// announced waits until what the node can announce is announced. It returns
// false when the context has ended.
func (r *routing) announced(ctx context.Context) bool {
	if r.node == nil {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-r.node.Ready():
	}
	if !r.node.Elects() {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-r.elected:
		// The path follows with the next pass.
		_, err := r.node.Resync(ctx)
		return err == nil || ctx.Err() == nil
	case <-time.After(electionWait):
	}
	return true
}

// meet tells the speaker whom to speak with, and what to ask for.
func (r *routing) meet(ctx context.Context) {
	r.mu.Lock()
	set := r.set
	r.mu.Unlock()
	var footprints []plan.Footprint
	if r.node != nil {
		footprints = r.node.Footprints()
	}
	want := r.peering.Neighbors(r.name, set)
	err := errors.Join(r.speaker.SetInterest(ctx, r.peering.Interest(r.name, set, footprints)), r.speaker.SetNeighbors(ctx, want))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.neighbors = want
	if r.met.IsZero() {
		r.met = time.Now()
	}
	problem := ""
	if err != nil && ctx.Err() == nil {
		problem = err.Error()
	}
	if problem != r.problem && problem != "" {
		r.log.Error("BGP neighbors", "err", problem)
	} else if problem != r.problem {
		r.log.Info("BGP neighbors as wanted")
	}
	r.problem = problem
}

// told tells whether neighbors would hear at once of a path that is announced
// now: all have a session that is past its first update, or have had the time
// for one. A path that another proxy withdraws for this one's sake would be
// nobody's until then.
func (r *routing) told() bool {
	r.mu.Lock()
	met, peers := r.met, r.neighbors.Peers
	r.mu.Unlock()
	if met.IsZero() {
		return false
	}
	if time.Since(met) >= tellWait {
		return true
	}
	synced := map[netip.Addr]bool{}
	for _, s := range r.speaker.Sessions() {
		synced[s.Address] = s.Synced
	}
	return !slices.ContainsFunc(peers, func(p bgp.Peer) bool { return !synced[p.Address] })
}

// refresh judges what is heard now. It returns when to look again at the latest.
func (r *routing) refresh() time.Time {
	if r.node == nil {
		return time.Time{} // a mere reflector believes nothing
	}
	sessions := r.speaker.Sessions()
	if hearing(sessions) {
		return time.Time{}
	}
	routes := r.speaker.Received()
	r.mu.Lock()
	r.unjudged = false
	live, judged, again := r.table.Update(time.Now(), routes, sessions)
	r.logRefused(judged)
	r.judged = judged
	r.mu.Unlock()
	r.node.SetLive(live)
	return again
}

// hearing tells whether all that is said now is a first update that has not
// ended: half of it is no news yet. It ends by itself, with another change.
func hearing(sessions []bgp.Session) bool {
	up := false
	for _, s := range sessions {
		if s.Synced {
			return false
		}
		up = up || s.Established
	}
	return up
}

// logRefused says which routes are refused that were not before.
func (r *routing) logRefused(judged []peering.Judged) {
	type id struct {
		peer netip.Addr
		nlri bgp.NLRI
	}
	known := map[id]peering.Reason{}
	for _, j := range r.judged {
		if j.Reason != peering.Accepted {
			known[id{j.Peer, j.NLRI}] = j.Reason
		}
	}
	for _, j := range judged {
		// Whoever asks for everything gets what it has no use for.
		if j.Reason != peering.Accepted && j.Reason != peering.UnknownAttachment && known[id{j.Peer, j.NLRI}] != j.Reason {
			r.log.Warn("route refused", "route", j.NLRI, "peer", j.Peer, "originator", j.Originator, "reason", string(j.Reason), "detail", j.Detail)
		}
	}
}

// view returns what `vpcproxyctl bgp` shows.
func (r *routing) view(ctx context.Context) ([]bgp.PeerStatus, []bgp.Path, []peering.Judged, error) {
	peers, err := r.speaker.Status(ctx)
	if r.node == nil {
		var passed []peering.Judged
		for _, route := range r.speaker.Received() {
			passed = append(passed, peering.Judged{Route: route})
		}
		return peers, r.speaker.Announced(), passed, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return peers, r.speaker.Announced(), r.judged, err
}
