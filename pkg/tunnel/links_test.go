package tunnel_test

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

var underlay = netip.MustParseAddr("192.0.2.1")

func ok(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

type links = map[desired.LinkKey]desired.Link

func gre(key uint32, alias string) desired.Link {
	return desired.Link{Local: underlay, Keyed: true, Key: key, MTU: 1400, TTL: 64, Alias: "vpcproxy attachment " + alias}
}

// want is one device in the agent's namespace, without a key, and two in others.
func wantedLinks(t testing.TB, m *machine.Machine) links {
	ok(t, m.CreateNamespace(t.Context(), "vpx-a"), m.CreateNamespace(t.Context(), "vpx-b"))
	plain := gre(0, "plain")
	plain.Keyed = false
	return links{
		{Name: "vpx-plain"}:             plain,
		{Netns: "vpx-a", Name: "vpx-a"}: gre(7, "a"),
		{Netns: "vpx-b", Name: "vpx-b"}: gre(8, "b"),
	}
}

func TestLinksAreMade(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		want := wantedLinks(t, m)
		machine.Reconcile(t, tunnel.NewLinks(m)).Apply(want)
		for k, w := range want {
			l := m.Link(t, k.Netns, k.Name)
			g := l.GRE
			if g == nil || !l.Up || l.MTU != w.MTU || l.Alias != w.Alias {
				t.Fatalf("%v: %+v", k, l)
			}
			if g.Local != underlay || g.Remote.IsValid() || g.Keyed != w.Keyed || g.Key != w.Key || g.TTL != 64 || !g.PMTUDisc || g.Underlay != 0 {
				t.Errorf("%v: %+v", k, *g)
			}
		}
	})
}

// replace puts a device in the place of another one: up, moved, with its alias.
func replace(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link, change func(*kernel.GRE)) {
	t.Helper()
	ok(t, h.DeleteLink(t.Context(), l.Index))
	g := *l.GRE
	change(&g)
	own := m.Open(t, "")
	ok(t, own.CreateGRE(t.Context(), l.Name, g, l.MTU))
	ok(t, own.MoveLink(t.Context(), m.Link(t, "", l.Name).Index, "vpx-a"))
	index := m.Link(t, "vpx-a", l.Name).Index
	ok(t, h.SetLinkAlias(t.Context(), index, l.Alias), h.SetLinkUp(t.Context(), index, true))
}

func TestLinksAreRepaired(t *testing.T) {
	key := desired.LinkKey{Netns: "vpx-a", Name: "vpx-a"}
	for name, tt := range map[string]struct {
		drift   func(*testing.T, *machine.Machine, kernel.Handle, kernel.Link)
		inPlace bool // the device is kept
	}{
		"nothing": {func(*testing.T, *machine.Machine, kernel.Handle, kernel.Link) {}, true},
		"down": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.SetLinkUp(t.Context(), l.Index, false))
		}, true},
		"MTU": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.SetLinkMTU(t.Context(), l.Index, 1300))
		}, true},
		"alias": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.SetLinkAlias(t.Context(), l.Index, "mine"))
		}, true},
		"renamed": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.SetLinkUp(t.Context(), l.Index, false), h.SetLinkName(t.Context(), l.Index, "tunnel"), h.SetLinkUp(t.Context(), l.Index, true))
		}, true},
		"renamed to a name of ours": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.SetLinkUp(t.Context(), l.Index, false), h.SetLinkName(t.Context(), l.Index, "vpx-x"))
		}, false},
		"deleted": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.DeleteLink(t.Context(), l.Index))
		}, false},
		"moved out": {func(t *testing.T, _ *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.MoveLink(t.Context(), l.Index, ""))
		}, false},
		"moved out and renamed": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.MoveLink(t.Context(), l.Index, ""))
			own := m.Open(t, "")
			ok(t, own.SetLinkName(t.Context(), m.Link(t, "", l.Name).Index, "tunnel"))
		}, false},
		"replaced by one with another key": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			replace(t, m, h, l, func(g *kernel.GRE) { g.Key = 99 })
		}, false},
		"replaced by one with another TTL": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			replace(t, m, h, l, func(g *kernel.GRE) { g.TTL = 1 })
		}, false},
		"replaced by one without path MTU discovery": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			replace(t, m, h, l, func(g *kernel.GRE) { g.PMTUDisc = false })
		}, false},
		"namespace made anew": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, m.DeleteNamespace(t.Context(), "vpx-a"), m.CreateNamespace(t.Context(), "vpx-a"))
		}, false},
		"half made": {func(t *testing.T, m *machine.Machine, h kernel.Handle, l kernel.Link) {
			ok(t, h.DeleteLink(t.Context(), l.Index))
			g := *l.GRE
			ok(t, m.Open(t, "").CreateGRE(t.Context(), l.Name, g, l.MTU))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			machine.Each(t, func(t *testing.T, m *machine.Machine) {
				want := wantedLinks(t, m)
				engine := machine.Reconcile(t, tunnel.NewLinks(m))
				engine.Apply(want)
				before := m.Link(t, key.Netns, key.Name)
				tt.drift(t, m, m.Open(t, "vpx-a"), before)
				engine.Apply(want)
				after := m.Link(t, key.Netns, key.Name)
				if !after.Up || after.MTU != 1400 || after.Alias != before.Alias || *after.GRE != *before.GRE {
					t.Errorf("got %+v %+v, want %+v %+v", after, *after.GRE, before, *before.GRE)
				}
				if kept := after.Index == before.Index; tt.inPlace && !kept {
					t.Error("the device was made anew")
				}
				got, err := tunnel.NewLinks(m).List(t.Context())
				if err != nil || !maps.Equal(got, want) {
					t.Errorf("got %v, %v, want %v", got, err, want)
				}
			})
		})
	}
}

func TestLinksUnderEveryFailure(t *testing.T) {
	injected := errors.New("injected")
	for n := 1; ; n++ {
		m := machine.Fake(t)
		want := wantedLinks(t, m)
		m.Fake.Fail("", n, injected)
		engine := machine.Reconcile(t, tunnel.NewLinks(m))
		if p := engine.Try(want); p.Kinds[0].Failed == 0 {
			if n < 10 {
				t.Fatalf("only %d writes", n-1)
			}
			return
		}
		engine.Apply(want)
	}
}

func TestUnwantedLinksGo(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		want := wantedLinks(t, m)
		engine := machine.Reconcile(t, tunnel.NewLinks(m))
		engine.Apply(want)
		own := m.Open(t, "")
		g := kernel.GRE{Local: underlay, Keyed: true, Key: 1000, TTL: 64, PMTUDisc: true}
		ok(t, own.CreateGRE(t.Context(), "tun1000", g, 1400)) // an operator's own
		m.Plug(t, "eth1", "02:00:00:00:00:01")
		a := m.Link(t, "vpx-a", "vpx-a")
		ok(t, m.Open(t, "vpx-a").SetLinkUp(t.Context(), a.Index, false), m.Open(t, "vpx-a").SetLinkName(t.Context(), a.Index, "hidden"))

		engine.Apply(links{})
		m.Link(t, "", "tun1000")
		m.Link(t, "", "eth1")
		for _, netns := range []string{"", "vpx-a", "vpx-b"} {
			all, err := m.Open(t, netns).Links(t.Context())
			ok(t, err)
			for _, l := range all {
				if l.GRE != nil && l.GRE.Local == underlay && l.Name != "tun1000" {
					t.Errorf("%s is left in %q", l.Name, netns)
				}
			}
		}
	})
}

// A slot that is wanted under another name, or in another namespace, is freed
// first; so is one whose device changes its key with another's.
func TestLinksChangePlaces(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		want := wantedLinks(t, m)
		engine := machine.Reconcile(t, tunnel.NewLinks(m))
		engine.Apply(want)
		engine.Apply(links{
			{Netns: "vpx-b", Name: "vpx-a2"}: gre(7, "a2"),
			{Name: "vpx-b"}:                  gre(8, "b"),
		})
		engine.Apply(links{
			{Netns: "vpx-b", Name: "vpx-a2"}: gre(8, "a2"),
			{Name: "vpx-b"}:                  gre(7, "b"),
		})
		if k := m.Link(t, "vpx-b", "vpx-a2").GRE.Key; k != 8 {
			t.Errorf("key %d", k)
		}
	})
}

func TestForeignLinkInTheWayIsLeftAlone(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		want := wantedLinks(t, m)
		m.Plug(t, "vpx-plain", "02:00:00:00:00:01") // the name
		g := kernel.GRE{Local: underlay, Keyed: true, Key: 7, TTL: 64, PMTUDisc: true}
		ok(t, m.Open(t, "").CreateGRE(t.Context(), "byhand", g, 1400)) // the slot
		p := machine.Reconcile(t, tunnel.NewLinks(m)).Try(want)
		if p.Err == nil || !strings.Contains(p.Err.Error(), "vpx-plain is of type") || !errors.Is(p.Err, kernel.ErrExists) || p.Writes() != 1 {
			t.Errorf("%d writes, %v", p.Writes(), p.Err)
		}
		m.Link(t, "", "byhand")
		if l := m.Link(t, "", "vpx-plain"); l.MAC != "02:00:00:00:00:01" {
			t.Errorf("%+v", l)
		}
	})
}

// An Upsert by itself finishes a device that was made and not moved, but takes
// none that is at work, and leaves nothing behind when the move fails.
func TestHalfMadeLink(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		want := wantedLinks(t, m)
		k := desired.LinkKey{Netns: "vpx-a", Name: "vpx-a"}
		kind, own := tunnel.NewLinks(m), m.Open(t, "")
		g := kernel.GRE{Local: underlay, Keyed: true, Key: 7, TTL: 64, PMTUDisc: true}
		ok(t, own.CreateGRE(t.Context(), k.Name, g, 1400))
		index := m.Link(t, "", k.Name).Index
		ok(t, own.SetLinkUp(t.Context(), index, true))
		if err := kind.Upsert(t.Context(), k, want[k]); !errors.Is(err, kernel.ErrExists) {
			t.Errorf("a device that is up: %v", err)
		}
		ok(t, own.SetLinkUp(t.Context(), index, false))
		other := want[k]
		other.TTL = 32
		if err := kind.Upsert(t.Context(), k, other); !errors.Is(err, kernel.ErrExists) {
			t.Errorf("a device that does not fit: %v", err)
		}
		ok(t, kind.Upsert(t.Context(), k, want[k]))
		if l := m.Link(t, k.Netns, k.Name); !l.Up || l.Alias != want[k].Alias {
			t.Errorf("%+v", l)
		}
		ok(t, kind.Delete(t.Context(), k, want[k]))
		if m.Fake == nil {
			return
		}
		injected := errors.New("injected")
		m.Fake.Fail("MoveLink", 1, injected)
		if err := kind.Upsert(t.Context(), k, want[k]); !errors.Is(err, injected) {
			t.Errorf("got %v", err)
		}
		if _, err := own.LinkByName(t.Context(), k.Name); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("something is left: %v", err)
		}
	})
}

func TestDeletingAnAbsentLinkSucceeds(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		kind := tunnel.NewLinks(m)
		m.Plug(t, "vpx-x", mac1) // not a tunnel: not ours
		ok(t, kind.Delete(t.Context(), desired.LinkKey{Name: "vpx-x"}, desired.Link{}))
		m.Link(t, "", "vpx-x")
		ok(t, kind.Delete(t.Context(), desired.LinkKey{Name: "vpx-a"}, desired.Link{}))
		ok(t, kind.Delete(t.Context(), desired.LinkKey{Netns: "vpx-a", Name: "vpx-a"}, desired.Link{}))
	})
}
