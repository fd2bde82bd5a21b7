package trim

import (
	"runtime/debug"
	"testing"
)

// TestGrowth: memory is released at once, and then when the program has grown by
// what is worth it and grows no more; what has come back soon after a release is
// not asked for again.
func TestGrowth(t *testing.T) {
	const mib = 1 << 20
	var g growth
	for i, step := range []struct {
		size int64 // MiB
		due  bool
	}{
		{40, true},                                                      // the start
		{18, false}, {19, false}, {24, false}, {20, false}, {20, false}, // recovery: 24 are needed
		{24, false}, {27, false}, {27, false}, // not much more
		{45, false}, {60, false}, // grows
		{60, true},                                                      // and no more
		{30, false}, {55, false}, {55, false}, {55, false}, {55, false}, // nearly all was needed
		{58, false}, {58, false},
		{30, false}, {30, false}, // it has shrunk by itself
		{36, false}, {36, true},
	} {
		if got := g.due(step.size * mib); got != step.due {
			t.Fatalf("step %d: at %d MiB due is %v", i, step.size, got)
		}
	}
}

func TestResident(t *testing.T) {
	if n, err := resident(); err != nil || n < 1<<20 || n > 1<<40 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestHeap: a small heap that is at rest is kept small, and who has said what it shall be like is heeded.
func TestHeap(t *testing.T) {
	for _, c := range []struct {
		live, collections uint64
		want              int
	}{{small - 1, idle, 50}, {small, idle, 100}, {small - 1, idle + 1, 100}} {
		if p := percent(c.live, c.collections); p != c.want {
			t.Errorf("GOGC of %d bytes, collected %d times, is %d", c.live, c.collections, p)
		}
	}
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	var h heap
	t.Setenv("GOGC", "77")
	h.look()
	if p := debug.SetGCPercent(77); p != 77 {
		t.Errorf("GOGC is %d although the environment says 77", p)
	}
	t.Setenv("GOGC", "")
	h.look() // after whatever the tests have collected
	h.look()
	if p := debug.SetGCPercent(77); p != 50 {
		t.Errorf("GOGC of a test is %d", p)
	}
}
