package agent

import (
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/peering"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

const (
	// saveEvery bounds how often what is believed is written to disk.
	saveEvery = time.Second
	// saveWait is how many times that is put off while it changes: thousands
	// of routes are to be in the kernel first.
	saveWait = 5
)

// keeper knows what of the table of routes is on disk.
type keeper struct {
	routes        []bgp.Route // nil before the first
	version, seen uint64      // of the table: on disk, and when it was looked at last
	waited        int         // how often saving was put off
}

// due tells whether a version of the table is to be written now: it has not changed
// since it was looked at last, or has not stopped to for too long.
func (k *keeper) due(version uint64) bool {
	if version == k.version {
		return false
	}
	if version != k.seen && k.waited < saveWait {
		k.seen, k.waited = version, k.waited+1
		return false
	}
	return true
}

// saved notes what is on disk.
func (k *keeper) saved(version uint64, routes []bgp.Route) {
	k.routes, k.version, k.waited = routes, version, 0
}

// keep writes what is believed to disk if that is due. What could not be written is
// due again.
func (r *routing) keep(k *keeper) {
	r.mu.Lock()
	version := r.table.Version()
	var now []bgp.Route
	due := k.due(version)
	if due {
		now = r.table.Believed()
	}
	r.mu.Unlock()
	if !due {
		return
	}
	if k.routes == nil || !slices.EqualFunc(now, k.routes, peering.Same) {
		if err := (peering.Memory{Boot: r.boot, Routes: now}).Save(r.file); err != nil {
			r.log.Warn("restarting would forget", "err", err)
			return
		}
	}
	k.saved(version, now)
}
