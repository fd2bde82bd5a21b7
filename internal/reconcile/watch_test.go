package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// passes is an Observer that remembers.
type passes struct {
	mu   sync.Mutex
	seen []Pass
}

func (p *passes) ObservePass(x Pass) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, x)
}

// take returns the passes since the last take, once the loop is idle.
func (p *passes) take() []Pass {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.seen
	p.seen = nil
	return out
}

func TestHintStormsAreBounded(t *testing.T) {
	for _, took := range []time.Duration{0, 5 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(took.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld()
				w.took = took / time.Duration(len(kinds))
				var seen passes
				l := w.start(t, func(c *Config[state]) { c.Observer = &seen })
				converge(t, l, state{"parents": {"p": "a"}})
				seen.take()
				storm := 20 * time.Second
				for end := time.Now().Add(storm); time.Now().Before(end); time.Sleep(time.Millisecond) {
					l.HintAll()
				}
				var busy time.Duration
				all := seen.take()
				for _, p := range all {
					busy += p.Duration
				}
				if limit := storm/budgetShare + budgetBurst + 2*took; busy > limit || len(all) > 1100 {
					t.Errorf("%d passes, busy for %v of %v", len(all), busy, storm)
				}
				// And yet a drift in the storm is repaired within a second.
				w.set("parents", "p", "drift")
				for range 1000 {
					l.HintAll()
					time.Sleep(time.Millisecond)
				}
				if got := w.snapshot()["parents"]["p"]; got != "a" {
					t.Errorf("the parent is still %q after a second", got)
				}
			})
		})
	}
}

func TestBudgetForgivesALongPass(t *testing.T) {
	var b budget
	now := time.Now()
	if at := b.ready(now); at != now {
		t.Errorf("a new budget pays after %v", at.Sub(now))
	}
	b.spend(now, time.Minute)
	if d := b.ready(now).Sub(now); d <= 0 || d >= time.Second {
		t.Errorf("a pass of a minute delays the next by %v", d)
	}
	if at := b.ready(now.Add(time.Hour)); !at.Equal(now.Add(time.Hour)) || b.level != budgetBurst {
		t.Errorf("an hour saves %v", b.level)
	}
}

func TestHintListsOnlyWhatItNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, nil)
		converge(t, l, state{"parents": {"p": "a"}})
		n := w.count()
		l.Hint("nothing of ours")
		l.Hint("users", "users")
		time.Sleep(time.Second)
		if got, want := w.since(n), []string{"list users"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		n = w.count()
		l.SetDesired(state{"parents": {"p": "b"}})
		synctest.Wait()
		want := []string{"list parents", "upsert parents p", "list children", "list parents"}
		if got := w.since(n); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestEverythingIsListedNowAndThen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		var seen passes
		l := w.start(t, func(c *Config[state]) { c.Observer = &seen; c.Refresh = 10 * time.Second })
		converge(t, l, state{"parents": {"p": "a"}})
		w.set("parents", "p", "drift nobody told of")
		time.Sleep(11*time.Second + time.Millisecond)
		if got := w.snapshot()["parents"]["p"]; got != "a" {
			t.Errorf("the parent is %q", got)
		}
		time.Sleep(100 * time.Second)
		if n := len(seen.take()); n < 9 || n > 14 {
			t.Errorf("%d passes in 110 s", n)
		}
		if d := time.Since(l.LastProgress()); d > 11*time.Second {
			t.Errorf("last progress %v ago", d)
		}
	})
}

func TestDesiredStatesAreCoalesced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.took = time.Second
		l := w.start(t, nil)
		var gen uint64
		for i := range 100 {
			gen = l.SetDesired(state{"parents": {fmt.Sprint("p", i): "a"}})
			time.Sleep(10 * time.Millisecond)
		}
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
		if got := w.writes(0); len(got) > 4 {
			t.Errorf("wrote %q", got)
		}
		if !l.Converged(gen-1) || l.Converged(gen+1) {
			t.Error("an older generation has converged with a newer one, and not the other way round")
		}
	})
}

func TestDriftIsToldFromWish(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("upsert parents bad")
		w.objs["users"]["left"], w.objs["guards"]["left"] = "by another life", "by another life"
		var seen passes
		l := w.start(t, func(c *Config[state]) { c.Observer = &seen })
		drift := func() map[string]int {
			out := map[string]int{}
			for _, p := range seen.take() {
				for _, k := range p.Kinds {
					if k.Drift > 0 {
						out[k.Name] += k.Drift
					}
				}
			}
			return out
		}
		l.SetDesired(state{"parents": {"p": "a", "bad": "a"}, "children": {"p/c": "a"}, "users": {"u": "a"}})
		time.Sleep(time.Minute)
		if got := drift(); len(got) > 0 {
			t.Errorf("our own changes and failures count as drift: %v", got)
		}
		w.set("users", "u", "x")
		w.set("users", "v", "x")
		w.set("parents", "p", "") // takes its child along
		l.HintAll()
		time.Sleep(time.Second)
		if got := drift(); got["users"] != 2 || got["parents"] != 1 || got["children"] != 1 {
			t.Errorf("drift: %v", got)
		}
		l.SetDesired(state{})
		time.Sleep(time.Second)
		if got := drift(); len(got) > 0 {
			t.Errorf("another wish counts as drift: %v", got)
		}
	})
}

func TestObjectThatDoesNotStayIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		upserts := 0
		w.setFault(func(_ int, op string) fault {
			switch op {
			case "upsert parents p":
				upserts++
			case "list parents": // another program is faster than we are
				w.put("parents", "p", "theirs")
			}
			return fine
		})
		l := w.start(t, nil)
		l.SetDesired(state{"parents": {"p": "ours", "q": "a"}})
		time.Sleep(10 * time.Millisecond)
		o := l.Status().Kinds[1].Objects
		if len(o) != 1 || !errors.Is(o[0].Err, errUnsettled) || !strings.Contains(o[0].Err.Error(), "theirs should be ours") {
			t.Errorf("status: %+v", o)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if upserts > 100 {
			t.Errorf("%d writes in ten minutes", upserts)
		}
	})
}

func TestLogsFirstFailureAndRecoveryOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("upsert parents p", "list users")
		var log logs
		l := w.start(t, func(c *Config[state]) { c.Log = slog.New(&log) })
		many := map[string]string{}
		for i := range 100 {
			many[fmt.Sprintf("g%02d", i)] = "a"
		}
		gen := l.SetDesired(state{"guards": many, "parents": {"p": "a"}, "children": {"p/c": "a"}})
		time.Sleep(10 * time.Minute)
		lines := log.take()
		var rest []string
		created := 0
		for _, line := range lines {
			if strings.HasPrefix(line, "INFO created guards") {
				created++
				continue
			}
			rest = append(rest, line)
		}
		want := []string{"WARN cannot list users", "WARN cannot create parents p", "INFO created more guards 80"}
		if created != maxLines || !slices.Equal(rest, want) {
			t.Errorf("%d lines of guards, and %q", created, rest)
		}
		if s := l.Status().Kinds[1].Objects[0]; s.Attempts < 10 {
			t.Errorf("only %d attempts", s.Attempts)
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
		got := log.take()
		slices.Sort(got)
		want = []string{"INFO created children p/c", "INFO created parents p", "INFO listed again users", "INFO recovered parents p"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestErrorsAreCapped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("upsert")
		l := w.start(t, nil)
		s := state{"guards": {}, "parents": {}}
		for i := range 50 {
			s["guards"][fmt.Sprintf("g%02d", i)], s["parents"][fmt.Sprintf("p%02d", i)] = "a", "a"
		}
		l.SetDesired(s)
		p, err := l.Resync(t.Context())
		if err != nil || p.Converged {
			t.Fatal(p, err)
		}
		if lines := strings.Split(p.Err.Error(), "\n"); len(lines) != maxErrors+1 || lines[maxErrors] != "and 95 more" || !errors.Is(p.Err, errInjected) {
			t.Errorf("got %q", lines)
		}
		if o := l.Status().Kinds[0]; o.Pending != 50 || len(o.Objects) != maxObjects {
			t.Errorf("%d pending, %d told", o.Pending, len(o.Objects))
		}
	})
}

func TestPlanShowsWhatWouldHappenAndDoesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		stages := w.stages()
		stages[1] = w.stage(slots{toy{w, "parents"}}, Invalidates("children"))
		var seen passes
		l := w.start(t, func(c *Config[state]) { c.Stages = stages; c.Observer = &seen })
		converge(t, l, state{"guards": {"g": "a"}, "parents": {"p": "1", "z": "2"}, "users": {"g/u": "a"}})
		w.set("guards", "g", "drift")
		w.set("users", "g/v", "foreign")
		w.set("parents", "p", "")
		w.set("parents", "q", "1")
		n := w.count()
		plan, err := l.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range plan {
			got = append(got, fmt.Sprint(c.Op, " ", c.Kind, " ", c.Key, " ", c.Have, ">", c.Want, " ", c.Reason, " ", c.Disruptive))
		}
		want := []string{
			"delete parents q 1><nil> in the way of p true",
			"repair guards g drift>a drift should be a false",
			"create parents p <nil>>1 missing false",
			"delete users g/v foreign><nil> not wanted false",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		if got := w.writes(n); len(got) > 0 {
			t.Errorf("the plan wrote %q", got)
		}
		seen.take()
		p, err := l.Resync(t.Context())
		if err != nil || p.Err != nil || p.Kinds[0].Drift != 1 || p.Kinds[0].Repaired != 1 || p.Kinds[3].Deleted != 1 || p.Cause != CauseResync || len(seen.take()) != 1 {
			t.Errorf("the pass after the plan: %+v, %v", p, err)
		}
		if plan, err := l.Plan(t.Context()); err != nil || len(plan) > 0 {
			t.Errorf("the plan after that: %v, %v", plan, err)
		}
		w.failing("list guards")
		w.set("users", "g/v", "foreign")
		if plan, err := l.Plan(t.Context()); !errors.Is(err, errInjected) || len(plan) != 1 {
			t.Errorf("the plan with guards unknown: %v, %v", plan, err)
		}
	})
}

// stuck is a kind whose List hangs.
type stuck struct {
	toy
	heeds bool
	free  chan struct{}
}

func (s stuck) List(ctx context.Context) (map[string]string, error) {
	if s.heeds {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	<-s.free
	return nil, nil
}

func TestWatchdog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		s := stuck{toy{w, "users"}, false, make(chan struct{})}
		l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(s)} })
		time.Sleep(time.Hour)
		if d := l.Stalled(); d != 0 {
			t.Errorf("an idle loop is stalled for %v", d)
		}
		if d := time.Since(l.Alive()); d != time.Hour {
			t.Errorf("a loop that has nothing to do was alive %v ago", d)
		}
		l.SetDesired(state{})
		time.Sleep(time.Hour)
		if d := l.Stalled(); d != time.Hour {
			t.Errorf("stalled for %v", d)
		}
		if d := time.Since(l.Alive()); d != time.Hour {
			t.Errorf("a loop that hangs was alive %v ago", d)
		}
		close(s.free)
		synctest.Wait()
		if d := time.Since(l.LastProgress()); d != 0 || l.Stalled() != 0 {
			t.Errorf("last progress %v ago, stalled for %v", d, l.Stalled())
		}
		time.Sleep(time.Hour + time.Second)
		if d := time.Since(l.Alive()); d != 0 {
			t.Errorf("a loop that refreshes was alive %v ago", d)
		}
	})
}

func TestStepsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, func(c *Config[state]) {
			c.Stages = []Stage[state]{w.stage(stuck{toy: toy{w, "users"}, heeds: true}), w.stage(toy{w, "parents"})}
			c.StepTimeout = time.Second
		})
		l.SetDesired(state{"parents": {"p": "a"}})
		time.Sleep(1500 * time.Millisecond)
		if got := w.snapshot()["parents"]["p"]; got != "a" {
			t.Error("a kind that hangs stops the others")
		}
		if err := l.Status().Kinds[0].ListErr; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("list error: %v", err)
		}
	})
}

// scoped is a kind that sees only what is wanted.
type scoped struct {
	toy
	want map[string]string
}

func (s *scoped) Want(want map[string]string) { s.want = want }

func (s *scoped) List(ctx context.Context) (map[string]string, error) {
	all, err := s.toy.List(ctx)
	for k := range all {
		if _, ok := s.want[k]; !ok {
			delete(all, k)
		}
	}
	return all, err
}

func TestScopedKindIsToldWhatIsWanted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs["guards"] = map[string]string{"a": "1", "foreign": "1"}
		l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(&scoped{toy: toy{w, "guards"}})} })
		converge(t, l, state{"guards": {"a": "2", "b": "2"}})
		w.set("guards", "a", "drift")
		if plan, err := l.Plan(t.Context()); err != nil || len(plan) != 1 || plan[0].Op != Repair {
			t.Errorf("plan: %v, %v", plan, err)
		}
		converge(t, l, state{"guards": {"b": "2"}})
		want := []string{"upsert guards a", "upsert guards b"}
		if got := w.writes(0); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// short is a batcher that breaks its promise.
type short struct{ batchToy }

func (s short) UpsertBatch(ctx context.Context, items []Item[string, string]) []error {
	return s.batchToy.UpsertBatch(ctx, items[:1])
}

func TestMissingBatchAnswerIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(short{batchToy{toy{w, "guards"}}})} })
		gen := l.SetDesired(state{"guards": {"a": "1", "b": "1", "c": "1"}})
		synctest.Wait()
		if s := l.Status().Kinds[0]; s.Pending != 2 || s.Actual != 1 {
			t.Errorf("status: %+v", s)
		}
		if err := l.WaitConverged(t.Context(), gen); err != nil { // one by one
			t.Fatal(err)
		}
	})
}

func TestStopping(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.took = time.Second
		var log logs
		l, err := New(Config[state]{Stages: w.stages(), Log: slog.New(&log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5500*time.Millisecond) // in the second write
		defer cancel()
		gen := l.SetDesired(state{"parents": {"p": "a", "q": "a", "r": "a"}})
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		if got := w.writes(0); len(got) != 2 {
			t.Errorf("wrote %q", got)
		}
		for _, line := range log.take() {
			if strings.HasPrefix(line, "WARN") {
				t.Errorf("stopping logs %q", line)
			}
		}
		if err := l.Run(t.Context()); err == nil {
			t.Error("Run can be called twice")
		}
		if err := l.WaitConverged(t.Context(), gen); !errors.Is(err, ErrStopped) {
			t.Errorf("WaitConverged: %v", err)
		}
		if _, err := l.Resync(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("Resync: %v", err)
		}
		if _, err := l.Plan(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("Plan: %v", err)
		}
	})
}
