package route_test

import (
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

func TestNexthops(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		h, eth1 := m.Open(t, ""), m.Link(t, "", "eth1").Index
		foreign := kernel.Nexthop{ID: 7, Link: eth1, Via: ip("100.64.0.7"), Onlink: true, Protocol: 4}
		ok(t, h.ReplaceNexthops(t.Context(), []kernel.Nexthop{foreign})...)
		type nexthops = map[desired.NexthopKey]desired.Nexthop
		one := desired.Nexthop{Link: "eth1", Via: ip("100.64.0.2"), Onlink: true}
		two := desired.Nexthop{Link: "eth1", Via: ip("100.64.0.3"), Onlink: true}
		group := desired.Nexthop{Members: []uint32{1001, 1002}, Resilient: true, IdleSeconds: 9}
		want := nexthops{{ID: 1001}: one, {ID: 1002}: two, {ID: 1000}: group}
		engine := machine.Reconcile(t, route.NewNexthops(m))
		engine.Apply(want)
		by := routes{{Table: 5001, Dst: prefix("172.16.101.0/24")}: {Nexthop: 1000}}
		roads := machine.Reconcile(t, route.NewRoutes(m))
		roads.Apply(by)

		drift := []kernel.Nexthop{
			{ID: 1001, Link: eth1, Via: ip("100.64.0.9"), Onlink: true, Protocol: desired.Protocol},
			{ID: 1005, Link: eth1, Via: ip("100.64.0.9"), Onlink: true, Protocol: desired.Protocol},
		}
		ok(t, h.ReplaceNexthops(t.Context(), drift)...)
		if k := engine.Apply(want).Kinds[0]; k.Repaired != 1 || k.Deleted != 1 || k.Created != 0 {
			t.Errorf("%+v", k)
		}
		less := nexthops{{ID: 1002}: two, {ID: 1000}: {Members: []uint32{1002}, Resilient: true, IdleSeconds: 9}}
		engine.Apply(less)
		roads.Apply(by) // is as it was
		missing := nexthops{{ID: 1002}: two, {ID: 1000}: less[desired.NexthopKey{ID: 1000}], {ID: 1003}: {Link: "vpx-gone", Via: ip("100.64.0.2")}}
		if p := engine.Try(missing); p.Err == nil || !strings.Contains(p.Err.Error(), "vpx-gone") {
			t.Errorf("%v", p.Err)
		}
		engine.Apply(nexthops{})
		left, err := h.Nexthops(t.Context())
		ok(t, err)
		if len(left) != 1 || left[0].ID != 7 {
			t.Errorf("left: %+v", left)
		}
	})
}
