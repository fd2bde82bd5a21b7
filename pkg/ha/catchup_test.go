package ha

import (
	"testing"
	"time"
)

// catchingUp is a node that waits for what the active one has, for a minute at most.
func catchingUp(c *Config) { c.CatchUp, c.PreemptDelay = time.Minute, time.Second }

// hear lets a machine hear a lower priority in each interval until a moment, or
// until it is active; it returns when that was.
func hear(m *Machine, from, until time.Duration) time.Duration {
	for at := from; at <= until && m.state != Active; at += 100 * ms {
		for due, ok := m.Deadline(); ok && due <= at && m.state != Active; due, ok = m.Deadline() {
			m.Step(due, Tick{})
		}
		if m.state != Active {
			m.Step(at, advert(lower, 50))
		}
	}
	return m.now
}

func TestPreemptionWaitsForTheCopy(t *testing.T) {
	t.Run("until it is there", func(t *testing.T) {
		m := backup(t, catchingUp)
		if hear(m, 50*ms, 30*time.Second); m.state != Backup || !m.Status().Behind {
			t.Fatalf("%v, behind: %v", m.state, m.Status().Behind)
		}
		m.Step(30*time.Second, Behind{On: false})
		// PreemptDelay has passed meanwhile: the down interval is left.
		if at := hear(m, 30*time.Second+50*ms, 40*time.Second); m.state != Active || at > 30*time.Second+461*ms {
			t.Errorf("%v at %v", m.state, at)
		}
		if m.Status().Behind {
			t.Error("an active one is behind")
		}
	})
	t.Run("and not shorter than the delay", func(t *testing.T) {
		m := backup(t, catchingUp)
		m.Step(10*ms, Behind{On: false})
		if at := hear(m, 50*ms, 10*time.Second); m.state != Active || at < time.Second || at > time.Second+561*ms {
			t.Errorf("%v at %v", m.state, at)
		}
	})
	t.Run("not for good", func(t *testing.T) {
		m := backup(t, catchingUp)
		if at := hear(m, 50*ms, 2*time.Minute); m.state != Active || at < time.Minute || at > time.Minute+561*ms {
			t.Errorf("%v at %v", m.state, at)
		}
	})
	t.Run("anew when it has been active", func(t *testing.T) {
		m := active(t, catchingUp)
		m.Step(400*ms, Behind{On: false}) // said too late: it was about the time before
		m.Step(450*ms, Yield{For: 100 * ms})
		if !m.Status().Behind {
			t.Error("not behind whoever is active now")
		}
	})
}

// Who is gone has no connections to wait for; and who is not fit may lose them.
func TestOneBehindTakesOverNevertheless(t *testing.T) {
	m := backup(t, catchingUp)
	m.Step(50*ms, advert(lower, 50))
	m.Step(50*ms+361*ms, Tick{})
	if m.state != Active {
		t.Errorf("%v after the active one fell silent", m.state)
	}
	m = backup(t, func(c *Config) {
		catchingUp(c)
		c.Peers = []Peer{{Addr: lower, Priority: 200}}
	})
	if at := hear(m, 50*ms, time.Second); m.state != Active || at > 461*ms {
		t.Errorf("%v at %v beside one that is not fit", m.state, at)
	}
	owner := machine(t, func(c *Config) {
		catchingUp(c)
		c.Priority, c.PreemptDelay = 255, 0
	})
	if owner.Step(0, Startup{}); owner.state != Active {
		t.Errorf("the owner is %v", owner.state)
	}
}

// A node that was gone comes back, again and again, and its copy takes a different
// time each time: it is never active before it has it.
func TestSimCopiesBeforePreemption(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		s := newSim(t, seed, func(i int, c *Config) { c.CatchUp = time.Minute }, 200, 100)
		s.run(time.Second)
		s.settled(0)
		s.nodes[0].dead = true
		s.run(2 * time.Second)
		s.settled(1)
		cfg := s.nodes[0].cfg
		m, err := NewMachine(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.nodes[0].Machine, s.nodes[0].dead = m, false
		s.step(s.nodes[0], Startup{})
		for range 1 + seed {
			s.run(time.Second)
			s.settled(1)
		}
		s.step(s.nodes[0], Behind{On: false})
		s.run(2 * time.Second)
		s.settled(0)
		s.once("after the copy")
	})
}
