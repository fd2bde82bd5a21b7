package kerneltest

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func (m *machine) nexthops() []kernel.Nexthop {
	m.Helper()
	all, err := m.own.Nexthops(m.Context())
	m.ok(err)
	slices.SortFunc(all, func(a, b kernel.Nexthop) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (m *machine) holdNexthops(want ...kernel.Nexthop) {
	m.Helper()
	if got := m.nexthops(); !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
		m.Fatalf("got\n%+v, want\n%+v", got, want)
	}
}

var nexthopContract = map[string]func(*testing.T, *machine){
	"groups, and routes by them": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		plain, resilient, err := m.own.NexthopGroups(ctx)
		m.ok(err)
		if !plain || !resilient {
			t.Fatal("this kernel has no resilient groups")
		}
		m.holdNexthops()
		one := kernel.Nexthop{ID: 1001, Link: l.Index, Via: netip.MustParseAddr("100.64.0.2"), Onlink: true, Protocol: ours}
		two := kernel.Nexthop{ID: 1002, Link: l.Index, Via: netip.MustParseAddr("100.64.0.3"), Onlink: true, Protocol: ours}
		group := kernel.Nexthop{ID: 1000, Members: []uint32{1001, 1002}, Resilient: true, Buckets: 8, IdleSeconds: 5, Protocol: ours}
		flat := kernel.Nexthop{ID: 1003, Members: []uint32{1002}, Protocol: ours}
		for range 2 {
			m.allOK(m.own.ReplaceNexthops(ctx, []kernel.Nexthop{group, one, two, flat}))
			m.holdNexthops(group, one, two, flat)
		}
		r := kernel.Route{Table: 1000, Dst: netip.MustParsePrefix("172.16.101.0/24"), Type: kernel.RouteUnicast, Nexthop: 1000, Protocol: ours}
		for range 2 {
			m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
			m.hold(r)
		}
		group.Members = []uint32{1002}
		one.Via = netip.MustParseAddr("100.64.0.9")
		m.allOK(m.own.ReplaceNexthops(ctx, []kernel.Nexthop{one, group}))
		m.holdNexthops(group, one, two, flat)
		m.hold(r)
		foreign := one
		foreign.Protocol = theirs
		m.is(m.own.ReplaceNexthops(ctx, []kernel.Nexthop{foreign})[0], kernel.ErrForeign)
		m.allOK(m.own.DeleteNexthops(ctx, []kernel.Nexthop{foreign}))
		m.holdNexthops(group, one, two, flat)
		m.allOK(m.own.DeleteNexthops(ctx, []kernel.Nexthop{two, group, two}))
		m.holdNexthops(one) // the flat group has gone with its last member
		m.hold()            // and the route with its group
	},
	"what cannot be": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		via := netip.MustParseAddr("100.64.0.2")
		errs := m.own.ReplaceNexthops(t.Context(), []kernel.Nexthop{
			{Link: l.Index, Via: via, Protocol: ours},
			{ID: 1001, Link: l.Index, Via: via},
			{ID: 1001, Via: via, Protocol: ours},
			{ID: 1001, Members: []uint32{4}, Resilient: true, Protocol: ours},
			{ID: 1001, Members: []uint32{4}, Protocol: ours},
			{ID: 1002, Link: l.Index, Via: via, Onlink: true, Protocol: ours},
		})
		for _, err := range errs[:5] {
			m.fails(err)
		}
		m.ok(errs[5])
		m.ok(m.own.DeleteLink(t.Context(), l.Index))
		m.eventually("the nexthop goes with its link", func() bool { return len(m.nexthops()) == 0 })
	},
}
