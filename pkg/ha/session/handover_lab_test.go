package session_test

import (
	"testing"
	"time"
)

// After two hand-overs the first member has what the second had, and nothing of
// its own first time.
func TestNothingStaleAfterTwoHandOvers(t *testing.T) {
	a, b := pair(t, 0)
	all := made(0, 600, "172.16.101.100", 20000)
	a.create(t, all[:300])
	a.m.SetActive("g", true)
	follows := func() bool { return same(a.entries(t), b.entries(t)) }
	eventually(t, "the bulk", func() bool { return len(b.entries(t)) == 300 }, a, b)

	// Both are told apart in time, as in a failover: the new one first.
	b.m.SetActive("g", true)
	b.remove(t, all[:100])
	b.create(t, all[300:])
	// On a, which still thinks that it is active, a flow is born that clashes.
	a.create(t, made(7300, 5, "172.16.101.100", 13000))
	a.m.SetActive("g", false)
	eventually(t, "the way back", func() bool { return follows() && len(a.entries(t)) == 500 }, a, b)

	a.m.SetActive("g", true)
	b.m.SetActive("g", false)
	a.remove(t, all[100:200])
	eventually(t, "the second hand-over", func() bool { return follows() && len(b.entries(t)) == 400 }, a, b)
}

// A member that takes over for a moment, with nothing, does not make the other
// forget what it has.
func TestMomentaryHandOver(t *testing.T) {
	a, b := pairWith(t, 0, time.Hour)
	all := made(0, 300, "172.16.101.100", 20000)
	a.create(t, all)
	// b has not been told of anything.
	b.create(t, made(4000, 5, "172.16.101.100", 30000))
	b.m.SetActive("g", true)
	eventually(t, "the copy of the other", func() bool { return len(a.entries(t)) == 305 }, a, b)
	b.m.SetActive("g", false)
	a.m.SetActive("g", true)
	eventually(t, "all flows on both", func() bool { return len(b.entries(t)) == 305 && same(a.entries(t), b.entries(t)) }, a, b)
}
