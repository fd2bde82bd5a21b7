package reconcile

import (
	"context"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
)

// wishes are objects that are wanted beyond the desired state.
type wishes struct {
	mu    sync.Mutex
	extra map[string]string
}

func (x *wishes) set(k, v string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.extra[k] = v; v == "" {
		delete(x.extra, k)
	}
}

func (x *wishes) want(s state) map[string]string {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := maps.Clone(s["guards"])
	maps.Copy(out, x.extra)
	return out
}

// A live stage follows wishes that no desired state tells of: at a hint, or
// written beside the loop.
func TestLiveStage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, x := newWorld(), &wishes{extra: map[string]string{}}
		l := w.start(t, func(c *Config[state]) {
			c.Stages = []Stage[state]{NewLiveStage(toy{w, "guards"}, x.want, groupOf)}
		})
		converge(t, l, state{"guards": {"a": "1"}})
		for _, step := range []struct{ key, value string }{{"b", "1"}, {"b", "2"}, {"b", ""}} {
			x.set(step.key, step.value)
			l.Hint("guards")
			if err := untilPassed(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if got := w.snapshot()["guards"]["b"]; got != step.value {
				t.Errorf("b is %q, want %q", got, step.value)
			}
			silent(t, w, l)
		}
		// Written beside the loop: there is nothing left to do, and no drift.
		x.set("c", "1")
		w.set("guards", "c", "1")
		n := w.count()
		p, err := l.Resync(t.Context())
		if err != nil || p.Writes() != 0 || len(w.writes(n)) != 0 || p.Kinds[0].Drift != 0 {
			t.Errorf("%+v, %v", p, err)
		}
		// A plan asks anew, too.
		x.set("d", "1")
		changes, err := l.Plan(t.Context())
		if err != nil || len(changes) != 1 || changes[0].Key != "d" {
			t.Errorf("plan %+v, %v", changes, err)
		}
		// The desired state goes on changing beside it.
		converge(t, l, state{"guards": {"a": "2"}})
		if got, want := w.snapshot()["guards"], map[string]string{"a": "2", "c": "1", "d": "1"}; !maps.Equal(got, want) {
			t.Errorf("holds %v, want %v", got, want)
		}
	})
}

// untilPassed waits for the pass that a hint causes.
func untilPassed(ctx context.Context, l *Loop[state]) error {
	passed := l.Passed()
	select {
	case <-passed:
	case <-ctx.Done():
		return ctx.Err()
	}
	synctest.Wait()
	return nil
}
