package reconcile

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// scenario has every operation in it: creation, repair, recreation of a parent,
// deletion of parts and of all.
var scenario = []state{
	{
		"guards":   {"p1": "a", "p2": "a"},
		"parents":  {"p1": "a", "p2": "a"},
		"children": {"p1/c1": "a", "p1/c2": "a", "p2/c1": "a"},
		"users":    {"p1/u1": "a", "p2/u1": "a"},
	},
	{
		"guards":   {"p1": "b", "p3": "a"},
		"parents":  {"p1": "b", "p3": "a"},
		"children": {"p1/c1": "a", "p1/c3": "a", "p3/c1": "a"},
		"users":    {"p1/u1": "b", "p3/u1": "a"},
	},
	{},
}

// play runs the scenario, with a drift in it, and returns the number of calls.
func play(t *testing.T, fault func(n int, op string) fault) int {
	w := newWorld()
	w.fault = fault
	w.objs["parents"]["old"] = "left by an agent that died"
	w.objs["children"]["old/c1"] = "a"
	l := w.start(t, nil)
	for i, s := range scenario {
		converge(t, l, s)
		if got := w.snapshot(); !equalStates(got, s) {
			t.Fatalf("step %d: got %v, want %v", i, got, s)
		}
		if i == 0 {
			w.set("parents", "p2", "")
			w.set("users", "p1/u1", "changed")
			w.set("guards", "foreign", "unwanted")
			l.HintAll()
			time.Sleep(3 * time.Second) // of the bubble's time
			if got := w.snapshot(); !equalStates(got, s) {
				t.Fatalf("drift was not repaired: got %v, want %v", got, s)
			}
		}
	}
	n := w.count()
	w.setFault(nil)
	silent(t, w, l)
	return n
}

// Ring 2 of DESIGN.md §7: every operation fails once at every position.
func TestEveryOperationFailsOnceAtEveryPosition(t *testing.T) {
	var total int
	bubble(t, func(t *testing.T) { total = play(t, nil) })
	if total < 60 {
		t.Fatalf("the scenario has only %d operations", total)
	}
	for _, f := range []struct {
		name string
		how  fault
	}{{"before", before}, {"after", after}} {
		for pos := range total {
			t.Run(fmt.Sprint(f.name, pos), func(t *testing.T) {
				hit := false
				bubble(t, func(t *testing.T) {
					play(t, func(n int, op string) fault {
						if n == pos {
							hit = true
							return f.how
						}
						return fine
					})
				})
				if !hit {
					t.Error("the fault was not met")
				}
			})
		}
	}
}

// The same for objects rather than positions: each distinct call fails its
// first three times.
func TestEveryCallFailsThreeTimes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		met := map[string]int{}
		play(t, func(_ int, op string) fault {
			met[op]++
			if met[op] <= 3 {
				return before
			}
			return fine
		})
	})
}

// Random desired states, random drift, random failures: the end is always the
// last desired state, a second look writes nothing, and at no time is a user
// without its guard because of us.
func TestRandomModel(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { randomRun(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func randomRun(t *testing.T, r *rand.Rand) {
	w := newWorld()
	w.took = time.Millisecond
	rate := 0.0
	faults := rand.New(rand.NewPCG(r.Uint64(), 2))
	w.fault = func(_ int, op string) fault {
		checkGuards(t, w, op)
		if faults.Float64() >= rate {
			return fine
		}
		return []fault{before, after}[faults.IntN(2)]
	}
	w.objs = randomState(r) // what somebody left
	l := w.start(t, nil)
	var last state
	for range 30 {
		w.mu.Lock()
		rate = []float64{0, 0.1, 0.6}[r.IntN(3)]
		w.mu.Unlock()
		switch r.IntN(3) {
		case 0, 1:
			last = randomState(r)
			l.SetDesired(last)
		case 2:
			drift(w, r)
			l.Hint("parents", "children", "users")
		}
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
	}
	w.mu.Lock()
	rate = 0
	w.mu.Unlock()
	last = randomState(r)
	converge(t, l, last)
	if _, err := l.Resync(t.Context()); err != nil { // drift without a hint
		t.Fatal(err)
	}
	if got := w.snapshot(); !equalStates(got, last) {
		t.Fatalf("got %v, want %v", got, last)
	}
	silent(t, w, l)
}

// drift changes anything but guards, whose loss nobody could prevent.
func drift(w *world, r *rand.Rand) {
	for range r.IntN(4) {
		p := fmt.Sprint("p", r.IntN(5))
		content := []string{"", "drifted"}[r.IntN(2)]
		switch r.IntN(3) {
		case 0:
			w.set("parents", p, content)
		case 1:
			w.set("children", p+"/c1", content)
		case 2:
			w.set("users", p+"/u1", "") // a foreign user would have no guard
		}
	}
}

// checkGuards fails if a user is about to be written in a group without a
// guard, or a guard to be deleted from a group with a user.
func checkGuards(t *testing.T, w *world, op string) {
	verb, rest, _ := strings.Cut(op, " ")
	kind, name, _ := strings.Cut(rest, " ")
	group := groupOf(name, "")
	switch {
	case kind == "users" && verb == "upsert" && w.objs["guards"][group] == "":
		t.Errorf("%s without a guard", op)
	case kind == "guards" && verb == "delete":
		for u := range w.objs["users"] {
			if groupOf(u, "") == group {
				t.Errorf("%s while %s is there", op, u)
			}
		}
	}
}
