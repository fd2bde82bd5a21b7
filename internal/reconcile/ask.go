package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"
)

func (l *Loop[S]) nudge() {
	select {
	case l.wake <- struct{}{}:
	default: // awake already
	}
}

// SetDesired replaces the whole desired state and returns its generation. The
// state must not change afterwards. States that come faster than they can be
// applied are skipped: the latest wins.
func (l *Loop[S]) SetDesired(s S) uint64 {
	l.mu.Lock()
	l.in.desired = s
	l.in.gen++
	gen := l.in.gen
	l.mu.Unlock()
	l.nudge()
	return gen
}

// Hint says that objects of the named kinds may have changed. It carries no
// truth; names of no stage are ignored. Hints are cheap to give and their cost
// is bounded: they are merged, and the passes they cause get a quarter of one
// CPU at most.
func (l *Loop[S]) Hint(kinds ...string) {
	l.hint(false, kinds)
}

// HintAll is a Hint for every kind.
func (l *Loop[S]) HintAll() {
	l.hint(true, nil)
}

func (l *Loop[S]) hint(all bool, kinds []string) {
	known := slices.ContainsFunc(kinds, func(k string) bool { return l.eng.byName[k] != nil })
	if !all && !known {
		return
	}
	l.mu.Lock()
	first := l.in.hinted.IsZero()
	if first {
		l.in.hinted = time.Now()
	}
	l.in.hintAll = l.in.hintAll || all
	for _, k := range kinds {
		l.in.hints[k] = true
	}
	l.mu.Unlock()
	if first || all {
		l.nudge()
	}
}

// Resync lists everything, tries everything that failed again without waiting,
// and returns the report of that pass. Pass.Err says what is still not as
// wanted; the error of Resync itself means that no pass ran: the context ended,
// or the loop.
func (l *Loop[S]) Resync(ctx context.Context) (Pass, error) {
	c := make(chan Pass, 1)
	l.mu.Lock()
	l.in.resyncs = append(l.in.resyncs, c)
	l.mu.Unlock()
	l.nudge()
	select {
	case p := <-c:
		return p, nil
	case <-ctx.Done():
		return Pass{}, fmt.Errorf("resync: %w%s", ctx.Err(), l.because())
	case <-l.done:
		return Pass{}, ErrStopped
	}
}

// Plan lists everything and returns what would be written now, in that order:
// deletions that must come first, creations and repairs, the other deletions.
// Nothing is written. With an error the changes of the kinds that could be
// listed are returned nevertheless.
func (l *Loop[S]) Plan(ctx context.Context) ([]Change, error) {
	c := make(chan planned, 1)
	l.mu.Lock()
	l.in.plans = append(l.in.plans, c)
	l.mu.Unlock()
	l.nudge()
	select {
	case p := <-c:
		return p.changes, p.err
	case <-ctx.Done():
		return nil, fmt.Errorf("plan: %w", ctx.Err())
	case <-l.done:
		return nil, ErrStopped
	}
}

// plan computes the changes toward s without touching the engine's memory, so
// that a drift seen here is still news to the next pass.
func (e *engine[S]) plan(ctx context.Context, s S, timeout time.Duration, busy func(bool)) ([]Change, error) {
	p := &pass{timeout: timeout, busy: busy}
	var first, makes, breaks []Change
	var errs []error
	for _, st := range e.stages {
		err := p.step(ctx, func(ctx context.Context) error {
			f, m, b, err := st.plan(ctx, s)
			first = append(first, f...)
			makes = append(makes, m...)
			breaks = append(slices.Clone(b), breaks...)
			return err
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return slices.Concat(first, makes, breaks), joinErrors(errs, len(errs))
}

// Status returns the state as of the end of the last pass.
func (l *Loop[S]) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.snap
	s.Generation, s.Waiting = l.in.gen, l.waiting
	return s
}

// Passed returns a channel that is closed when the next pass has ended and
// Status tells of it.
func (l *Loop[S]) Passed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passed
}

// Converged says whether the last pass applied the given generation, or a later
// one, and found or made everything as wanted.
func (l *Loop[S]) Converged(gen uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snap.Converged && l.snap.Applied >= gen
}

// WaitConverged waits until Converged(gen). If the context ends before, the
// error says what is missing.
func (l *Loop[S]) WaitConverged(ctx context.Context, gen uint64) error {
	for {
		l.mu.Lock()
		ok := l.snap.Converged && l.snap.Applied >= gen
		passed := l.passed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-passed:
		case <-ctx.Done():
			return fmt.Errorf("generation %d has not converged: %w%s", gen, ctx.Err(), l.because())
		case <-l.done:
			return ErrStopped
		}
	}
}

// because explains, after a colon, why the loop has not converged.
func (l *Loop[S]) because() string {
	s := l.Status()
	if s.Waiting != "" {
		return ": " + s.Waiting
	}
	for _, k := range s.Kinds {
		if k.ListErr != nil {
			return fmt.Sprintf(": %v", k.ListErr)
		}
		for _, o := range k.Objects {
			return fmt.Sprintf(": %s %s %s: %v", o.Op, k.Name, o.Key, o.Err)
		}
	}
	return ""
}

// LastProgress returns when the loop last finished a step, that is one call of
// a Kind's method; before the first, when the loop was made. An idle loop makes
// a step every Refresh.
func (l *Loop[S]) LastProgress() time.Time {
	return l.born.Add(time.Duration(l.progress.Load()))
}

// Alive returns when the loop was last known to go on: now, unless the step under
// way began a while ago, or an idle loop has let two refreshes go by.
func (l *Loop[S]) Alive() time.Time {
	now := time.Now()
	if d := l.Stalled(); d > 0 {
		return now.Add(-d)
	}
	if last := l.LastProgress(); now.Sub(last) > 2*l.cfg.Refresh {
		return last
	}
	return now
}

// Stalled returns how long the step under way has taken, or 0 if the loop is
// not in one. A loop that is stalled for longer than StepTimeout is wedged: the
// call does not heed its context.
func (l *Loop[S]) Stalled() time.Duration {
	since := l.busySince.Load()
	if since == 0 {
		return 0
	}
	return time.Since(l.born) - time.Duration(since)
}
