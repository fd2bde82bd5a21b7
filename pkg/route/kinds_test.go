package route_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

func ok(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// prepare makes a namespace of ours, one of somebody else's, and eth1 with an
// address, set up, in each.
func prepare(t *testing.T, m *machine.Machine) {
	for i, netns := range []string{"vpx-a", "foreign", ""} {
		mac := "02:00:00:00:00:0" + string(rune('1'+i))
		m.Plug(t, "eth1", mac)
		if netns != "" {
			ok(t, m.CreateNamespace(t.Context(), netns))
			ok(t, m.Open(t, "").MoveLink(t.Context(), m.Link(t, "", "eth1").Index, netns))
		}
		h, l := m.Open(t, netns), m.Link(t, netns, "eth1")
		ok(t, h.SetLinkUp(t.Context(), l.Index, true),
			h.AddAddress(t.Context(), kernel.Address{Link: l.Index, Prefix: prefix("100.64.0.1/32")}),
			h.AddAddress(t.Context(), kernel.Address{Link: l.Index, Prefix: prefix("fd00::1/64")}))
	}
}

type routes = map[desired.RouteKey]desired.Route

// lastMetric is what a plan gives the route of last resort.
const lastMetric = 4294967295

func wantedRoutes() routes {
	via := desired.Route{Link: "eth1", Via: ip("100.64.0.2"), Onlink: true}
	source := via
	source.Source = ip("100.64.0.1")
	return routes{
		{Table: 5001, Dst: prefix("172.16.101.0/24")}:                via,
		{Table: 5001, Dst: prefix("172.16.102.0/24")}:                source,
		{Table: 5001, Dst: prefix("0.0.0.0/0"), Metric: lastMetric}:  {Type: desired.Unreachable},
		{Table: 5001, Dst: prefix("fd00:101::/64")}:                  {Link: "eth1", Via: ip("fd00::2")},
		{Table: 5001, Dst: prefix("::/0"), Metric: lastMetric}:       {Type: desired.Unreachable},
		{Netns: "vpx-a", Table: 254, Dst: prefix("100.64.0.0/16")}:   {Link: "eth1"},
		{Netns: "vpx-a", Table: 254, Dst: prefix("172.16.101.0/24")}: via,
	}
}

func TestRoutes(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		want := wantedRoutes()
		engine := machine.Reconcile(t, route.NewRoutes(m))
		h, eth1 := m.Open(t, ""), m.Link(t, "", "eth1").Index
		foreign := kernel.Route{Table: 5001, Dst: prefix("172.16.103.0/24"), Link: eth1, Protocol: 4}
		ok(t, h.ReplaceRoutes(t.Context(), []kernel.Route{foreign})...)
		elsewhere := foreign
		elsewhere.Protocol, elsewhere.Link = desired.Protocol, m.Link(t, "foreign", "eth1").Index
		ok(t, m.Open(t, "foreign").ReplaceRoutes(t.Context(), []kernel.Route{elsewhere})...)
		engine.Apply(want)

		drift := []kernel.Route{
			{Table: 5001, Dst: prefix("172.16.101.0/24"), Link: eth1, Protocol: desired.Protocol},            // changed
			{Table: 77, Dst: prefix("172.16.101.0/24"), Link: eth1, Protocol: desired.Protocol},              // unwanted
			{Table: 77, Dst: prefix("10.0.0.0/8"), Type: 6, Protocol: desired.Protocol},                      // of another type (blackhole)
			{Table: 5001, Dst: prefix("172.16.101.0/24"), Metric: 5, Link: eth1, Protocol: desired.Protocol}, // beside ours
			{Table: 5001, Dst: prefix("fd00:101::/64"), Metric: 7, Link: eth1, Protocol: desired.Protocol},   // likewise
		}
		ok(t, h.ReplaceRoutes(t.Context(), drift)...)
		ok(t, h.DeleteRoutes(t.Context(), []kernel.Route{{Table: 5001, Dst: prefix("0.0.0.0/0"), Metric: lastMetric, Protocol: desired.Protocol}})...)
		if k := engine.Apply(want).Kinds[0]; k.Created != 1 || k.Repaired != 1 || k.Deleted != 4 {
			t.Errorf("%+v", k)
		}

		ok(t, h.SetLinkUp(t.Context(), eth1, false), h.SetLinkUp(t.Context(), eth1, true)) // drops the routes, and the IPv6 address
		ok(t, h.AddAddress(t.Context(), kernel.Address{Link: eth1, Prefix: prefix("fd00::1/64")}))
		if k := engine.Apply(want).Kinds[0]; k.Created != 3 {
			t.Errorf("%+v", k)
		}
		ok(t, h.ReplaceRoutes(t.Context(), []kernel.Route{foreign})...)

		engine.Apply(routes{})
		for netns, n := range map[string]int{"": 1, "foreign": 1, "vpx-a": 0} {
			left, err := m.Open(t, netns).Routes(t.Context(), kernel.RouteFilter{Link: m.Link(t, netns, "eth1").Index})
			ok(t, err)
			count := 0
			for _, r := range left {
				if r.Protocol == 4 || r.Protocol == desired.Protocol {
					count++
				}
			}
			if count != n {
				t.Errorf("%d routes in %q, want %d: %v", count, netns, n, left)
			}
		}
	})
}

func TestRouteThatCannotBe(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		h, eth1 := m.Open(t, ""), m.Link(t, "", "eth1").Index
		ok(t, h.ReplaceRoutes(t.Context(), []kernel.Route{{Table: 254, Dst: prefix("172.16.9.0/24"), Link: eth1, Protocol: 4}})...)
		p := machine.Reconcile(t, route.NewRoutes(m)).Try(routes{
			{Table: 5001, Dst: prefix("172.16.101.0/24")}:              {Link: "eth1"},
			{Table: 5001, Dst: prefix("172.16.8.0/24")}:                {Link: "vpx-absent"},
			{Table: 254, Dst: prefix("172.16.9.0/24")}:                 {Link: "eth1"}, // somebody else's, in a table for all
			{Table: 5001, Dst: prefix("fd00:9::/64"), Metric: 1024}:    {Link: "eth1"}, // must be asked for with 0
			{Table: 5001, Dst: prefix("172.16.7.0/24")}:                {Type: 9},
			{Netns: "vpx-gone", Table: 5001, Dst: prefix("0.0.0.0/0")}: {Type: desired.Unreachable},
		})
		if k := p.Kinds[0]; k.Created != 1 || k.Failed < 5 {
			t.Errorf("%+v", k)
		}
		for _, target := range []error{kernel.ErrForeign, kernel.ErrNotFound} {
			if !errors.Is(p.Err, target) {
				t.Errorf("%v is missing in: %v", target, p.Err)
			}
		}
		for _, text := range []string{"vpx-absent", "with metric 0", "type 9", "namespace vpx-gone"} {
			if !strings.Contains(p.Err.Error(), text) {
				t.Errorf("%q is missing in: %v", text, p.Err)
			}
		}
		gone := desired.RouteKey{Netns: "vpx-gone", Table: 5001, Dst: prefix("0.0.0.0/0")}
		ok(t, route.NewRoutes(m).Delete(t.Context(), gone, desired.Route{}))
		ok(t, route.NewRoutes(m).Delete(t.Context(), desired.RouteKey{Table: 5001, Dst: prefix("172.16.200.0/24")}, desired.Route{}))
	})
}

// In a table that only we fill, another program's route in the place of ours is
// a mistake like any other; beside ours it stays.
func TestRouteIsEvicted(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		h, eth1 := m.Open(t, ""), m.Link(t, "", "eth1").Index
		there := []kernel.Route{
			{Table: 5001, Dst: prefix("172.16.9.0/24"), Link: eth1, Protocol: 4},
			{Table: 5001, Dst: prefix("172.16.10.0/24"), Link: eth1, Protocol: 4},
		}
		ok(t, h.ReplaceRoutes(t.Context(), there)...)
		machine.Reconcile(t, route.NewRoutes(m)).Apply(routes{{Table: 5001, Dst: prefix("172.16.9.0/24")}: {Type: desired.Unreachable}})
		left, err := h.Routes(t.Context(), kernel.RouteFilter{Table: 5001})
		ok(t, err)
		got := map[string]uint8{}
		for _, r := range left {
			got[r.Dst.String()] = r.Protocol
		}
		if len(left) != 2 || got["172.16.9.0/24"] != desired.Protocol || got["172.16.10.0/24"] != 4 {
			t.Errorf("left: %+v", left)
		}
	})
}

func TestRouteDiff(t *testing.T) {
	want := desired.Route{Link: "vpx-a", Via: ip("100.64.0.2"), Onlink: true, Source: ip("100.64.0.1")}
	for _, tt := range []struct {
		have desired.Route
		diff string
	}{
		{want, ""},
		{desired.Route{Type: desired.Unreachable}, "unreachable, want via 100.64.0.2 dev vpx-a onlink src 100.64.0.1"},
		{desired.Route{Link: "vpx-a"}, "dev vpx-a, want via 100.64.0.2 dev vpx-a onlink src 100.64.0.1"},
		{desired.Route{Type: 255, Link: "vpx-a"}, "is neither a unicast route with one next hop nor an unreachable one"},
	} {
		if got := route.NewRoutes(nil).Diff(want, tt.have); got != tt.diff {
			t.Errorf("got %q, want %q", got, tt.diff)
		}
	}
}

type rules = map[desired.RuleKey]desired.Rule

func TestRules(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		want := rules{
			{Priority: 100, Mark: 0x100, Mask: 0xff00, Table: 5001}:             {},
			{Priority: 100, Mark: 0x200, Mask: 0xff00, Table: 5002}:             {},
			{Priority: 100, Mark: 0x100, Mask: 0xff00, Table: 5001, IPv6: true}: {},
			{Netns: "vpx-a", Priority: 9, Mark: 1, Mask: 1, Table: 5003}:        {},
		}
		engine := machine.Reconcile(t, route.NewRules(m))
		h := m.Open(t, "")
		foreign := kernel.Rule{Priority: 50, Mark: 1, Mask: 1, Table: 99, Protocol: 4}
		twin := kernel.Rule{Priority: 100, Mark: 0x200, Mask: 0xff00, Table: 5002, Protocol: 4} // like ours, but not ours
		ok(t, h.AddRules(t.Context(), []kernel.Rule{foreign, twin})...)
		before, err := h.Rules(t.Context())
		ok(t, err)
		engine.Apply(want)
		ok(t, h.DeleteRules(t.Context(), []kernel.Rule{{Priority: 100, Mark: 0x100, Mask: 0xff00, Table: 5001, Protocol: desired.Protocol}})...)
		ok(t, h.AddRules(t.Context(), []kernel.Rule{{Priority: 1, Table: 5001, Protocol: desired.Protocol}})...)
		if k := engine.Apply(want).Kinds[0]; k.Created != 1 || k.Deleted != 1 {
			t.Errorf("%+v", k)
		}
		engine.Apply(rules{})
		after, err := h.Rules(t.Context())
		ok(t, err)
		if len(after) != len(before) {
			t.Errorf("left: %v, want %v", after, before)
		}
		gone := desired.RuleKey{Netns: "vpx-gone", Priority: 1, Table: 5001}
		ok(t, route.NewRules(m).Delete(t.Context(), gone, desired.Rule{}))
		if err := route.NewRules(m).Upsert(t.Context(), gone, desired.Rule{}); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("a rule in no namespace: %v", err)
		}
	})
}

type sysctls = map[desired.SysctlKey]desired.Sysctl

func TestSysctls(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		forward := desired.SysctlKey{Netns: "vpx-a", Name: "net/ipv4/ip_forward"}
		want := sysctls{
			forward:                                {Value: "1"},
			{Name: "net/ipv4/conf/eth1/rp_filter"}: {Value: "2"},
			{Netns: "vpx-a", Name: "net/ipv4/conf/eth1/arp_ignore"}: {Value: "1"},
		}
		engine := machine.Reconcile(t, route.NewSysctls(m))
		if p := engine.Apply(want); p.Kinds[0].Repaired != 3 {
			t.Errorf("%+v", p.Kinds[0])
		}
		h := m.Open(t, "vpx-a")
		ok(t, h.SetSysctl(t.Context(), forward.Name, "0"))
		if p := engine.Apply(want); p.Kinds[0].Repaired != 1 {
			t.Errorf("%+v", p.Kinds[0])
		}
		missing := sysctls{forward: {Value: "1"}, {Netns: "vpx-gone", Name: forward.Name}: {Value: "1"}, {Name: "net/ipv4/conf/eth9/rp_filter"}: {Value: "0"}}
		if p := engine.Try(missing); p.Kinds[0].Failed < 2 || !errors.Is(p.Err, kernel.ErrNotFound) {
			t.Errorf("%+v, %v", p.Kinds[0], p.Err)
		}
		engine.Apply(sysctls{})
		if v, err := h.Sysctl(t.Context(), forward.Name); err != nil || v != "1" {
			t.Errorf("put back to %q, %v", v, err)
		}
	})
}

func TestSysctlsThatDriftInSilence(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		prepare(t, m)
		silent := desired.SysctlKey{Netns: "vpx-a", Name: "net/ipv4/conf/eth1/arp_ignore"}
		told := desired.SysctlKey{Netns: "vpx-a", Name: "net/ipv4/conf/eth1/rp_filter"}
		want := sysctls{silent: {Value: "1"}, told: {Value: "2"}, {Netns: "vpx-a", Name: "net/ipv4/conf/eth9/arp_ignore"}: {Value: "1"}}
		kind := route.NewSysctls(m)
		if drifted, watched := kind.Drifted(t.Context()); drifted || !watched {
			t.Error("nothing was wanted")
		}
		h := m.Open(t, "vpx-a")
		ok(t, h.SetSysctl(t.Context(), silent.Name, "1"))
		kind.Want(want)
		if drifted, watched := kind.Drifted(t.Context()); drifted || !watched {
			t.Error("an event tells of the one that differs, and of the link that is not there")
		}
		ok(t, h.SetSysctl(t.Context(), silent.Name, "0"))
		if drifted, _ := kind.Drifted(t.Context()); !drifted {
			t.Error("no event tells of this one")
		}
	})
}

func TestSysctlDiffIgnoresWhiteSpace(t *testing.T) {
	kind := route.NewSysctls(nil)
	if d := kind.Diff(desired.Sysctl{Value: "32768 60999"}, desired.Sysctl{Value: "32768\t60999"}); d != "" {
		t.Error(d)
	}
	if d := kind.Diff(desired.Sysctl{Value: "1"}, desired.Sysctl{Value: "0"}); d != "0, want 1" {
		t.Error(d)
	}
}
