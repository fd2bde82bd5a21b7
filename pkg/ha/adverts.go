package ha

import (
	"fmt"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// advert is 6.4.2 (400) and 6.4.3 (700).
func (m *Machine) advert(a Advert) {
	if m.state == Backup || m.state == Active {
		m.mismatch(a)
	}
	switch m.state {
	case Backup:
		m.backupHears(a)
	case Active:
		m.activeHears(a)
	}
}

func (m *Machine) backupHears(a Advert) {
	if a.Priority == vrrp.PriorityStop {
		m.graced = false
		m.timer = m.now - a.Waited + Skew(m.Priority(), m.activeInterval)
		return
	}
	if a.Priority < m.Priority() && (m.preempts() || m.unwell(a)) {
		return // the timer goes on
	}
	if a.Priority >= m.Priority() {
		m.lowerSince = never
	}
	m.activeAddr, m.activePriority = a.From, a.Priority
	m.listen(a.Interval, a.Waited)
}

// unwell says whether an advert's sender has lowered its own priority, as a
// track of it demands.
func (m *Machine) unwell(a Advert) bool {
	p, ok := m.cfg.peer(a.From)
	return ok && a.Priority < p.Priority && m.now >= m.holdUntil
}

// preempts says whether a lower priority that is heard now is to be preempted.
func (m *Machine) preempts() bool {
	owner := m.cfg.Priority == vrrp.PriorityOwner
	if m.now < m.holdUntil || m.cfg.NoPreempt && !owner {
		return false
	}
	if m.lowerSince == never {
		m.lowerSince = m.now
	}
	heard := m.now - m.lowerSince
	switch {
	case heard < m.cfg.PreemptDelay:
		return false
	case !m.behind || owner:
		return true
	case heard < m.cfg.CatchUp:
		m.note("behind", "preferred, but behind the active one: waiting for up to %v to catch up", m.cfg.CatchUp-heard)
		return false
	}
	m.note("too far behind", "taking over without having caught up with the active one in %v", m.cfg.CatchUp)
	return true
}

func (m *Machine) activeHears(a Advert) {
	own := m.Priority()
	switch {
	case a.Priority == vrrp.PriorityStop:
		// Another was active, too, and may have left its traces.
		m.send()
		m.claimAgain()
	case a.Priority > own, a.Priority == own && a.From.Compare(m.cfg.Local) > 0:
		if own == vrrp.PriorityOwner {
			m.note("owners", "%v says that it owns the addresses, as this node does: give one of them a lower priority", a.From)
		}
		// The winner may not know that another was active, so that it sees no
		// reason to announce itself (6.4.3 has it do so only when it hears a
		// lower advert). A last advert, after silence, gives it one.
		m.do(Deactivate{}, Send{Priority: own, To: a.From})
		m.activeAddr, m.activePriority = a.From, a.Priority
		m.become(Backup, "%v has priority %d, against %d here", a.From, a.Priority, own)
		m.listen(a.Interval, a.Waited)
	default:
		if own == vrrp.PriorityOwner && a.Priority == own {
			m.note("owners", "%v says that it owns the addresses, as this node does: give one of them a lower priority", a.From)
		}
		m.send()
		m.claimAgain()
		m.contested(a)
	}
}

// contested gives way to a loser who goes on as if it had not lost: it does not
// hear this node, and of two that are active the one that knows must yield. It
// holds back from preempting until the other has fallen silent.
func (m *Machine) contested(a Advert) {
	pause := time.Duration(m.cfg.downAdverts()) * max(a.Interval, m.cfg.Interval)
	if m.rival != a.From || m.now-m.rivalHeard > pause {
		m.rival, m.rivalSince, m.rivalBeats, m.rivalHeard = a.From, m.now, 0, never
	}
	// Adverts that were read late, all at once, are one beat: their sender may
	// have heard since.
	if m.rivalHeard == never || m.now-m.rivalHeard >= a.Interval*3/4 {
		m.rivalBeats++
		m.rivalHeard = m.now
	}
	lasted := m.now - m.rivalSince
	if lasted < m.cfg.down(m.Priority(), m.cfg.Interval) || m.rivalBeats <= m.cfg.downAdverts() || m.cfg.Priority == vrrp.PriorityOwner {
		return
	}
	m.holdUntil = never
	m.leave(Backup, fmt.Sprintf("%v stays active with priority %d, against %d here: it does not hear this node", a.From, a.Priority, m.Priority()))
	m.activeAddr, m.activePriority = a.From, a.Priority
	m.listen(a.Interval, a.Waited)
}

// claimAgain announces now, and again when the other has had time to fall
// silent: what it announced until then would stand.
func (m *Machine) claimAgain() {
	if m.now-m.announced >= announceEvery {
		m.announced = m.now
		m.do(Announce{})
	}
	m.announce = m.now + max(m.cfg.Interval, settle)
}

// mismatch is 7.1 (8) and (9): report, do not drop.
func (m *Machine) mismatch(a Advert) {
	if a.Priority != vrrp.PriorityStop && a.Interval != m.cfg.Interval {
		m.note("interval", "%v advertises every %v, configured here is %v", a.From, a.Interval, m.cfg.Interval)
	}
	if !slices.Equal(a.Addresses, m.cfg.Addresses) {
		m.note("addresses", "%v advertises the addresses %v, configured here are %v", a.From, a.Addresses, m.cfg.Addresses)
	}
}

// noteEvery is the least time between two notes of one kind.
const noteEvery = time.Minute

// limiter lets one note of each kind pass in noteEvery.
type limiter map[string]time.Duration

func (l limiter) allow(key string, now time.Duration) bool {
	if last, ok := l[key]; ok && now-last < noteEvery {
		return false
	}
	l[key] = now
	return true
}
