package agent

import (
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
)

// handOverTime is how long a proxy goes on announcing a group of which another
// member becomes active: by then the other has told its neighbors. The next hop
// is the HaVip, which is the other's long before. Were it withdrawn at once,
// function hosts would know of nobody in between.
const handOverTime = 2 * time.Second

// handOver decides which groups a proxy announces: those of which it is active, and
// for a moment those that it has handed over. It is safe for concurrent use.
type handOver struct {
	mu     sync.Mutex
	active map[string]bool
	until  map[string]time.Time // of those handed over
	change int                  // counts calls of follow
}

// follow calls announce with the names of the groups to announce, now and when
// that changes by itself. A group that this node is not active in any more is
// announced for a moment if another member takes it: if handed says so.
func (h *handOver) follow(groups []election.Group, handed func(election.Group) bool, announce func(map[string]bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, active, until := time.Now(), map[string]bool{}, map[string]time.Time{}
	for _, g := range groups {
		switch {
		case g.Active():
			active[g.Name] = true
		case !handed(g):
		case h.active[g.Name]:
			until[g.Name] = now.Add(handOverTime)
		case now.Before(h.until[g.Name]):
			until[g.Name] = h.until[g.Name]
		}
	}
	h.active, h.until = active, until
	h.change++
	announced := map[string]bool{}
	for name := range active {
		announced[name] = true
	}
	for name := range until {
		announced[name] = true
	}
	announce(announced)
	if len(until) == 0 {
		return
	}
	change := h.change
	time.AfterFunc(handOverTime, func() {
		h.mu.Lock()
		outdated := h.change != change
		h.mu.Unlock()
		if !outdated {
			h.follow(groups, handed, announce)
		}
	})
}

// handed tells whether another member takes a group that this node is not active
// in. A node that is not fit, or the last that is not drained, leaves it to nobody.
func handed(g election.Group, set *intent.Set, self string) bool {
	group, node := set.Group(g.Name), set.Node(self)
	if group == nil || node == nil || len(g.Peers) == 0 || set.Drained(group) {
		return false
	}
	return g.State == ha.Backup || g.State == ha.Fault && node.Spec.Cordoned
}
