package tunnel

import (
	"maps"
	"net/netip"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// Resolver knows at which underlay (NBMA) address a tunnel address is reached,
// for the neighbors that are made on demand. It is asked often, from several
// goroutines, and answers from memory.
type Resolver interface {
	// Resolve returns false for an address that nobody has told it of.
	Resolve(k desired.NeighborKey) (nbma netip.Addr, ok bool)
	// All returns the neighbors that it knows in a namespace; the caller may
	// change the map.
	All(netns string) map[desired.NeighborKey]netip.Addr
}

// Table is a Resolver of what the plan says: where the intent's nodes are. The
// zero value knows nothing.
type Table struct {
	mu      sync.RWMutex
	byNetns map[string]map[desired.NeighborKey]netip.Addr
}

var _ Resolver = (*Table)(nil)

// Resolve implements [Resolver].
func (t *Table) Resolve(k desired.NeighborKey) (netip.Addr, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	nbma, ok := t.byNetns[k.Netns][k]
	return nbma, ok
}

// All implements [Resolver].
func (t *Table) All(netns string) map[desired.NeighborKey]netip.Addr {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.byNetns[netns])
}

// Set replaces what the table knows by the entries that are wanted on demand,
// and returns the namespaces that have any.
func (t *Table) Set(wanted map[desired.NeighborKey]desired.Neighbor) map[string]bool {
	byNetns, names := map[string]map[desired.NeighborKey]netip.Addr{}, map[string]bool{}
	for k, v := range wanted {
		if !v.OnDemand {
			continue
		}
		if !names[k.Netns] {
			names[k.Netns], byNetns[k.Netns] = true, map[desired.NeighborKey]netip.Addr{}
		}
		byNetns[k.Netns][k] = v.NBMA
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byNetns = byNetns
	return names
}
