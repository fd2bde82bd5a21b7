package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMakeInOrderThenBreakInReverse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs = state{
			"guards": {"old": "a"}, "parents": {"old": "a"}, "children": {"old/c": "a"}, "users": {"old/u": "a"},
		}
		l := w.start(t, nil)
		converge(t, l, state{
			"guards": {"p": "a"}, "parents": {"p": "a"}, "children": {"p/c": "a", "p/d": "a"}, "users": {"p/u": "a"},
		})
		want := []string{
			"upsert guards p", "upsert parents p", "batch-upsert children p/c", "batch-upsert children p/d", "upsert users p/u",
			"delete users old/u", "delete children old/c", "delete parents old", "delete guards old",
		}
		if got := w.writes(0); !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestNothingIsWrittenBeforeTheGates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs["parents"]["unwanted"] = "a"
		var open atomic.Bool
		l := w.start(t, func(c *Config[state]) { c.Gate = open.Load })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()

		l.HintAll()
		if _, err := l.Resync(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), waitDesired) {
			t.Errorf("resync without a desired state: %v", err)
		}
		if _, err := l.Plan(t.Context()); err == nil {
			t.Error("a plan without a desired state")
		}
		gen := l.SetDesired(state{"parents": {"p": "a"}})
		time.Sleep(time.Hour)
		if n := w.since(0); len(n) > 0 {
			t.Errorf("calls before the gates: %q", n)
		}
		if s := l.Status(); s.Waiting != waitGate || s.Generation != gen || s.Converged {
			t.Errorf("status: %+v", s)
		}
		if plan, err := l.Plan(t.Context()); err != nil || len(plan) != 2 {
			t.Errorf("plan before the gate: %v, %v", plan, err)
		}
		select {
		case <-l.Ready():
			t.Error("ready before the gates")
		default:
		}

		open.Store(true)
		l.HintAll()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
		<-l.Ready()
		if got := w.snapshot()["parents"]; got["p"] != "a" || len(got) != 1 {
			t.Errorf("parents: %v", got)
		}
	})
}

// failing makes the calls that begin with one of the prefixes fail, until mend.
func (w *world) failing(prefixes ...string) {
	w.setFault(func(_ int, op string) fault {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(op, p) }) {
			return before
		}
		return fine
	})
}

func (w *world) mend() { w.setFault(nil) }

func TestFailedObjectDoesNotStopItsSiblings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("batch-upsert children p/b", "upsert parents q")
		l := w.start(t, nil)
		gen := l.SetDesired(state{
			"parents": {"p": "a", "q": "a"}, "children": {"p/a": "a", "p/b": "a", "p/c": "a", "q/a": "a"},
		})
		time.Sleep(10 * time.Millisecond)
		got := w.snapshot()
		if len(got["children"]) != 2 || len(got["parents"]) != 1 {
			t.Errorf("children %v, parents %v", got["children"], got["parents"])
		}
		s := l.Status()
		if s.Converged || s.Kinds[1].Pending != 1 || s.Kinds[2].Pending != 2 || s.Kinds[2].Wanted != 4 || s.Kinds[2].Actual != 2 {
			t.Errorf("status: %+v", s)
		}
		objects := s.Kinds[2].Objects
		if len(objects) != 2 || objects[0].Key != "p/b" || !errors.Is(objects[0].Err, errInjected) || objects[0].Waiting ||
			objects[1].Key != "q/a" || !objects[1].Waiting || !strings.Contains(objects[1].Err.Error(), "waits for parents q") {
			t.Errorf("objects: %+v", objects)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.WaitConverged(short, gen); err == nil || !strings.Contains(err.Error(), "create parents q") {
			t.Errorf("WaitConverged: %v", err)
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Error(err)
		}
	})
}

func TestBackoffDoublesUpToAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		var mu sync.Mutex
		var at []time.Time
		attempts := func() []time.Time {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			out := at
			at = nil
			return out
		}
		w.setFault(func(_ int, op string) fault {
			if op != "upsert parents p" {
				return fine
			}
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
			return before
		})
		l := w.start(t, nil)
		l.SetDesired(state{"parents": {"p": "a"}})
		time.Sleep(5 * time.Minute)
		got := attempts()
		if len(got) < 12 || len(got) > 16 {
			t.Fatalf("%d attempts in five minutes", len(got))
		}
		nominal := retryMin
		for i := 1; i < len(got); i++ {
			if d := got[i].Sub(got[i-1]); d < nominal*8/10 || d > nominal {
				t.Errorf("pause %d: %v, nominally %v", i, d, nominal)
			}
			nominal = min(2*nominal, retryMax)
		}
		if p, err := l.Resync(t.Context()); err != nil || p.Err == nil {
			t.Errorf("resync: %v %v", p, err)
		}
		if got := attempts(); len(got) != 1 {
			t.Errorf("a resync made %d attempts", len(got))
		}
		l.SetDesired(state{"parents": {"p": "b"}})
		if got := attempts(); len(got) != 1 {
			t.Errorf("another wish made %d attempts", len(got))
		}
		l.Hint("parents")
		time.Sleep(retryMin)
		if got := attempts(); len(got) != 1 {
			t.Errorf("%d attempts after the first pause: a hint must not lengthen it", len(got))
		}
		time.Sleep(time.Minute)
		attempts()
		for range 1000 {
			l.Hint("parents")
			time.Sleep(10 * time.Millisecond)
		}
		if got := attempts(); len(got) < 8 || len(got) > 12 {
			t.Errorf("%d attempts in ten seconds of hints", len(got))
		}
	})
}

func TestFailedListBlocksItsKindAndWhatRestsOnIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs = state{"guards": {"old": "a"}, "parents": {}, "children": {}, "users": {"old/u": "a"}}
		w.failing("list guards")
		l := w.start(t, nil)
		want := state{"guards": {"p": "a"}, "parents": {"p": "a"}, "users": {"p/u": "a"}}
		gen := l.SetDesired(want)
		time.Sleep(time.Second)
		if got, want := w.writes(0), []string{"upsert parents p", "delete users old/u"}; !slices.Equal(got, want) {
			t.Errorf("guards unknown: got %q, want %q", got, want)
		}
		if s := l.Status(); !errors.Is(s.Kinds[0].ListErr, errInjected) {
			t.Errorf("status: %+v", s.Kinds[0])
		}
		select {
		case <-l.Ready():
			t.Error("ready although a kind is unknown")
		default:
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}

		// The other way: what may rest on a guard is unknown, so it stays.
		w.failing("list users")
		l.HintAll()
		gen = l.SetDesired(state{})
		time.Sleep(time.Second)
		if got := w.snapshot(); len(got["guards"]) != 1 || len(got["parents"]) != 0 {
			t.Errorf("users unknown: %v", got)
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRequiresHoldsOneGroupOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("upsert guards p", "delete users q/u")
		w.objs["guards"]["q"], w.objs["users"]["q/u"] = "a", "a"
		w.objs["guards"]["r"], w.objs["users"]["r/u"] = "a", "a"
		l := w.start(t, nil)
		gen := l.SetDesired(state{"guards": {"p": "a", "s": "a"}, "users": {"p/u": "a", "s/u": "a"}})
		time.Sleep(time.Second)
		got := w.snapshot()
		want := state{"guards": {"q": "a", "s": "a"}, "users": {"q/u": "a", "s/u": "a"}}
		if !equalStates(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
	})
}

// What waited for a failed object goes on in the pass in which that succeeds.
func TestHeldObjectFollowsInTheSameRound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("upsert guards p")
		l := w.start(t, nil)
		gen := l.SetDesired(state{"guards": {"p": "a"}, "users": {"p/u": "a"}})
		time.Sleep(10 * time.Millisecond)
		w.mend()
		n := w.count()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
		want := []string{"list guards", "list users", "upsert guards p", "upsert users p/u", "list guards", "list users"}
		if got := w.since(n); !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// A user that is there and cannot be repaired may still rest on its guard.
func TestPendingRepairHoldsBackDeletion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs["guards"]["p"], w.objs["users"]["p/u"] = "a", "a"
		w.failing("upsert users")
		l := w.start(t, nil)
		gen := l.SetDesired(state{"users": {"p/u": "b"}})
		time.Sleep(time.Second)
		if len(w.snapshot()["guards"]) != 1 {
			t.Error("the guard was deleted under an unrepaired user")
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEmptyGroupConcernsAll(t *testing.T) {
	b := barrier{}
	if b.check("") != nil || b.check("p") != nil {
		t.Error("an empty barrier bars")
	}
	b.add("p", errInjected)
	if b.check("p") == nil || b.check("") == nil || b.check("q") != nil {
		t.Error("a group's reason holds that group, and what concerns all groups")
	}
	b = barrier{"": errInjected}
	if b.check("q") == nil || b.check("") == nil {
		t.Error("a reason of group \"\" holds all groups")
	}
}

// A user that nobody told of is looked for before its guard is deleted.
func TestDeletionLooksForWhatRestsOnIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, nil)
		converge(t, l, state{"guards": {"p": "a"}})
		w.set("users", "p/u", "foreign")
		n := w.count()
		converge(t, l, state{})
		if got, want := w.writes(n), []string{"delete users p/u", "delete guards p"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What failed for want of something is tried again when that is written.
func TestWriteOfAParentHastensItsChildren(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.failing("batch-upsert children", "upsert children")
		l := w.start(t, nil)
		gen := l.SetDesired(state{"parents": {"p": "a"}, "children": {"p/c": "a"}})
		time.Sleep(5 * time.Minute)
		w.mend()
		w.set("parents", "p", "drift")
		l.Hint("parents")
		time.Sleep(debounce)
		synctest.Wait()
		if !l.Converged(gen) {
			t.Errorf("not converged: %+v", l.Status())
		}
	})
}

func TestInvalidatedKindIsListedInTheSamePass(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, nil)
		want := state{"parents": {"p": "a"}, "children": {"p/c": "a"}}
		converge(t, l, want)
		w.set("parents", "p", "changed") // and its child is gone
		passes := l.Status().LastPass
		l.Hint("parents") // not "children"
		time.Sleep(debounce)
		synctest.Wait()
		if got := w.snapshot(); !equalStates(got, want) || !l.Status().LastPass.After(passes) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// slots is a kind whose objects exclude each other by content.
type slots struct{ toy }

func (s slots) Conflicts(k, want string, have map[string]string) []string {
	var out []string
	for h, content := range have {
		if h != k && content == want {
			out = append(out, h)
		}
	}
	return out
}

func (s slots) Upsert(_ context.Context, k, want string) error {
	return s.w.do("upsert "+s.name+" "+k, func() error {
		if c := s.Conflicts(k, want, s.w.objs[s.name]); len(c) > 0 {
			return fmt.Errorf("slot %s is taken by %s", want, c)
		}
		return s.upsert(k, want)
	})
}

func TestConflictsAreDeletedFirst(t *testing.T) {
	for _, tt := range []struct {
		name       string
		have, want map[string]string
		writes     []string
	}{
		{"rename", map[string]string{"old": "1"}, map[string]string{"new": "1"}, []string{"delete parents old", "upsert parents new"}},
		{"swap", map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "2", "b": "1"},
			[]string{"delete parents b", "delete parents a", "upsert parents a", "upsert parents b"}},
		{"none", map[string]string{"old": "1"}, map[string]string{"new": "2"}, []string{"upsert parents new", "delete parents old"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld()
				w.objs["parents"] = tt.have
				l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(slots{toy{w, "parents"}})} })
				converge(t, l, state{"parents": tt.want})
				if got := w.writes(0); !slices.Equal(got, tt.writes) {
					t.Errorf("got %q, want %q", got, tt.writes)
				}
			})
		})
	}
}

func TestConflictWithAWantedObjectDeletesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs["parents"]["a"] = "1"
		l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(slots{toy{w, "parents"}})} })
		l.SetDesired(state{"parents": {"a": "1", "b": "1"}})
		time.Sleep(time.Second)
		if got := w.writes(0); len(got) > 0 {
			t.Errorf("wrote %q", got)
		}
		if o := l.Status().Kinds[0].Objects; len(o) != 1 || o[0].Key != "b" || !strings.Contains(o[0].Err.Error(), "conflicts with a") {
			t.Errorf("status: %+v", o)
		}
	})
}

func TestConflictThatCannotBeDeletedFailsTheNewcomer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		w.objs["parents"]["old"] = "1"
		w.failing("delete")
		l := w.start(t, func(c *Config[state]) { c.Stages = []Stage[state]{w.stage(slots{toy{w, "parents"}})} })
		gen := l.SetDesired(state{"parents": {"new": "1"}})
		time.Sleep(time.Second)
		if o := l.Status().Kinds[0].Objects; len(o) != 2 || !strings.Contains(o[0].Err.Error(), "old is in the way") {
			t.Errorf("status: %+v", o)
		}
		w.mend()
		if err := l.WaitConverged(t.Context(), gen); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStagesMustFitTogether(t *testing.T) {
	w := newWorld()
	for _, tt := range []struct {
		name   string
		stages []Stage[state]
		want   string
	}{
		{"twice", []Stage[state]{w.stage(toy{w, "users"}), w.stage(toy{w, "users"})}, `two stages are named "users"`},
		{"later", []Stage[state]{w.stage(toy{w, "users"}, Requires("guards")), w.stage(toy{w, "guards"})}, `requires "guards"`},
		{"itself", []Stage[state]{w.stage(toy{w, "users"}, Requires("users"))}, `requires "users"`},
		{"unknown", []Stage[state]{w.stage(toy{w, "users"}, Invalidates("nobody"))}, `invalidates "nobody"`},
	} {
		if _, err := New(Config[state]{Stages: tt.stages}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
