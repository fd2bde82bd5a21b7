package netns

import (
	"syscall"
	"testing"
	"time"
)

// slack is what the lab's machine may add to a time: its processors are shared.
const slack = 150 * time.Millisecond

// TestFailover moves the role about as crashes and operators do.
func TestFailover(t *testing.T) {
	p := newPair(t, "preemptDelay: 1s")
	active := p.agents["proxy1"]

	t.Run("stop", func(t *testing.T) {
		start := time.Now()
		if err := active.process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.activeOn(t, 1)
		p.moved(t, start, 0, 1, 150*time.Millisecond+slack, askEvery)
		if err := active.process.Wait(t.Context()); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		active.restart(t)
		p.activeOn(t, 0) // which has the higher priority
	})
}
