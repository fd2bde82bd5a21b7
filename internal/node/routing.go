package node

import (
	"context"
	"maps"
	"reflect"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// alive is what others tell the node of who is alive.
type alive struct {
	live   *plan.Live
	active map[string]bool
	broken map[string]bool
}

// SetLive hands over what BGP says is alive; nil, as at the start, says that
// nothing is known. The value must not change afterwards.
func (n *Node) SetLive(live *plan.Live) {
	n.change(func(a *alive) { a.live = live })
}

// SetActive hands over the groups that this node is the active proxy of. It is
// called when the node holds their HaVips, and before it lets go of them.
func (n *Node) SetActive(groups map[string]bool) {
	active := maps.Clone(groups)
	n.change(func(a *alive) { a.active = active })
}

// Elects tells whether the node takes part in an election.
func (n *Node) Elects() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.current.Elections) > 0
}

// change plans anew if f changes anything.
func (n *Node) change(f func(*alive)) {
	n.mu.Lock()
	before := n.alive
	f(&n.alive)
	same := reflect.DeepEqual(before, n.alive)
	n.mu.Unlock()
	if !same {
		n.replan()
	}
}

// addAlive completes facts by who is alive.
func (n *Node) addAlive(ctx context.Context, f *plan.Facts) error {
	n.mu.Lock()
	a := n.alive
	n.mu.Unlock()
	f.Live, f.Active, f.Broken = a.live, a.active, a.broken
	if a.live == nil {
		return nil
	}
	var err error
	f.Hashing, err = n.facts.hashing(ctx)
	return err
}

// hashing finds out once how the kernel can spread flows.
func (f *facts) hashing(ctx context.Context) (plan.Hashing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.groups != nil {
		return *f.groups, nil
	}
	h, err := f.host.In("")
	if err != nil {
		return plan.HashNone, err
	}
	plain, resilient, err := h.NexthopGroups(ctx)
	if err != nil {
		return plan.HashNone, err
	}
	found := plan.HashNone
	switch {
	case resilient:
		found = plan.HashResilient
	case plain:
		found = plan.HashPlain
	}
	f.groups = &found
	return found, nil
}

// findBroken notes which namespaces have something wanted that could not be put
// in place: what they carry must not be announced.
func (n *Node) findBroken() {
	if n.opts.Plan.BGP == nil {
		return
	}
	loop := n.loop.Status()
	n.mu.Lock()
	footprints := n.current.Footprints
	n.mu.Unlock()
	broken := map[string]bool{}
	for _, f := range footprints {
		if f.Role == intent.RoleProxy && failing(f, loop) {
			broken[f.Netns] = true
		}
	}
	if len(broken) == 0 {
		broken = nil
	}
	n.change(func(a *alive) { a.broken = broken })
}

func failing(f plan.Footprint, loop reconcile.Status) bool {
	for _, k := range loop.Kinds {
		if k.Name == "paths" {
			continue
		}
		for _, o := range k.Objects {
			if o.Err != nil && o.Op != reconcile.Delete && f.Owns(o.Object) {
				return true
			}
		}
	}
	return false
}
