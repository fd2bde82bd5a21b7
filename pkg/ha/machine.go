package ha

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// never is the deadline of a timer that does not run.
const never = time.Duration(1<<63 - 1)

const (
	// announceEvery is the least time between two announcements that adverts of
	// others cause while they go on: forged ones must not become a storm of ARP.
	announceEvery = time.Second
	// settle is how long after the last such advert, at least, the final
	// announcement follows.
	settle = 100 * time.Millisecond
)

// Machine is the state machine of one virtual router (RFC 9568 section 6.4). It
// has no goroutine and no clock: time comes with each event, as the time since
// any fixed moment on a clock that never steps back and, ideally, goes on while
// the machine sleeps. Not safe for concurrent use.
type Machine struct {
	cfg   Config
	state State
	why   string        // of the last change
	since time.Duration // of the last change

	now      time.Duration
	lastSent time.Duration // Active: the last advert to all
	timer    time.Duration // Adver_Timer, Active_Down_Timer or startup delay
	graced   bool          // Backup: a late timer has been given its grace
	announce time.Duration // Active: when to announce again after lower adverts

	announced      time.Duration
	activeInterval time.Duration // Active_Adver_Interval
	activeAddr     netip.Addr    // who was last heard and obeyed; invalid: nobody
	activePriority uint8
	lowerSince     time.Duration // since when one is heard whom this node would preempt; never: nobody
	behind         bool          // counts unless Active
	holdUntil      time.Duration // of Yield; 0: not yielding
	rival          netip.Addr    // Active: who was last heard with a losing advert
	rivalSince     time.Duration // when that began
	rivalHeard     time.Duration // the last one that counted
	rivalBeats     int           // how many counted
	down           map[string]bool
	drained        bool
	notes          limiter
	out            []Action
}

// NewMachine returns a machine in Initialize. Every track is down until it is
// reported.
func NewMachine(cfg Config) (*Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Machine{timer: never, announce: never, lowerSince: never, announced: -announceEvery, down: map[string]bool{}, notes: limiter{}}
	m.adopt(cfg)
	m.behind = cfg.CatchUp > 0
	return m, nil
}

func (m *Machine) adopt(cfg Config) {
	down := map[string]bool{}
	for _, t := range cfg.Tracks {
		was, known := m.down[t.Name]
		down[t.Name] = was || !known
	}
	m.cfg, m.down = cfg, down
}

// Deadline is when the next Tick is due; ok is false when no timer runs.
func (m *Machine) Deadline() (at time.Duration, ok bool) {
	at = min(m.timer, m.announce)
	return at, at != never
}

// Step lets the machine know of an event at a time and returns what to do, in
// order. A time before that of the last Step counts as that.
//
// After a gap in which peers must have given the node up, an active machine
// becomes backup before it looks at the event.
func (m *Machine) Step(now time.Duration, e Event) []Action {
	m.now, m.out = max(now, m.now), nil
	m.thaw()
	switch e := e.(type) {
	case Startup:
		if m.state == Initialize && m.timer == never {
			m.startup()
		}
	case Shutdown:
		m.shutdown()
	case Advert:
		m.advert(e)
	case Report:
		m.report(e)
	case Yield:
		m.yield(e)
	case Resume:
		m.holdUntil = 0
	case Drain:
		m.drained = e.On
		m.judge()
	case Behind:
		m.behind = e.On || m.state == Active && m.behind // it was about the time before
	case Reconfigure:
		m.reconfigure(e.Config)
	}
	if _, heard := e.(Advert); !heard {
		m.timers()
	}
	return m.out
}

func (m *Machine) do(a ...Action) { m.out = append(m.out, a...) }

func (m *Machine) become(s State, format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	m.do(Change{m.state, s, why})
	m.state, m.why, m.since = s, why, m.now
	m.announce, m.lowerSince, m.graced = never, never, false
	m.behind = m.behind || s == Active && m.cfg.CatchUp > 0
}

func (m *Machine) note(key, format string, args ...any) {
	if m.notes.allow(key, m.now) {
		m.do(Note{fmt.Sprintf(format, args...)})
	}
}

// timers acts on those that are due.
func (m *Machine) timers() {
	if m.now >= m.announce {
		m.announce, m.announced = never, m.now
		m.do(Announce{})
	}
	if m.now < m.timer {
		return
	}
	switch m.state {
	case Initialize:
		m.timer = never
		m.start()
	case Active:
		m.beat()
	case Backup:
		if late := m.now - m.timer; late > m.activeInterval && !m.graced {
			// Nothing has arrived, but that is no sign if the machine stood still, or
			// its kernel is as short of time as this process: then nobody has
			// taken from the wire what was sent to it.
			m.graced = true
			m.timer = m.now + m.activeInterval
			m.note("late", "woke up %v late: listening for another %v before taking over", late, m.activeInterval)
			return
		}
		m.activate("no advert for the down interval")
	case Fault:
		m.timer = never
	}
}

// thaw makes a machine that was frozen (stopped, or its guest paused) step down
// before it sends anything: by now another node is active. The fastest of the
// others has next to no skew, so skew is not waited for.
func (m *Machine) thaw() {
	limit := time.Duration(m.cfg.downAdverts()) * m.cfg.Interval
	if m.state != Active || m.now-m.lastSent < limit {
		return
	}
	gap := m.now - m.lastSent
	m.do(Deactivate{})
	m.become(Backup, "sent nothing for %v: frozen or starved", gap)
	m.listen(m.cfg.Interval, 0)
}

// startup is 6.4.1.
func (m *Machine) startup() {
	// Addresses that a predecessor left behind when it was killed go first.
	m.do(Deactivate{})
	if m.cfg.StartupDelay > 0 {
		m.timer = m.now + m.cfg.StartupDelay
		return
	}
	m.start()
}

func (m *Machine) start() {
	if why := m.unfit(); why != "" {
		m.become(Fault, "%s", why)
		return
	}
	if m.cfg.Priority == vrrp.PriorityOwner {
		m.activate("owner of the addresses")
		return
	}
	m.become(Backup, "fit to be active")
	m.listen(m.cfg.Interval, 0)
}

// listen starts Active_Down_Timer from an interval, and from when the silence began.
func (m *Machine) listen(interval, ago time.Duration) {
	m.activeInterval, m.graced = interval, false
	m.timer = m.now - ago + m.cfg.down(m.Priority(), interval)
}

// activate is 6.4.1 (110) and 6.4.2 (355): advert, announcement, timer, state.
func (m *Machine) activate(why string) {
	m.activeAddr, m.activePriority, m.holdUntil = netip.Addr{}, 0, 0
	m.send()
	m.do(Activate{})
	m.become(Active, "%s", why)
}

// send sends an advert to all and restarts Adver_Timer.
func (m *Machine) send() {
	m.do(Send{Priority: m.Priority()})
	m.lastSent = m.now
	m.timer = m.now + m.cfg.sendEvery()
}

// beat is send when Adver_Timer has run out. A late advert does not make those
// after it late, too: the others count from the last one.
func (m *Machine) beat() {
	due := m.timer
	m.send()
	if next := due + m.cfg.sendEvery(); next > m.now {
		m.timer = next
	}
}

func (m *Machine) shutdown() {
	if m.state == Initialize {
		m.timer = never
		return
	}
	m.leave(Initialize, "shut down")
}

// leave goes to a state in which nothing is sent. An active is silenced first,
// then tells the others, who take over after their skew time.
func (m *Machine) leave(s State, why string) {
	if m.state == Active {
		m.do(Deactivate{}, Send{Priority: vrrp.PriorityStop})
	}
	m.timer = never
	m.activeAddr, m.activePriority = netip.Addr{}, 0
	m.become(s, "%s", why)
}

func (m *Machine) yield(e Yield) {
	if m.state != Active && m.state != Backup {
		return
	}
	m.holdUntil = never
	if e.For > 0 {
		m.holdUntil = m.now + e.For
	}
	if m.state == Active {
		m.leave(Backup, "yielded")
		m.listen(m.cfg.Interval, 0)
	}
}

func (m *Machine) reconfigure(cfg Config) {
	if cfg.VRID != m.cfg.VRID || cfg.Local != m.cfg.Local || cfg.Validate() != nil {
		m.note("reconfigure", "a new configuration was refused: it is invalid, or has another VRID or local address")
		return
	}
	before, interval := m.Priority(), m.cfg.Interval
	m.adopt(cfg)
	m.reprioritize(before)
	m.judge()
	if m.state == Active && interval != cfg.Interval {
		m.send()
	}
}

func (m *Machine) report(e Report) {
	if down, known := m.down[e.Name]; !known || down == !e.Up {
		return
	}
	before := m.Priority()
	m.down[e.Name] = !e.Up
	m.reprioritize(before)
	m.judge()
}

// reprioritize makes a change of priority felt: an active says so at once, a
// backup's timer moves by the difference in skew.
func (m *Machine) reprioritize(before uint8) {
	now := m.Priority()
	if now == before {
		return
	}
	switch m.state {
	case Active:
		m.send()
	case Backup:
		m.timer += Skew(now, m.activeInterval) - Skew(before, m.activeInterval)
	}
}

// judge enters and leaves Fault as the tracks and the operator say.
func (m *Machine) judge() {
	why := m.unfit()
	switch {
	case m.state == Initialize:
	case why != "" && m.state != Fault:
		m.leave(Fault, why)
	case why != "":
		m.why = why
	case m.state == Fault:
		m.start()
	}
}

// unfit says why the node must not be active, or "".
func (m *Machine) unfit() string {
	if m.drained {
		return "drained"
	}
	for _, t := range m.cfg.Tracks {
		if t.Weight == 0 && m.down[t.Name] {
			return t.Name + " is down"
		}
	}
	return ""
}

// Priority is the effective priority: the configured one and the tracks' weights.
func (m *Machine) Priority() uint8 {
	p := int(m.cfg.Priority)
	if p == vrrp.PriorityOwner {
		return vrrp.PriorityOwner
	}
	for _, t := range m.cfg.Tracks {
		if (t.Weight > 0) != m.down[t.Name] {
			p += t.Weight
		}
	}
	return uint8(min(max(p, 1), vrrp.PriorityOwner-1))
}

// Status describes a machine at the time of its last Step.
type Status struct {
	State    State
	Why      string        // of the last change of state
	Since    time.Duration // of the last change of state
	Priority uint8         // effective
	// Active is who is believed to be active: the node's own address, another's,
	// or invalid when nobody is heard.
	Active         netip.Addr
	ActivePriority uint8
	ActiveInterval time.Duration
	Down           []string // tracks that are down, sorted
	Drained        bool
	Yielding       bool
	Behind         bool // and not active
}

// Status returns a copy of what matters.
func (m *Machine) Status() Status {
	s := Status{
		State: m.state, Why: m.why, Since: m.since, Priority: m.Priority(),
		Active: m.activeAddr, ActivePriority: m.activePriority, ActiveInterval: m.activeInterval,
		Drained: m.drained, Yielding: m.now < m.holdUntil,
		Behind: m.behind && m.state != Active,
	}
	if m.state == Active {
		s.Active, s.ActivePriority, s.ActiveInterval = m.cfg.Local, s.Priority, m.cfg.Interval
	}
	for name, down := range m.down {
		if down {
			s.Down = append(s.Down, name)
		}
	}
	slices.Sort(s.Down)
	return s
}
