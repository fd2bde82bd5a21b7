package netns

import (
	"os/exec"
	"testing"
	"time"
)

// crowding is how many busy programs share a guest's processor with the agents: as
// many keep an agent that is one of them from sending for more than a second.
const crowding = 16

// TestStarvedPair has busy programs on the proxies' processor. With the priority that
// the unit gives them, the agents go on as before.
func TestStarvedPair(t *testing.T) {
	p := newPair(t, 300*time.Millisecond)
	start := time.Now()
	p.steady(t, func() {
		for range crowding {
			busy := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
			if err := busy.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = busy.Process.Kill()
				_ = busy.Wait() // killed
			}()
		}
		p.steadyOn(t, 0, 10*time.Second)
	})
	longest, n := p.heard[1].Longest(p.Proxies[0].Underlay, start)
	t.Logf("%d adverts, at most %v apart", n, longest)
	if limit := 3 * p.interval; longest >= limit {
		t.Errorf("no advert for %v, and the standby waits for %v", longest, limit)
	}
}
