package reconcile

import (
	"testing"
	"testing/synctest"
	"time"
)

// observer is a function as an Observer.
type observer func(Pass)

func (o observer) ObservePass(p Pass) { o(p) }

func TestObserverFindsTheStatusOfItsPass(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		var l *Loop[state]
		seen := 0
		l = w.start(t, func(c *Config[state]) {
			c.Observer = observer(func(p Pass) {
				seen++
				if s := l.Status(); s.LastPass != p.Start || s.Converged != p.Converged || s.Applied != p.Generation {
					t.Errorf("after the pass of %v: %+v", p.Start, s)
				}
			})
		})
		w.failing("upsert guards p")
		l.SetDesired(state{"guards": {"p": "a"}})
		time.Sleep(time.Second)
		w.mend()
		converge(t, l, state{"guards": {"p": "a"}})
		if seen < 2 {
			t.Errorf("%d passes", seen)
		}
	})
}

// What an object waits for may come about in a pass's last round: nothing else would
// have the loop look again.
func TestHeldObjectIsLookedAtAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld()
		l := w.start(t, nil)
		converge(t, l, state{"users": {"p/u": "a"}})
		users := l.eng.stages[len(kinds)-1].(*typed[state, string, string])
		synctest.Wait()
		users.pending["p/u"] = &pending{op: Create, key: "p/u", text: "p/u", held: true}
		if cause, at := l.next(time.Now()); cause != 0 || time.Until(at) > hintRetry {
			t.Errorf("cause %v, next pass in %v", cause, time.Until(at))
		}
	})
}
