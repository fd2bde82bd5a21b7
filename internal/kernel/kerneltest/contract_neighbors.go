package kerneltest

import (
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// neighbors returns what is listed, by address.
func (m *machine) neighbors() map[netip.Addr]kernel.Neighbor {
	m.Helper()
	all, err := m.own.Neighbors(m.Context())
	m.ok(err)
	byAddr := map[netip.Addr]kernel.Neighbor{}
	for _, n := range all {
		byAddr[n.Addr] = n
	}
	if len(byAddr) != len(all) {
		m.Fatalf("listed twice: %v", all)
	}
	return byAddr
}

// hosts makes n neighbors of a link.
func hosts(link, n int) []kernel.Neighbor {
	all := make([]kernel.Neighbor, n)
	for i := range all {
		all[i] = kernel.Neighbor{
			Link: link,
			Addr: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}),
			NBMA: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}),
		}
	}
	return all
}

var neighborContract = map[string]func(*testing.T, *machine){
	"replace and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		for _, addr := range []string{"100.64.0.2", "fd00::2"} {
			n := kernel.Neighbor{Link: l.Index, Addr: netip.MustParseAddr(addr), NBMA: netip.MustParseAddr("192.0.2.2")}
			for _, nbma := range []string{"192.0.2.2", "192.0.2.2", "192.0.2.3"} {
				n.NBMA = netip.MustParseAddr(nbma)
				m.allOK(m.own.ReplaceNeighbors(ctx, []kernel.Neighbor{n}))
				want := n
				want.State = kernel.NeighborPermanent
				if got := m.neighbors(); len(got) != 1 || got[n.Addr] != want {
					t.Fatalf("got %v, want %v", got, want)
				}
			}
			for range 2 {
				m.allOK(m.own.DeleteNeighbors(ctx, []kernel.Neighbor{n}))
				if got := m.neighbors(); len(got) != 0 {
					t.Fatalf("got %v", got)
				}
			}
		}
	},
	"one item's failure is its own": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		all := hosts(l.Index, 700) // more than one message's worth
		const absent, invalid = 300, 301
		all[absent].Link = 4711
		all[invalid].NBMA = netip.Addr{}
		for i, err := range m.own.ReplaceNeighbors(ctx, all) {
			switch i {
			case absent:
				m.is(err, kernel.ErrNotFound)
			case invalid:
				m.fails(err)
			default:
				m.ok(err)
			}
		}
		if got := m.neighbors(); len(got) != len(all)-2 {
			t.Fatalf("got %d neighbors, want %d", len(got), len(all)-2)
		}
		m.allOK(m.own.DeleteNeighbors(ctx, all)) // absent ones too
		if got := m.neighbors(); len(got) != 0 {
			t.Fatalf("%d neighbors left", len(got))
		}
	},
	"nothing to do": func(_ *testing.T, m *machine) {
		m.allOK(m.own.ReplaceNeighbors(m.Context(), nil))
		m.allOK(m.own.DeleteRoutes(m.Context(), nil))
	},
}

var ruleContract = map[string]func(*testing.T, *machine){
	"add and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		for _, want := range []kernel.Rule{
			mark(0x100, 1000),
			{IPv6: true, Priority: 900, Mark: 0x100, Mask: 0xff00, Table: 77, Protocol: 176},
			{Priority: 901, Table: 0xfffffff0, Protocol: 176},
			{Priority: 902, Mark: 0, Mask: 0xff00, Table: 77, Protocol: 176},
		} {
			for range 2 {
				m.allOK(m.own.AddRules(ctx, []kernel.Rule{want}))
				if n := m.rules(want); n != 1 {
					t.Fatalf("%v is there %d times", want, n)
				}
			}
			for range 2 {
				m.allOK(m.own.DeleteRules(ctx, []kernel.Rule{want}))
				if n := m.rules(want); n != 0 {
					t.Fatalf("%v is there %d times", want, n)
				}
			}
		}
	},
	"the kernel's own are listed": func(t *testing.T, m *machine) {
		for _, want := range []kernel.Rule{
			{Priority: 0, Table: 255, Protocol: 2},
			{Priority: 32766, Table: 254, Protocol: 2},
			{IPv6: true, Priority: 32766, Table: 254, Protocol: 2},
		} {
			if n := m.rules(want); n != 1 {
				t.Errorf("%v is there %d times", want, n)
			}
		}
	},
	"someone else's equal rule stays": func(t *testing.T, m *machine) {
		ctx := t.Context()
		ours, theirs := mark(0x100, 1000), mark(0x100, 1000)
		theirs.Protocol = 4
		m.allOK(m.own.AddRules(ctx, []kernel.Rule{theirs}))
		m.allOK(m.own.AddRules(ctx, []kernel.Rule{ours}))
		if m.rules(ours) != 1 || m.rules(theirs) != 1 {
			t.Fatalf("ours is there %d times, theirs %d times", m.rules(ours), m.rules(theirs))
		}
		for range 2 {
			m.allOK(m.own.DeleteRules(ctx, []kernel.Rule{ours}))
		}
		if m.rules(ours) != 0 || m.rules(theirs) != 1 {
			t.Fatalf("ours is there %d times, theirs %d times", m.rules(ours), m.rules(theirs))
		}
	},
	"an absent selector is no wildcard": func(t *testing.T, m *machine) {
		marked := mark(0x100, 1000)
		all := marked
		all.Mark, all.Mask = 0, 0
		m.allOK(m.own.AddRules(t.Context(), []kernel.Rule{marked}))
		m.allOK(m.own.DeleteRules(t.Context(), []kernel.Rule{all}))
		if m.rules(marked) != 1 {
			t.Fatal("another rule was deleted")
		}
	},
	"refused": func(t *testing.T, m *machine) {
		for _, r := range []kernel.Rule{
			{Priority: 1, Mark: 1, Mask: 1, Table: 1000},
			{Priority: 1, Mark: 1, Mask: 1, Protocol: 176},
			{Priority: 1, Mark: 1, Mask: 1, Table: 1000, Protocol: 176, Other: true},
		} {
			m.fails(m.own.AddRules(t.Context(), []kernel.Rule{r})[0])
			m.fails(m.own.DeleteRules(t.Context(), []kernel.Rule{r})[0])
		}
	},
}

// mark is a rule for packets with a mark.
func mark(value, table uint32) kernel.Rule {
	return kernel.Rule{Priority: 1000, Mark: value, Mask: 0xff00, Table: table, Protocol: 176}
}

// rules counts how often a rule is listed.
func (m *machine) rules(want kernel.Rule) int {
	m.Helper()
	all, err := m.own.Rules(m.Context())
	m.ok(err)
	n := 0
	for _, r := range all {
		if r == want {
			n++
		}
	}
	return n
}
