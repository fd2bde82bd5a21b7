package rhythm

import (
	"testing"
	"time"
)

// TestUntil: periods that are multiples of each other meet, wherever the work
// before has ended.
func TestUntil(t *testing.T) {
	for _, c := range []struct{ since, period, want time.Duration }{
		{0, time.Second, time.Second},
		{1, time.Second, time.Second - 1},
		{time.Second - 1, time.Second, 1},
		{time.Second, time.Second, time.Second},
		{1300 * time.Millisecond, time.Second, 700 * time.Millisecond},
		{1300 * time.Millisecond, 2 * time.Second, 700 * time.Millisecond},
		{1300 * time.Millisecond, 10 * time.Second, 8700 * time.Millisecond},
		{3 * time.Hour, 7 * time.Second, time.Second}, // 10,800 is 1,542 times 7, and 6
	} {
		if got := until(c.since, c.period); got != c.want {
			t.Errorf("after %v, a period of %v: %v to go, want %v", c.since, c.period, got, c.want)
		}
	}
}

// TestUntilIsAhead: a timer set to it never fires at once, which would be a loop.
func TestUntilIsAhead(t *testing.T) {
	for range 1000 {
		if d := Until(time.Microsecond); d <= 0 || d > time.Microsecond {
			t.Fatalf("%v to the next microsecond", d)
		}
	}
}
