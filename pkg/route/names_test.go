package route_test

import (
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

// Routes go by their links' names of the moment, when they are listed and when they
// are written.
func TestRoutesFollowTheirLinksNames(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		h := m.Open(t, "")
		links := map[string]int{}
		for i, name := range []string{"vpx-1", "vpx-2"} {
			ok(t, h.CreateGRE(t.Context(), name, kernel.GRE{Local: ip("192.0.2.1"), Keyed: true, Key: uint32(i)}, 0))
			links[name] = m.Link(t, "", name).Index
		}
		swap := func() {
			t.Helper()
			for _, r := range []struct{ from, to string }{{"vpx-1", "vpx-3"}, {"vpx-2", "vpx-1"}, {"vpx-3", "vpx-2"}} {
				ok(t, h.SetLinkUp(t.Context(), m.Link(t, "", r.from).Index, false), h.SetLinkName(t.Context(), m.Link(t, "", r.from).Index, r.to))
			}
			for name := range links {
				ok(t, h.SetLinkUp(t.Context(), m.Link(t, "", name).Index, true))
			}
		}
		swap()
		kind := route.NewRoutes(m)
		key := desired.RouteKey{Table: 5001, Dst: prefix("172.16.101.0/24")}
		other := desired.RouteKey{Table: 5001, Dst: prefix("172.16.102.0/24")}
		want := desired.Route{Link: "vpx-1", Via: ip("100.64.0.2"), Onlink: true}
		leads := func(when string, k desired.RouteKey, link int) {
			t.Helper()
			there, err := h.Routes(t.Context(), kernel.RouteFilter{Table: k.Table})
			ok(t, err)
			for _, r := range there {
				if r.Dst == k.Dst && r.Link == link {
					return
				}
			}
			t.Errorf("%s: no route to %s by link %d: %+v", when, k.Dst, link, there)
		}
		ok(t, kind.Upsert(t.Context(), key, want))
		leads("after they changed places", key, links["vpx-2"])

		listed, err := kind.List(t.Context())
		ok(t, err)
		if listed[key] != want {
			t.Errorf("listed: %+v, want %+v", listed[key], want)
		}
		swap()
		ok(t, kind.UpsertBatch(t.Context(), []reconcile.Item[desired.RouteKey, desired.Route]{{Key: key, Value: want}, {Key: other, Value: want}})...)
		leads("after they changed places behind the list", key, links["vpx-1"])
		leads("after they changed places behind the list", other, links["vpx-1"])
		listed, err = kind.List(t.Context())
		ok(t, err)
		if listed[key] != want || listed[other] != want {
			t.Errorf("listed: %+v", listed)
		}
	})
}
