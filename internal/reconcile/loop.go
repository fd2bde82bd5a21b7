package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultRefresh is how often everything is listed although nothing
	// happened: kernel events can be lost, and some changes cause none.
	defaultRefresh = 30 * time.Second
	// defaultStepTimeout bounds one call into a Kind. It is above the time
	// that an xtables lock is waited for.
	defaultStepTimeout = 30 * time.Second
	// debounce lets the hints of one event (a link and its addresses, routes
	// and neighbors) arrive before they are acted upon.
	debounce = 10 * time.Millisecond
	// hintRetry is the least time between two attempts at a failed object
	// when hints bring them forward.
	hintRetry = time.Second
	// gatePoll is how often a closed gate is looked at unless woken.
	gatePoll = time.Second
)

// ErrStopped is returned by calls that need the loop when Run has ended.
var ErrStopped = errors.New("the reconcile loop has stopped")

// Config describes a Loop.
type Config[S any] struct {
	// Stages in the order of making; breaking goes in reverse.
	Stages []Stage[S]
	// Gate, if not nil, must return true once before the first write;
	// afterwards it is not asked again. Wake the loop with HintAll when it
	// opens.
	Gate func() bool
	// Log receives one line per change, and the first failure and the
	// recovery of an object. Nil discards.
	Log *slog.Logger
	// Observer may be nil.
	Observer Observer
	// Refresh is the time between full looks, 30 s if zero, ±10 %.
	Refresh time.Duration
	// StepTimeout bounds one call of a Kind's method, 30 s if zero.
	StepTimeout time.Duration
}

// Loop makes actual state equal the desired state S, again and again, from one
// goroutine. All methods are safe for concurrent use.
//
// Nothing is written before a desired state has been set and the gate has
// opened. After that every pass is the same, whatever caused it: list, compare,
// write; creations and repairs in stage order, then deletions in reverse.
type Loop[S any] struct {
	cfg     Config[S]
	eng     *engine[S]
	wake    chan struct{} // buffered, 1
	ready   chan struct{}
	done    chan struct{}
	running atomic.Bool

	born      time.Time    // what the next two count from, on the monotonic clock
	progress  atomic.Int64 // when the last step finished
	busySince atomic.Int64 // when the step under way began; 0: idle

	mu      sync.Mutex
	in      inputs[S]
	snap    Status
	passed  chan struct{} // closed and replaced at the end of every pass
	waiting string

	// Of Run's goroutine alone.
	open    bool      // the gate
	ended   time.Time // of the last pass
	applied uint64
	refresh time.Time
	budget  budget
}

// inputs is what others ask of the loop.
type inputs[S any] struct {
	desired S
	gen     uint64 // 0: never set
	hints   map[string]bool
	hintAll bool
	hinted  time.Time // when the first of the hints came
	resyncs []chan<- Pass
	plans   []chan<- planned
}

type planned struct {
	changes []Change
	err     error
}

// New returns a Loop that Run starts. It fails if the stages do not fit
// together.
func New[S any](cfg Config[S]) (*Loop[S], error) {
	eng, err := newEngine(cfg.Stages)
	if err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = defaultRefresh
	}
	if cfg.StepTimeout == 0 {
		cfg.StepTimeout = defaultStepTimeout
	}
	l := &Loop[S]{
		cfg: cfg, eng: eng, born: time.Now(),
		wake:  make(chan struct{}, 1),
		ready: make(chan struct{}), done: make(chan struct{}), passed: make(chan struct{}),
		waiting: waitDesired,
	}
	l.in.hints = map[string]bool{}
	return l, nil
}

// What the loop waits for before its first pass.
const (
	waitDesired = "no desired state yet"
	waitGate    = "the kernel is not watched yet"
)

// String names the task.
func (l *Loop[S]) String() string { return "reconcile" }

// Ready is closed after the first pass in which every kind could be listed, and
// so every object was attempted.
func (l *Loop[S]) Ready() <-chan struct{} { return l.ready }

// Run works until the context ends, and returns nil then. What is in the kernel
// stays. It can be called once.
func (l *Loop[S]) Run(ctx context.Context) error {
	if !l.running.CompareAndSwap(false, true) {
		return errors.New("reconcile: Run was called twice")
	}
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.servePlans(ctx)
		cause, at := l.next(time.Now())
		if cause != 0 {
			l.pass(ctx, cause)
			continue
		}
		timer.Reset(time.Until(at))
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
	return nil
}

// next returns why a pass is due now, or when to look again.
func (l *Loop[S]) next(now time.Time) (Cause, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.in.gen == 0 {
		l.waiting = waitDesired
		return 0, now.Add(gatePoll)
	}
	if !l.open && l.cfg.Gate != nil && !l.cfg.Gate() {
		l.waiting = waitGate
		return 0, now.Add(gatePoll)
	}
	l.open, l.waiting = true, ""
	if l.refresh.IsZero() {
		l.refresh = now
	}
	var cause Cause
	at := l.refresh
	consider := func(c Cause, t time.Time) {
		if !t.After(now) {
			cause |= c
		}
		if t.Before(at) {
			at = t
		}
	}
	consider(CauseRefresh, l.refresh)
	if l.in.gen != l.applied {
		consider(CauseDesired, now)
	}
	if len(l.in.resyncs) > 0 {
		consider(CauseResync, now)
	}
	if !l.in.hinted.IsZero() {
		t := l.in.hinted.Add(debounce)
		if paid := l.budget.ready(now); paid.After(t) {
			t = paid
		}
		consider(CauseHint, t)
	}
	for _, st := range l.eng.stages {
		if t, ok := st.nextRetry(); ok {
			consider(CauseRetry, t)
		}
		if st.waiting() { // what it waits for may have come about in the last round
			consider(CauseRetry, l.ended.Add(hintRetry))
		}
	}
	return cause, at
}

// take empties the inputs that a pass serves and marks what they make stale.
func (l *Loop[S]) take(cause Cause) (gen uint64, resyncs []chan<- Pass, hinted bool) {
	l.mu.Lock()
	in := l.in
	l.in.hints, l.in.hintAll, l.in.hinted = map[string]bool{}, false, time.Time{}
	l.in.resyncs = nil
	l.mu.Unlock()

	now := time.Now()
	all := in.hintAll || cause&(CauseRefresh|CauseResync) != 0
	for _, st := range l.eng.stages {
		if in.gen != l.applied {
			st.desire(in.desired)
		}
		b := st.base()
		if all || in.hints[b.name] {
			b.stale = true
		}
		if in.hintAll || in.hints[b.name] {
			st.hasten(now, hintRetry)
		}
		if cause&CauseResync != 0 {
			st.hasten(now, 0)
			b.listNext = time.Time{}
		}
	}
	l.applied = in.gen
	return in.gen, in.resyncs, !in.hinted.IsZero()
}

func (l *Loop[S]) pass(ctx context.Context, cause Cause) {
	start := time.Now()
	gen, resyncs, hinted := l.take(cause)
	p := &pass{log: l.cfg.Log, timeout: l.cfg.StepTimeout, busy: l.busy, byName: l.eng.byName, noted: map[note]int{}}
	l.eng.begin()
	report := Pass{Cause: cause, Generation: gen, Start: start}
	report.Rounds = l.eng.run(ctx, p)
	if ctx.Err() != nil {
		return // half a pass proves nothing
	}
	report.Kinds, report.Err = l.eng.outcome()
	report.Converged = report.Err == nil
	l.eng.end()
	p.closeNotes()
	now := time.Now()
	report.Duration = now.Sub(start)
	if cause&(CauseRefresh|CauseResync) != 0 {
		tenth := l.cfg.Refresh / 10
		l.refresh = now.Add(l.cfg.Refresh - tenth + rand.N(2*tenth+1))
	}
	if hinted {
		l.budget.spend(now, report.Duration)
	}
	listed := l.record(report)
	if l.cfg.Observer != nil { // before the rest, so that whoever waits finds it counted
		l.cfg.Observer.ObservePass(report)
	}
	l.publish(listed)
	for _, c := range resyncs {
		c <- report // buffered
	}
}

// record has Status tell of a pass, and returns whether every kind could be listed.
func (l *Loop[S]) record(report Pass) (listed bool) {
	listed = true
	status := Status{Applied: report.Generation, Converged: report.Converged, LastPass: report.Start, Duration: report.Duration}
	for _, st := range l.eng.stages {
		status.Kinds = append(status.Kinds, st.status())
		b := st.base()
		listed = listed && b.everListed && b.listErr == nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snap = status
	l.ended = report.Start.Add(report.Duration)
	return listed
}

// publish wakes up who waits for a pass.
func (l *Loop[S]) publish(listed bool) {
	l.mu.Lock()
	close(l.passed)
	l.passed = make(chan struct{})
	l.mu.Unlock()
	if !listed {
		return
	}
	select {
	case <-l.ready:
	default:
		close(l.ready)
	}
}

func (l *Loop[S]) busy(yes bool) {
	since := int64(max(time.Since(l.born), 1))
	if yes {
		l.busySince.Store(since)
		return
	}
	l.busySince.Store(0)
	l.progress.Store(since)
}

// servePlans answers requests for a plan. A Kind is never called from two
// goroutines, so it is done here.
func (l *Loop[S]) servePlans(ctx context.Context) {
	l.mu.Lock()
	plans, in := l.in.plans, l.in
	l.in.plans = nil
	l.mu.Unlock()
	if len(plans) == 0 {
		return
	}
	var out planned
	if in.gen == 0 {
		out.err = errors.New(waitDesired)
	} else {
		out.changes, out.err = l.eng.plan(ctx, in.desired, l.cfg.StepTimeout, l.busy)
	}
	for _, c := range plans {
		c <- out // buffered
	}
}
