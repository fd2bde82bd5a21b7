package ha

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// sim is some machines and a network between them, on a clock of its own.
type sim struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Duration
	nodes  []*simNode
	queue  flights
	seq    int
	cut    map[[2]int]bool // one direction
	loss   float64
	dup    float64
	delay  time.Duration // at most; packets overtake each other
	stray  time.Duration // two nodes that hear each other have both been active for so long, at most
	both   time.Duration // since when; never: not
	vacant time.Duration // since when nobody is active; never: somebody is
	gap    time.Duration // longest time without an active
	moves  int           // changes to Active
}

type simNode struct {
	*Machine
	id        int
	cfg       Config
	frozen    bool
	dead      bool
	socket    []flight // came while it was frozen
	announces []time.Duration
}

type flight struct {
	at  time.Duration
	seq int
	to  int
	a   Advert
}

type flights []flight

func (f flights) Len() int      { return len(f) }
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f flights) Less(i, j int) bool {
	return f[i].at < f[j].at || f[i].at == f[j].at && f[i].seq < f[j].seq
}
func (f *flights) Push(x any) { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	old := *f
	last := old[len(old)-1]
	*f = old[:len(old)-1]
	return last
}

// newSim starts nodes of these priorities at 192.0.2.10, .11 and so on.
func newSim(t *testing.T, seed uint64, change func(i int, c *Config), priorities ...uint8) *sim {
	t.Helper()
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 0)), cut: map[[2]int]bool{}, delay: 2 * ms, both: never}
	for i, p := range priorities {
		cfg := testConfig()
		cfg.Priority = p
		cfg.Local = netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)})
		for j := range priorities {
			if j != i {
				cfg.Peers = append(cfg.Peers, Peer{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + j)})})
			}
		}
		if change != nil {
			change(i, &cfg)
		}
		m, err := NewMachine(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.nodes = append(s.nodes, &simNode{Machine: m, id: i, cfg: cfg})
	}
	for _, n := range s.nodes {
		s.step(n, Startup{})
	}
	return s
}

func (s *sim) step(n *simNode, e Event) {
	if n.dead || n.frozen {
		return
	}
	for _, a := range n.Step(s.now, e) {
		switch a := a.(type) {
		case Send:
			for _, to := range s.nodes {
				if to != n && (!a.To.IsValid() || a.To == to.cfg.Local) {
					for range n.cfg.copies() {
						s.send(n, to, a)
					}
				}
			}
		case Change:
			if a.To == Active {
				s.moves++
			}
		case Announce:
			n.announces = append(n.announces, s.now)
		}
	}
	s.observe()
}

func (s *sim) send(from, to *simNode, a Send) {
	if s.cut[[2]int{from.id, to.id}] {
		return
	}
	for copies := 1; copies > 0; copies-- {
		if s.rng.Float64() < s.dup {
			copies++
		}
		if s.rng.Float64() < s.loss {
			continue
		}
		s.seq++
		heap.Push(&s.queue, flight{s.now + time.Duration(s.rng.Int64N(int64(s.delay)+1)), s.seq, to.id, Advert{
			From: from.cfg.Local, Priority: a.Priority, Interval: from.cfg.Interval, Addresses: from.cfg.Addresses,
		}})
	}
}

// observe keeps account of who is active.
func (s *sim) observe() {
	var actives []*simNode
	for _, n := range s.nodes {
		if !n.dead && !n.frozen && n.state == Active {
			actives = append(actives, n)
		}
	}
	switch {
	case len(actives) > 0:
		s.gap, s.vacant = max(s.gap, s.now-min(s.vacant, s.now)), never
	case s.vacant == never:
		s.vacant = s.now
	}
	if len(actives) > 1 && !s.cut[[2]int{actives[0].id, actives[1].id}] && !s.cut[[2]int{actives[1].id, actives[0].id}] {
		s.both = min(s.both, s.now)
		s.stray = max(s.stray, s.now-s.both)
	} else {
		s.both = never
	}
}

// run lets d pass.
func (s *sim) run(d time.Duration) {
	for end := s.now + d; ; {
		next, who := end, -1
		for i, n := range s.nodes {
			if at, ok := n.Deadline(); ok && !n.dead && !n.frozen && at < next {
				next, who = max(at, s.now), i
			}
		}
		if len(s.queue) > 0 && s.queue[0].at <= next {
			f := heap.Pop(&s.queue).(flight)
			s.now = max(s.now, f.at)
			if to := s.nodes[f.to]; to.frozen {
				to.socket = append(to.socket, f)
			} else {
				s.step(to, f.a)
			}
			continue
		}
		s.now = next
		s.observe()
		if who < 0 {
			return
		}
		s.step(s.nodes[who], Tick{})
	}
}

// thaw lets a frozen node go on: what waits in its socket first, as in a Node, then
// its timer.
func (s *sim) thaw(n *simNode) {
	n.frozen = false
	for _, f := range n.socket {
		f.a.Waited = s.now - f.at
		s.step(n, f.a)
	}
	n.socket = nil
	s.step(n, Tick{})
}

// split cuts, or heals, both directions.
func (s *sim) split(a, b int, cut bool) { s.cut[[2]int{a, b}], s.cut[[2]int{b, a}] = cut, cut }

// settled checks that exactly one node is active, and which.
func (s *sim) settled(want int) {
	s.t.Helper()
	for _, n := range s.nodes {
		if (n.state == Active && !n.dead) != (n.id == want) {
			s.t.Errorf("at %v node %d (priority %d) is %v, want node %d active", s.now, n.id, n.cfg.Priority, n.state, want)
		}
	}
}

func (s *sim) once(why string) {
	s.t.Helper()
	// The down interval of the lowest priority is the longest.
	if limit := 400 * ms; s.stray > limit {
		s.t.Errorf("%s: two nodes that hear each other were active for %v, more than %v", why, s.stray, limit)
	}
}

func seeds(t *testing.T, n uint64, f func(t *testing.T, seed uint64)) {
	t.Helper()
	for seed := range n {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { f(t, seed) })
	}
}

func TestSimDeath(t *testing.T) {
	seeds(t, 50, func(t *testing.T, seed uint64) {
		s := newSim(t, seed, nil, 200, 100)
		s.run(time.Second + time.Duration(seed)*7*ms)
		s.settled(0)
		s.nodes[0].dead, s.gap = true, 0
		s.observe()
		s.run(400 * ms)
		s.settled(1)
		if limit := 361*ms + s.delay; s.gap > limit {
			t.Errorf("nobody was active for %v, more than %v", s.gap, limit)
		}
	})
}

func TestSimGracefulStop(t *testing.T) {
	s := newSim(t, 1, nil, 200, 100)
	s.run(time.Second)
	s.gap = 0
	s.step(s.nodes[0], Shutdown{})
	s.run(200 * ms)
	s.settled(1)
	if limit := 61*ms + s.delay; s.gap > limit {
		t.Errorf("nobody was active for %v, more than %v", s.gap, limit)
	}
}

func TestSimEqualPriorities(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		s := newSim(t, seed, nil, 100, 100, 100)
		s.run(2 * time.Second)
		s.settled(2) // the greatest address
		s.once("equal priorities")
	})
}

func TestSimSplitHeals(t *testing.T) {
	seeds(t, 50, func(t *testing.T, seed uint64) {
		s := newSim(t, seed, nil, 200, 100)
		s.run(time.Second)
		s.split(0, 1, true)
		s.run(time.Second + time.Duration(seed)*3*ms)
		if s.nodes[0].state != Active || s.nodes[1].state != Active {
			t.Fatal("the split made no second active")
		}
		s.nodes[0].announces = nil
		s.split(0, 1, false)
		healed := s.now
		s.run(time.Second)
		s.settled(0)
		s.once("split heals")
		loserQuiet := s.nodes[1].since
		if n := s.nodes[0].announces; len(n) == 0 || n[len(n)-1] < loserQuiet || n[len(n)-1] > healed+500*ms {
			t.Errorf("healed at %v, the loser fell silent at %v, the survivor announced at %v", healed, loserQuiet, n)
		}
	})
}

func TestSimOneWayLoss(t *testing.T) {
	for _, from := range []int{0, 1} {
		s := newSim(t, 1, nil, 200, 100)
		s.run(time.Second)
		s.cut[[2]int{from, 1 - from}] = true
		s.run(2 * 361 * ms) // one to take over, one to be heard doing so
		s.run(s.delay)
		// Node 1 does not hear node 0, which therefore gives way; or node 0
		// does not hear node 1, which has nothing to say.
		active := 1 - from
		s.settled(active)
		s.run(5 * time.Second)
		s.settled(active)
		s.cut[[2]int{from, 1 - from}] = false
		s.run(time.Second)
		s.settled(active) // who gave way does not preempt
		s.once("one-way loss ends")
	}
}

func TestSimFrozen(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		for _, noPreempt := range []bool{false, true} {
			s := newSim(t, seed, func(_ int, c *Config) { c.NoPreempt = noPreempt }, 200, 100)
			s.run(time.Second)
			old := 0
			if s.nodes[1].state == Active {
				old = 1
			}
			s.nodes[old].frozen = true
			s.run(10*time.Second + time.Duration(seed)*5*ms)
			s.stray = 0
			s.thaw(s.nodes[old])
			if s.nodes[old].state != Backup {
				t.Fatalf("woke up as %v", s.nodes[old].state)
			}
			s.run(100 * ms)
			s.settled(1 - old)
			if s.stray > 0 {
				t.Errorf("two were active for %v", s.stray)
			}
		}
	})
}

// lossyMinute counts takeovers in a minute of 30 % loss.
func lossyMinute(t *testing.T, seed uint64, downAdverts, sends int) int {
	t.Helper()
	s := newSim(t, seed, func(_ int, c *Config) { c.DownAdverts, c.Sends = downAdverts, sends }, 200, 100)
	s.run(2 * time.Second)
	s.settled(0)
	s.loss, s.dup, s.delay, s.moves = 0.3, 0.05, 10*ms, 0
	s.run(time.Minute)
	return s.moves
}

func TestLossyMinute(t *testing.T) {
	for _, c := range []struct {
		downAdverts, sends int
		least, most        int // flaps in 100 minutes
	}{
		{3, 1, 500, 1500},
		{5, 1, 30, 200},
		{3, 2, 10, 100},
		{3, 4, 0, 0},
	} {
		total := 0
		for seed := range uint64(100) {
			total += lossyMinute(t, seed, c.downAdverts, c.sends)
		}
		t.Logf("%d missing adverts, %d sends: %d takeovers in 100 minutes", c.downAdverts, c.sends, total)
		if total < c.least || total > c.most {
			t.Errorf("%d missing adverts, %d sends: %d takeovers in 100 minutes, want %d to %d", c.downAdverts, c.sends, total, c.least, c.most)
		}
	}
}

// TestSimChaos makes random faults, then none, and expects one active soon.
func TestSimChaos(t *testing.T) {
	seeds(t, 100, func(t *testing.T, seed uint64) {
		priorities := [][]uint8{{200, 100}, {100, 100}, {255, 1}, {150, 100, 50}, {100, 100, 100}}[seed%5]
		s := newSim(t, seed, func(i int, c *Config) {
			c.Sends = 1 + int(seed%4)
			c.NoPreempt = seed%3 == 0
			if seed%2 == 0 && i == 1 {
				c.Interval = 200 * ms
			}
		}, priorities...)
		s.dup, s.delay = 0.1, 20*ms
		for range 40 {
			n := s.nodes[s.rng.IntN(len(s.nodes))]
			switch s.rng.IntN(7) {
			case 0:
				s.cut[[2]int{n.id, s.rng.IntN(len(s.nodes))}] = true
			case 1:
				s.cut = map[[2]int]bool{}
			case 2:
				if n.frozen {
					s.thaw(n)
				}
				n.frozen = s.rng.IntN(2) == 0
			case 3:
				s.loss = s.rng.Float64() * 0.5
			case 4:
				s.step(n, Yield{time.Duration(s.rng.IntN(1000)) * ms})
			case 5:
				s.step(n, Drain{s.rng.IntN(2) == 0})
			case 6:
				s.step(n, Shutdown{})
				s.step(n, Startup{})
			}
			s.run(time.Duration(s.rng.IntN(800)) * ms)
		}
		s.cut, s.loss = map[[2]int]bool{}, 0
		for _, n := range s.nodes {
			s.thaw(n)
			s.step(n, Drain{false})
			s.step(n, Resume{})
		}
		s.both, s.stray = never, 0
		// One down interval at 200 ms until the silence is noticed, another until
		// the last wrong one has heard the right one.
		s.run(1600 * ms)
		actives := 0
		for _, n := range s.nodes {
			if n.state == Active {
				actives++
			}
		}
		if limit := 800 * ms; actives != 1 || s.stray > limit {
			t.Errorf("%d active, two at once for %v", actives, s.stray)
		}
	})
}
