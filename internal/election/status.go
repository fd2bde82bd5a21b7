package election

import (
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
)

// Status describes one election.
type Status struct {
	Election desired.Election
	// Problem is why it is not under way; then the rest is zero.
	Problem string
	Node    ha.Status
	// Since is when the state began.
	Since         time.Time
	Stats         ha.Stats
	Tracks        map[string]bool // up, by name
	Discrepancies []vip.Discrepancy
}

// ActiveNode names the member that is believed to be active; "" if nobody is
// heard. self is this node's name.
func (s Status) ActiveNode(self string) string {
	switch a := s.Node.Active; {
	case !a.IsValid():
		return ""
	case a == s.Election.Local:
		return self
	default:
		return nameOf(s.Election, a)
	}
}

// Status returns a snapshot of all elections, by group.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	wanted := m.wanted
	m.mu.Unlock()
	var out []Status
	for _, e := range wanted {
		m.mu.Lock()
		i, problem := m.instances[e.Group], m.problems[e.Group]
		m.mu.Unlock()
		if i == nil {
			if problem == "" {
				problem = "being started"
			}
			out = append(out, Status{Election: e, Problem: problem})
			continue
		}
		out = append(out, i.status())
	}
	return out
}

func (i *instance) status() Status {
	s := Status{
		Election: i.current(), Node: i.node.Status(), Stats: i.node.Stats(), Tracks: map[string]bool{}, Discrepancies: i.set.Discrepancies(),
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	s.Since = i.since
	for name, up := range i.tracks {
		s.Tracks[name] = up
	}
	return s
}
