// Package node keeps one machine's kernel as its intent asks: it observes
// facts, plans, and runs the reconcile loop over every kind of kernel object.
package node

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

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

const (
	// pollEvery is how often that is looked at which changes without an event:
	// iptables-legacy tables, and sysctls that are not watched. pollRarely is for
	// sysctls that are, which somebody may write through another mount of /proc.
	pollEvery, pollRarely = 500 * time.Millisecond, 4 * time.Second
	// observeRetry is the wait after facts could not be observed.
	observeRetry = time.Second
	// planShare is how many times as long as a plan took, the next one for
	// the sake of the kernel's events is put off.
	planShare = 4
)

// Options describes a Node.
type Options struct {
	Name     string // of this node, as in its Node object
	Host     kernel.Host
	Kinds    Kinds
	Plan     plan.Config
	Refresh  time.Duration // between full looks; 0: the engine's default
	Log      *slog.Logger
	Observer reconcile.Observer // may be nil
	Bindings BindingOptions
	// Planned, if not nil, is called after every plan that asks for something
	// else than the one before.
	Planned func()
	// Changed, if not nil, is called after every plan and every pass.
	Changed func()
	// Elections, if not nil, is told what each plan takes part in. It must not
	// block.
	Elections func([]desired.Election)
	// Hinted, if not nil, is told of every hint. It must not block.
	Hinted func(kernel.Hint)
}

// Node plans and reconciles. Its methods are safe for concurrent use.
type Node struct {
	opts  Options
	facts *facts
	loop  *reconcile.Loop[desired.State]
	wake  chan struct{} // buffered, 1: plan anew
	// noticed, buffered, 1: the kernel has changed; plan anew before long.
	noticed chan struct{}

	bindings *bindings
	sweeps   chan struct{} // buffered, 1: look for flows to end
	unswept  bool          // no sweep has been asked for; of the loop's goroutine

	mu         sync.Mutex
	set        *intent.Set // nil before the first
	current    plan.Plan
	interfaces []plan.Interface // that current was made of
	leaving    []plan.Footprint // of attachments no longer planned, not yet gone
	planned    *intent.Set      // what current was made of
	gen        uint64           // of current in the loop
	problem    error            // why there is no newer plan
	watching   map[string]bool
	synced     bool // the agent's own namespace is watched
	totals     map[string]Totals
	alive      alive
	masquerade []desired.Masquerade
	masqFault  string   // why masquerade is not what its file says
	notices    []string // what the NAT backend has found beside our rules
}

// New returns a Node that Run starts.
func New(opts Options) (*Node, error) {
	n := &Node{
		opts: opts, facts: newFacts(opts.Host), wake: make(chan struct{}, 1), noticed: make(chan struct{}, 1), watching: map[string]bool{}, totals: map[string]Totals{},
		sweeps: make(chan struct{}, 1), unswept: true,
	}
	var err error
	if n.bindings, err = newBindings(opts.Bindings, opts.Kinds.Exchange, opts.Log); err != nil {
		return nil, err
	}
	loop, err := reconcile.New(reconcile.Config[desired.State]{
		Stages:   opts.Kinds.stages(n.bindings.steers),
		Gate:     n.watched,
		Log:      opts.Log,
		Observer: observers{opts.Observer, n},
		Refresh:  opts.Refresh,
	})
	if err != nil {
		return nil, err
	}
	n.loop = loop
	return n, nil
}

// String names the task.
func (n *Node) String() string { return "node " + n.opts.Name }

// Ready is closed when the kernel has been made as wanted for the first time,
// as far as it could be.
func (n *Node) Ready() <-chan struct{} { return n.loop.Ready() }

// SetIntent replaces the intent. It does not wait for its effect.
func (n *Node) SetIntent(set *intent.Set) {
	n.mu.Lock()
	n.set = set
	n.mu.Unlock()
	n.replan()
}

// SetMasquerade replaces the rules that hide pods from what is no attachment,
// and what is wrong with their configuration ("" if nothing).
func (n *Node) SetMasquerade(rules []desired.Masquerade, problem string) {
	n.mu.Lock()
	n.masquerade, n.masqFault = rules, problem
	n.mu.Unlock()
	n.replan()
}

func (n *Node) replan() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Node) watched() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.synced
}

// Run observes, plans and reconciles until the context ends. It leaves the
// kernel as it is: stopping is not tearing down.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() { n.planner(ctx, &tasks) })
	tasks.Go(func() { n.poll(ctx) })
	if opts := n.opts.Bindings; opts.Store != nil {
		tasks.Go(func() { n.sweep(ctx) })
		tasks.Go(func() { n.bindings.ender.run(ctx) })
	}
	if r := n.opts.Kinds.responder; r != nil {
		tasks.Go(func() { r.Run(ctx) })
	}
	return n.loop.Run(ctx)
}

// planner makes a new plan when intent or facts may have changed. What the
// kernel tells is mostly our own doing and comes by the thousands: it waits
// until planning has not taken more than its share of the time.
func (n *Node) planner(ctx context.Context, tasks *sync.WaitGroup) {
	n.follow(ctx, "", tasks)
	for {
		var again <-chan time.Time
		start := time.Now()
		if err := n.plan(ctx, tasks); err != nil {
			again = time.After(observeRetry)
		} else if wait, ok := n.bindings.expiry(time.Now()); ok {
			again = time.After(wait)
		}
		last := time.Since(start)
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-again:
		case <-n.noticed:
			rest := time.NewTimer(time.Duration(planShare) * last)
			select {
			case <-ctx.Done():
			case <-n.wake:
			case <-rest.C:
			}
			rest.Stop()
		}
	}
}

func (n *Node) plan(ctx context.Context, tasks *sync.WaitGroup) error {
	n.mu.Lock()
	set, masquerade := n.set, n.masquerade
	n.mu.Unlock()
	if set == nil {
		return nil
	}
	var underlay netip.Addr
	if self := set.Node(n.opts.Name); self != nil {
		underlay = self.Spec.UnderlayAddress
	}
	bound := n.bindings.onInterfaces()
	seen, err := n.facts.observe(ctx, underlay)
	if err != nil {
		n.fail(ctx, fmt.Errorf("facts: %w", err))
		return err
	}
	seen.Masquerade = masquerade
	if err := n.addAlive(ctx, &seen); err != nil {
		n.fail(ctx, fmt.Errorf("facts: %w", err))
		return err
	}
	n.prune(ctx, bound, tasks)
	seen.Used = n.bindings.used(time.Now())
	n.followNamespaces(ctx, tasks)
	n.take(set, seen.Interfaces, plan.Build(n.opts.Name, set, seen, n.opts.Plan))
	return nil
}

func (n *Node) fail(ctx context.Context, err error) {
	n.mu.Lock()
	first := n.problem == nil
	n.problem = err
	n.mu.Unlock()
	if first && ctx.Err() == nil {
		n.opts.Log.Error("plan not renewed; the last one stays in force", "err", err)
	}
}

// take hands a plan to the loop, if it asks for something else than the last.
func (n *Node) take(set *intent.Set, interfaces []plan.Interface, p plan.Plan) {
	n.mu.Lock()
	if n.problem != nil {
		n.opts.Log.Info("plan renewed")
	}
	n.problem = nil
	n.logProblems(p)
	n.leave(p)
	renewed := n.planned == nil || !n.current.State.Equal(p.State)
	if renewed {
		n.opts.Kinds.resolve(p.State) // before the loop, which judges answers by it
		n.bindings.take(p.State, func() uint64 {
			n.gen = n.loop.SetDesired(p.State)
			return n.gen
		})
	}
	n.current, n.planned, n.interfaces = p, set, interfaces
	n.mu.Unlock()
	if renewed && n.opts.Planned != nil {
		n.opts.Planned()
	}
	if n.opts.Elections != nil {
		n.opts.Elections(p.Elections)
	}
	n.changed()
}

// logProblems says which problems are new and which are solved.
func (n *Node) logProblems(p plan.Plan) {
	before, after := map[plan.Problem]bool{}, map[plan.Problem]bool{}
	for _, problem := range n.current.Problems {
		before[problem] = true
	}
	for _, problem := range p.Problems {
		after[problem] = true
	}
	n.logMissing(slog.LevelWarn, "problem", p.Problems, before)
	n.logMissing(slog.LevelInfo, "problem solved", n.current.Problems, after)
}

// maxProblems is how many lines of a sort are logged for one plan. Thousands of
// attachments can have the same problem at once.
const maxProblems = 20

// logMissing logs the problems that are not in a set.
func (n *Node) logMissing(level slog.Level, msg string, problems []plan.Problem, in map[plan.Problem]bool) {
	count := 0
	for _, problem := range problems {
		if in[problem] {
			continue
		}
		if count++; count <= maxProblems {
			n.opts.Log.Log(context.Background(), level, msg, "attachment", problem.Attachment, "problem", problem.Message)
		}
	}
	if count > maxProblems {
		n.opts.Log.Log(context.Background(), level, msg+" more", "attachments", count-maxProblems)
	}
}

// leave remembers the footprints that a new plan no longer has.
func (n *Node) leave(p plan.Plan) {
	names := make(map[string]bool, len(p.Footprints))
	for _, f := range p.Footprints {
		names[f.Attachment] = true
	}
	planned := func(f plan.Footprint) bool { return names[f.Attachment] }
	for _, f := range n.current.Footprints {
		if !planned(f) {
			n.leaving = append(n.leaving, f)
		}
	}
	n.leaving = slices.DeleteFunc(n.leaving, planned)
}

func (n *Node) changed() {
	if n.opts.Changed != nil {
		n.opts.Changed()
	}
}

// followNamespaces watches those namespaces of ours that are not watched yet.
func (n *Node) followNamespaces(ctx context.Context, tasks *sync.WaitGroup) {
	names, err := ownNamespaces(ctx, n.opts.Host)
	if err != nil {
		return // observing will say so
	}
	for _, name := range names {
		n.follow(ctx, name, tasks)
	}
}

func (n *Node) follow(ctx context.Context, netns string, tasks *sync.WaitGroup) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watching[netns] {
		return
	}
	n.watching[netns] = true
	tasks.Go(func() { n.watch(ctx, netns) })
}

// watch turns the hints of one namespace into looks and plans. When the watch
// breaks, or its namespace goes, everything is looked at.
func (n *Node) watch(ctx context.Context, netns string) {
	for ctx.Err() == nil {
		hints, err := n.opts.Host.Watch(ctx, netns)
		if err == nil {
			for h := range hints {
				n.hint(netns, h)
			}
		}
		if ctx.Err() != nil {
			return
		}
		n.facts.forget(netns)
		n.loop.HintAll()
		n.replan()
		if netns != "" && (err == nil || errors.Is(err, kernel.ErrNotFound)) {
			break // a namespace made anew is found by the next plan
		}
		n.opts.Log.Warn("kernel events lost", "netns", netns, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(observeRetry):
		}
	}
	n.mu.Lock()
	delete(n.watching, netns)
	n.mu.Unlock()
}

func (n *Node) hint(netns string, h kernel.Hint) {
	if netns == "" {
		n.mu.Lock()
		n.synced = true
		n.mu.Unlock()
	}
	if n.opts.Hinted != nil {
		n.opts.Hinted(h)
	}
	if h == kernel.HintAll {
		n.loop.HintAll()
	} else {
		n.loop.Hint(kindsOf(h)...)
	}
	switch h {
	case kernel.HintAll, kernel.HintNamespaces, kernel.HintLinks, kernel.HintAddresses, kernel.HintSysctls:
		n.facts.forget(netns)
		select {
		case n.noticed <- struct{}{}:
		default:
		}
	}
}

// poll looks at what changes without an event.
func (n *Node) poll(ctx context.Context) {
	t := time.NewTimer(rhythm.Until(pollEvery))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		kinds, soon := n.opts.Kinds.poll(ctx)
		if len(kinds) > 0 {
			n.loop.Hint(kinds...)
		}
		every := pollRarely
		if soon {
			every = pollEvery
		}
		t.Reset(rhythm.Until(every))
	}
}

// ObservePass implements reconcile.Observer. A pass that made or removed a
// namespace, or moved an interface, changes the facts.
func (n *Node) ObservePass(p reconcile.Pass) {
	n.count(p)
	n.findBroken()
	n.survey()
	n.swept(p)
	refreshed := p.Cause&(reconcile.CauseRefresh|reconcile.CauseResync) != 0
	if refreshed {
		n.facts.forgetAll()
	}
	if refreshed || p.Writes() > 0 {
		n.replan()
	}
	n.changed()
}

// Totals counts what was written since the start.
type Totals struct {
	Writes   int64
	Repaired int64 // of these, drift that somebody else had made
}

func (n *Node) count(p reconcile.Pass) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range p.Kinds {
		t := n.totals[k.Name]
		t.Writes += int64(k.Created + k.Repaired + k.Deleted)
		t.Repaired += int64(k.Drift)
		n.totals[k.Name] = t
	}
}

// Totals returns the counts by kind.
func (n *Node) Totals() map[string]Totals {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.totals)
}

// observers tells several observers, leaving out nil ones.
type observers []reconcile.Observer

func (o observers) ObservePass(p reconcile.Pass) {
	for _, each := range o {
		if each != nil {
			each.ObservePass(p)
		}
	}
}

// Neighbors counts what was asked and answered on demand.
func (n *Node) Neighbors() tunnel.ResponderStats {
	if r := n.opts.Kinds.responder; r != nil {
		return r.Stats()
	}
	return tunnel.ResponderStats{}
}

// Plan says what would be changed now, in order. Nothing is changed.
func (n *Node) Plan(ctx context.Context) ([]reconcile.Change, []plan.Problem, error) {
	changes, err := n.loop.Plan(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	return changes, n.current.Problems, err
}

// Resync observes and plans anew, looks at everything and repairs what
// differs. It returns when that is done.
func (n *Node) Resync(ctx context.Context) (reconcile.Pass, error) {
	n.replan()
	return n.loop.Resync(ctx)
}
