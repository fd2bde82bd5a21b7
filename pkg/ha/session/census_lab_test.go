package session_test

import (
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// A second has five of the tests' refreshes.
func TestATableAtRestIsNotListed(t *testing.T) {
	a, b := pair(t, 0)
	all := made(0, 100, "172.16.101.100", 20000)
	a.create(t, all)
	a.m.SetActive("g", true)
	follows := func() bool { return same(a.entries(t), b.entries(t)) }
	eventually(t, "the copy", follows, a, b)
	listings := func() uint64 { return a.status(t).Listings + b.status(t).Listings }
	eventually(t, "rest", func() bool {
		before := listings()
		wait(t, 1200*time.Millisecond)
		return listings()-before <= 1 // one is due for want of anything else
	})

	a.remove(t, all[:1])
	eventually(t, "an end that the count shows", func() bool { return len(b.entries(t)) == len(all)-1 }, a, b)
	b.remove(t, all[1:2])
	eventually(t, "repair of the standby's kernel", follows, a, b)
}

func TestAFlowThatGoesOnIsRenewedInTime(t *testing.T) {
	a, b := pair(t, 0)
	e := made(0, 1, "172.16.101.100", 20000)
	e[0].Timeout = 4
	a.create(t, e)
	a.m.SetActive("g", true)
	there := func() bool {
		_, yes := b.entries(t)[e[0].Orig]
		return yes
	}
	eventually(t, "the copy", there, a, b)
	for began := time.Now(); time.Since(began) < 8*time.Second; wait(t, 200*time.Millisecond) {
		for _, err := range a.conn.Update(t.Context(), []conntrack.Entry{e[0]}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if !there() {
			t.Fatalf("after %v the standby's copy has run out", time.Since(began))
		}
	}
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
	case <-time.After(d):
	}
}
