package tunnel_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

type addresses = map[desired.AddressKey]desired.Address

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// tunnels makes a device in the agent's namespace and one in vpx-a, and plugs
// eth1 into the agent's.
func tunnels(t *testing.T, m *machine.Machine) {
	ok(t, m.CreateNamespace(t.Context(), "vpx-a"), m.CreateNamespace(t.Context(), "foreign"))
	machine.Reconcile(t, tunnel.NewLinks(m)).Apply(links{
		{Name: "vpx-t"}:                 gre(6, "t"),
		{Netns: "vpx-a", Name: "vpx-a"}: gre(7, "a"),
	})
	m.Plug(t, "eth1", mac1)
}

// on returns a link's addresses but for the link-local ones.
func on(t *testing.T, m *machine.Machine, netns, name string) []string {
	t.Helper()
	all, err := m.Open(t, netns).Addresses(t.Context())
	ok(t, err)
	l := m.Link(t, netns, name)
	var out []string
	for _, a := range all {
		if a.Link == l.Index && !a.LinkLocal {
			out = append(out, a.Prefix.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestAddresses(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		tunnels(t, m)
		engine := machine.Reconcile(t, tunnel.NewAddresses(m))
		own := m.Open(t, "")
		eth1, tun := m.Link(t, "", "eth1").Index, m.Link(t, "", "vpx-t").Index
		ok(t, own.AddAddress(t.Context(), kernel.Address{Link: eth1, Prefix: prefix("172.16.101.10/24")}))
		want := addresses{
			{Link: "vpx-t", Prefix: prefix("100.64.0.1/32")}:                 {},
			{Link: "vpx-t", Prefix: prefix("fd00::1/128")}:                   {},
			{Netns: "vpx-a", Link: "vpx-a", Prefix: prefix("100.64.0.2/32")}: {},
			{Link: "eth1", Prefix: prefix("172.16.101.10/24")}:               {}, // somebody's already
			{Link: "eth1", Prefix: prefix("172.16.101.11/24")}:               {},
		}
		if p := engine.Apply(want); p.Writes() != 4 {
			t.Errorf("%d writes", p.Writes())
		}
		if got := on(t, m, "vpx-a", "vpx-a"); !slices.Equal(got, []string{"100.64.0.2/32"}) {
			t.Errorf("vpx-a has %q", got)
		}

		ok(t, own.DeleteAddress(t.Context(), kernel.Address{Link: tun, Prefix: prefix("100.64.0.1/32")}))
		ok(t, own.AddAddress(t.Context(), kernel.Address{Link: tun, Prefix: prefix("192.0.2.77/32")})) // nobody else's business
		engine.Apply(want)
		if got := on(t, m, "", "vpx-t"); !slices.Equal(got, []string{"100.64.0.1/32", "fd00::1/128"}) {
			t.Errorf("vpx-t has %q", got)
		}

		engine.Apply(addresses{})
		if got := on(t, m, "", "vpx-t"); len(got) > 0 {
			t.Errorf("vpx-t still has %q", got)
		}
		if got := on(t, m, "", "eth1"); !slices.Equal(got, []string{"172.16.101.10/24"}) {
			t.Errorf("eth1 has %q", got)
		}
		kind := tunnel.NewAddresses(m)
		for k := range want {
			k.Link = "absent"
			ok(t, kind.Delete(t.Context(), k, desired.Address{}))
			if err := kind.Upsert(t.Context(), k, desired.Address{}); err == nil {
				t.Error("an address on no link")
			}
		}
		ok(t, kind.Delete(t.Context(), desired.AddressKey{Netns: "vpx-gone", Link: "x", Prefix: prefix("10.0.0.1/32")}, desired.Address{}))
	})
}

type neighbors = map[desired.NeighborKey]desired.Neighbor

func TestNeighbors(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		tunnels(t, m)
		engine := machine.Reconcile(t, tunnel.NewNeighbors(m, &tunnel.Table{}))
		at := func(s string) desired.Neighbor { return desired.Neighbor{NBMA: netip.MustParseAddr(s)} }
		ip := netip.MustParseAddr
		want := neighbors{
			{Link: "vpx-t", Addr: ip("100.64.0.2")}:                 at("192.0.2.2"),
			{Link: "vpx-t", Addr: ip("fd00::2")}:                    at("192.0.2.2"),
			{Netns: "vpx-a", Link: "vpx-a", Addr: ip("100.64.0.3")}: at("192.0.2.3"),
			{Netns: "vpx-a", Link: "vpx-a", Addr: ip("100.64.0.4")}: at("192.0.2.4"),
		}
		engine.Apply(want)
		a, h := m.Link(t, "vpx-a", "vpx-a").Index, m.Open(t, "vpx-a")
		ok(t, h.ReplaceNeighbors(t.Context(), []kernel.Neighbor{
			{Link: a, Addr: ip("100.64.0.3"), NBMA: ip("192.0.2.9"), State: kernel.NeighborPermanent},   // moved
			{Link: a, Addr: ip("100.64.0.4"), NBMA: ip("192.0.2.4"), State: kernel.NeighborReachable},   // will age
			{Link: a, Addr: ip("100.64.0.200"), NBMA: ip("192.0.2.4"), State: kernel.NeighborPermanent}, // unwanted
			{Link: a, Addr: ip("100.64.0.201"), NBMA: ip("192.0.2.4"), State: kernel.NeighborReachable}, // the kernel's
		})...)
		p := engine.Apply(want)
		if k := p.Kinds[0]; k.Created != 1 || k.Repaired != 1 || k.Deleted != 1 {
			t.Errorf("%+v", k)
		}
		ok(t, h.SetLinkUp(t.Context(), a, false), h.SetLinkUp(t.Context(), a, true)) // drops permanent ones too
		if p := engine.Apply(want); p.Writes() != 2 {
			t.Errorf("%d writes after the link was down", p.Writes())
		}

		// One that cannot be made does not stop the others.
		bad := desired.NeighborKey{Link: "vpx-absent", Addr: ip("100.64.0.5")}
		more := neighbors{bad: at("192.0.2.5"), {Link: "vpx-t", Addr: ip("100.64.0.6")}: at("192.0.2.6")}
		if p := engine.Try(more); p.Err == nil || p.Kinds[0].Created != 1 || p.Kinds[0].Failed < 1 {
			t.Errorf("%+v, %v", p.Kinds[0], p.Err)
		}
		engine.Apply(neighbors{})
		got, err := tunnel.NewNeighbors(m, &tunnel.Table{}).List(t.Context())
		if err != nil || len(got) > 0 {
			t.Errorf("left: %v, %v", got, err)
		}
		ok(t, tunnel.NewNeighbors(m, &tunnel.Table{}).Delete(t.Context(), bad, at("192.0.2.5")))
		bad.Netns = "vpx-gone"
		ok(t, tunnel.NewNeighbors(m, &tunnel.Table{}).Delete(t.Context(), bad, at("192.0.2.5")))
	})
}
