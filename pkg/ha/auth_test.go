package ha

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// keyed has a node authenticate its adverts, as elections do.
func keyed(c *NodeConfig) {
	c.Keys, c.SendKey, c.Freshness = vrrp.Keys{1: []byte("0123456789abcdef")}, 1, time.Minute
}

// A standby that restarts long after the active one has started must hear it: a
// deaf one would become active beside it.
func TestAuthenticatedStandbyRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b := startNode(t, w, lower, higher, 200, keyed), startNode(t, w, higher, lower, 100, keyed)
		time.Sleep(10 * time.Minute)
		b.end(t)
		b = startNode(t, w, higher, lower, 100, keyed)
		time.Sleep(5 * time.Second)
		a.is(t, Active)
		b.is(t, Backup)
		if s := b.Stats(); s.Transitions != 1 || s.Authenticated == 0 || len(s.Discarded) > 0 && s.Discarded["auth_stale"] > 0 {
			t.Errorf("counters %+v", s)
		}
		a.end(t)
		b.end(t)
	})
}
