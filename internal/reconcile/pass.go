package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// maxRounds is how often one pass may list and write before it calls what
// still differs unsettled. One round writes; a second may have to repair what
// the first one's deletions dragged along; the third is for safety.
const maxRounds = 3

// engine runs passes over its stages.
type engine[S any] struct {
	stages []stage[S]
	byName map[string]*base
}

// newEngine checks that the stages' names are unique and that what they refer
// to is there, in the right order.
func newEngine[S any](stages []Stage[S]) (*engine[S], error) {
	e := &engine[S]{byName: map[string]*base{}}
	position := map[string]int{}
	for i, s := range stages {
		st := s.make()
		b := st.base()
		if e.byName[b.name] != nil {
			return nil, fmt.Errorf("two stages are named %q", b.name)
		}
		e.stages = append(e.stages, st)
		e.byName[b.name] = b
		position[b.name] = i
	}
	for i, st := range e.stages {
		b := st.base()
		for _, r := range b.requires {
			at, ok := position[r]
			if !ok || at >= i {
				return nil, fmt.Errorf("stage %q requires %q, which is no earlier stage", b.name, r)
			}
			b.required = append(b.required, at)
			e.stages[at].base().users = append(e.stages[at].base().users, i)
		}
		for _, n := range b.invalidates {
			if e.byName[n] == nil {
				return nil, fmt.Errorf("stage %q invalidates %q, which is no stage", b.name, n)
			}
		}
	}
	return e, nil
}

// pass is the state of one pass that stages share.
type pass struct {
	log     *slog.Logger
	timeout time.Duration // of one step
	busy    func(bool)    // called around each step
	byName  map[string]*base
	writes  int // successful ones in this round
	noted   map[note]int
}

// step calls into a Kind, with a time limit, and under the watchdog's eyes.
func (p *pass) step(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	p.busy(true)
	defer p.busy(false)
	return f(ctx)
}

// invalidate marks the kinds that a write of b may have changed.
func (p *pass) invalidate(b *base) {
	for _, n := range b.invalidates {
		p.byName[n].stale, p.byName[n].prompt = true, true
	}
}

// run makes the actual state equal the desired one, as far as it can, and
// returns the number of rounds it took.
func (e *engine[S]) run(ctx context.Context, p *pass) int {
	for round := 1; round <= maxRounds; round++ {
		p.writes = 0
		e.refresh(ctx, p)
		for i, st := range e.stages {
			if e.due(st) { // an earlier stage has just invalidated it
				e.list(ctx, p, st)
			}
			if b := st.base(); b.listed && b.listErr == nil && ctx.Err() == nil {
				st.build(ctx, p, e.below(i))
			}
		}
		for i, st := range slices.Backward(e.stages) {
			if b := st.base(); b.listed && b.listErr == nil && ctx.Err() == nil {
				st.raze(ctx, p, e.above(i))
			}
		}
		if ctx.Err() != nil || p.writes == 0 {
			return round
		}
	}
	e.refresh(ctx, p)
	for _, st := range e.stages {
		if b := st.base(); b.listed && b.listErr == nil && ctx.Err() == nil {
			st.settle(p)
		}
	}
	return maxRounds
}

// refresh lists every kind whose list is stale or that has something to try
// again, and the users of every kind that has something to delete.
func (e *engine[S]) refresh(ctx context.Context, p *pass) {
	for _, st := range e.stages {
		retry, ok := st.nextRetry()
		again := st.waiting() || ok && !time.Now().Before(retry)
		if e.due(st) || again && !st.base().listed {
			e.list(ctx, p, st)
		}
	}
	for _, st := range e.stages {
		if !st.base().listed || !st.hasDeletions() {
			continue
		}
		for _, u := range st.base().users {
			if !e.stages[u].base().listed {
				e.list(ctx, p, e.stages[u])
			}
		}
	}
}

// due says whether a kind must and may be listed now.
func (e *engine[S]) due(st stage[S]) bool {
	b := st.base()
	return b.stale && (b.listErr == nil || !time.Now().Before(b.listNext))
}

func (e *engine[S]) list(ctx context.Context, p *pass, st stage[S]) {
	if ctx.Err() != nil {
		return
	}
	b := st.base()
	if b.prompt {
		st.hasten(time.Now(), retryMin)
		b.prompt = false
	}
	err := st.list(ctx, p)
	if ctx.Err() != nil {
		return
	}
	b.listed = true
	b.report.ListErr = err
	if err == nil {
		if b.listErr != nil {
			p.note(slog.LevelInfo, b.name, "listed again", slog.Int("attempts", b.listTries))
		}
		b.stale, b.everListed = false, true
		b.listErr, b.listTries, b.listedAt = nil, 0, time.Now()
		return
	}
	if b.listErr == nil {
		p.note(slog.LevelWarn, b.name, "cannot list", slog.Any("err", err))
	}
	b.stale = true
	b.listErr = fmt.Errorf("list %s: %w", b.name, err)
	b.listTries++
	b.listNext = time.Now().Add(backoff(b.listTries))
}

// below returns what bars stage i's objects from being written.
func (e *engine[S]) below(i int) barrier {
	all := barrier{}
	for _, r := range e.stages[i].base().required {
		all.merge(e.stages[r].base(), e.stages[r].unbuilt())
	}
	return all
}

// above returns what bars stage i's objects from being deleted.
func (e *engine[S]) above(i int) barrier {
	all := barrier{}
	for _, u := range e.stages[i].base().users {
		all.merge(e.stages[u].base(), e.stages[u].unrazed())
	}
	return all
}

// outcome sums up a pass.
func (e *engine[S]) outcome() ([]KindPass, error) {
	var kinds []KindPass
	var errs []error
	total := 0
	for _, st := range e.stages {
		b := st.base()
		kinds = append(kinds, b.report)
		if b.listErr != nil {
			errs = append(errs, b.listErr)
			total++
		}
		s := st.status()
		total += s.Pending
		errs = append(errs, st.pendingErrors(maxErrors)...)
	}
	return kinds, joinErrors(errs, total)
}

// begin and end bracket a pass for every stage.
func (e *engine[S]) begin() {
	for _, st := range e.stages {
		b := st.base()
		b.listed = false
		b.report = KindPass{Name: b.name}
	}
}

func (e *engine[S]) end() {
	for _, st := range e.stages {
		if b := st.base(); b.listed && b.listErr == nil {
			b.settled, b.wantChanged = true, false
		}
	}
}

// note is a sort of log line: the first maxLines of a sort in a pass are
// logged at their own level, the rest for debugging only, and counted.
type note struct{ kind, msg string }

const maxLines = 20

func (p *pass) note(level slog.Level, kind, msg string, attrs ...slog.Attr) {
	n := note{kind, msg}
	p.noted[n]++
	if p.noted[n] > maxLines {
		level = slog.LevelDebug
	}
	p.log.LogAttrs(context.Background(), level, msg, append([]slog.Attr{slog.String("kind", kind)}, attrs...)...)
}

// closeNotes logs how many lines of each sort were left out.
func (p *pass) closeNotes() {
	for n, count := range p.noted {
		if count > maxLines {
			p.log.Info(n.msg+" more", "kind", n.kind, "objects", count-maxLines)
		}
	}
}

func (p *pass) logChange(kind string, op Op, key, reason string) {
	msg := map[Op]string{Create: "created", Repair: "repaired", Delete: "deleted"}[op]
	p.note(slog.LevelInfo, kind, msg, slog.String("object", key), slog.String("reason", reason))
}

func (p *pass) logFailure(kind string, op Op, key string, err error) {
	p.note(slog.LevelWarn, kind, "cannot "+op.String(), slog.String("object", key), slog.Any("err", err))
}

// logRecovery is silent on objects that only waited for others.
func (p *pass) logRecovery(kind string, o *pending) {
	if o.attempts == 0 {
		return
	}
	p.note(slog.LevelInfo, kind, "recovered", slog.String("object", o.text), slog.Int("attempts", o.attempts))
}
