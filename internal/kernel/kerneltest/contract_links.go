package kerneltest

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

var linkContract = map[string]func(*testing.T, *machine){
	"a GRE device reads back": func(t *testing.T, m *machine) {
		tests := map[string]kernel.GRE{
			"vpx-keyed":   {Local: underlay, Keyed: true, Key: 0xfffffffe, TTL: 64, PMTUDisc: true},
			"vpx-key0":    {Local: underlay, Keyed: true, TTL: 255, PMTUDisc: true},
			"vpx-unkeyed": {Local: underlay, TTL: 64, PMTUDisc: true},
		}
		for name, want := range tests {
			m.ok(m.own.CreateGRE(t.Context(), name, want, 1400))
			l := m.link(m.own, name)
			if l.GRE == nil || *l.GRE != want {
				t.Errorf("%s: got %+v, want %+v", name, l.GRE, want)
			}
			l.GRE = nil
			if want := (kernel.Link{Index: l.Index, Name: name, Type: "gre", MTU: 1400, NoARP: true}); l != want {
				t.Errorf("%s: got %+v, want %+v", name, l, want)
			}
		}
	},
	"counters": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		stats, err := m.own.LinkStats(t.Context())
		m.ok(err)
		links, err := m.own.Links(t.Context())
		m.ok(err)
		if len(stats) != len(links) {
			t.Errorf("counters of %d links, but %d links", len(stats), len(links))
		}
		// IPv6 of the link itself may have sent something.
		if s, ok := stats[l.Index]; !ok || s.RxBytes != 0 || s.RxPackets != 0 || s.RxErrors != 0 {
			t.Errorf("a new link has received %+v", s)
		}
	},
	"names follow every change": func(t *testing.T, m *machine) {
		ctx := t.Context()
		other := m.namespace("vpx-a")
		step := func(what string, errs ...error) {
			t.Helper()
			m.allOK(errs)
			for _, h := range []kernel.Handle{m.own, other, m.own} { // the second time as remembered
				if got, want := m.linkNames(h), m.listedNames(h); !reflect.DeepEqual(got, want) {
					t.Fatalf("%s: got %v, want %v", what, got, want)
				}
			}
		}
		step("at the beginning")
		one, two := m.tunnel(m.own, "vpx-1", 1).Index, m.tunnel(m.own, "vpx-2", 2).Index
		step("made")
		step("renamed", m.own.SetLinkUp(ctx, one, false), m.own.SetLinkName(ctx, one, "vpx-3"))
		step("the name goes to another", m.own.SetLinkUp(ctx, two, false), m.own.SetLinkName(ctx, two, "vpx-1"))
		step("they change places", m.own.SetLinkName(ctx, two, "vpx-4"), m.own.SetLinkName(ctx, one, "vpx-1"), m.own.SetLinkName(ctx, two, "vpx-3"))
		step("nothing of the name", m.own.SetLinkMTU(ctx, one, 1300), m.own.SetLinkUp(ctx, two, true))
		step("deleted", m.own.DeleteLink(ctx, one))
		m.tunnel(m.own, "vpx-1", 1)
		step("made again")
		step("moved away", m.own.MoveLink(ctx, two, "vpx-a"))
		step("renamed there", other.SetLinkName(ctx, m.link(other, "vpx-3").Index, "vpx-5"))
		step("moved back", other.MoveLink(ctx, m.link(other, "vpx-5").Index, ""))
		m.ok(m.host.DeleteNamespace(ctx, "vpx-a"))
		_, err := other.LinkNames(ctx)
		m.is(err, kernel.ErrNotFound)
	},
	"names and keys are unique": func(t *testing.T, m *machine) {
		ctx := t.Context()
		m.namespace("vpx-a")
		l := m.tunnel(m.own, "vpx-1", 7)
		other := kernel.GRE{Local: underlay, Keyed: true, Key: 8}
		same := kernel.GRE{Local: underlay, Keyed: true, Key: 7}
		m.is(m.own.CreateGRE(ctx, "vpx-1", other, 0), kernel.ErrExists)
		m.is(m.own.CreateGRE(ctx, "vpx-2", same, 0), kernel.ErrExists)
		m.ok(m.own.MoveLink(ctx, l.Index, "vpx-a"))
		m.is(m.own.CreateGRE(ctx, "vpx-2", same, 0), kernel.ErrExists)
		m.ok(m.own.CreateGRE(ctx, "vpx-1", other, 0))
		same.Local = netip.MustParseAddr("192.0.2.99")
		m.ok(m.own.CreateGRE(ctx, "vpx-2", same, 0))
		m.fails(m.own.CreateGRE(ctx, "vpx-3", kernel.GRE{}, 0))
		m.fails(m.own.CreateGRE(ctx, "vpx-3", kernel.GRE{Local: netip.MustParseAddr("2001:db8::1")}, 0))
	},
	"set": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		m.tunnel(m.own, "vpx-2", 8)
		m.ok(m.own.SetLinkUp(ctx, l.Index, false))
		m.is(m.own.SetLinkName(ctx, l.Index, "vpx-2"), kernel.ErrExists)
		for range 2 {
			m.ok(m.own.SetLinkName(ctx, l.Index, "vpx-3"))
			m.ok(m.own.SetLinkMTU(ctx, l.Index, 1300))
			m.ok(m.own.SetLinkAlias(ctx, l.Index, "db of alice"))
			m.ok(m.own.SetLinkUp(ctx, l.Index, true))
			m.ok(m.own.SetLinkUp(ctx, l.Index, false))
		}
		got := m.link(m.own, "vpx-3")
		if got.MTU != 1300 || got.Alias != "db of alice" || got.Up || got.Index != l.Index {
			t.Fatalf("got %+v", got)
		}
	},
	"an absent link": func(t *testing.T, m *machine) {
		ctx := t.Context()
		const absent = 4711
		_, err := m.own.LinkByName(ctx, "vpx-absent")
		m.is(err, kernel.ErrNotFound)
		m.ok(m.own.DeleteLink(ctx, absent))
		m.is(m.own.SetLinkName(ctx, absent, "vpx-1"), kernel.ErrNotFound)
		m.is(m.own.SetLinkMTU(ctx, absent, 1400), kernel.ErrNotFound)
		m.is(m.own.SetLinkAlias(ctx, absent, "x"), kernel.ErrNotFound)
		m.is(m.own.SetLinkUp(ctx, absent, true), kernel.ErrNotFound)
		m.namespace("vpx-a")
		m.is(m.own.MoveLink(ctx, absent, "vpx-a"), kernel.ErrNotFound)
		l := m.tunnel(m.own, "vpx-1", 1)
		m.is(m.own.MoveLink(ctx, l.Index, "vpx-absent"), kernel.ErrNotFound)
		m.ok(m.own.DeleteLink(ctx, l.Index))
		m.ok(m.own.DeleteLink(ctx, l.Index))
	},
	"a move takes the link alone": func(t *testing.T, m *machine) {
		ctx := t.Context()
		to := m.namespace("vpx-a")
		l := m.tunnel(m.own, "vpx-1", 7)
		m.ok(m.own.SetLinkAlias(ctx, l.Index, "db of alice"))
		m.furnish(m.own, l.Index)
		m.ok(m.own.MoveLink(ctx, l.Index, "")) // where it is
		if got, want := m.furniture(m.own, l.Index), (furniture{true, true, true, true, true}); got != want {
			t.Fatalf("after no move: %+v", got)
		}
		m.ok(m.own.MoveLink(ctx, l.Index, "vpx-a"))
		moved := m.link(to, "vpx-1")
		if moved.Up || moved.Alias != "db of alice" || moved.MTU != 1400 || moved.GRE == nil || *moved.GRE != *l.GRE {
			t.Fatalf("got %+v", moved)
		}
		if got := m.furniture(m.own, l.Index); got != (furniture{}) {
			t.Fatalf("left behind: %+v", got)
		}
		if got := m.furniture(to, moved.Index); got != (furniture{}) {
			t.Fatalf("taken along: %+v", got)
		}
		m.tunnel(m.own, "vpx-1", 8)
		m.is(to.MoveLink(ctx, moved.Index, ""), kernel.ErrExists)
		m.ok(to.SetLinkName(ctx, moved.Index, "vpx-2"))
		m.ok(to.MoveLink(ctx, moved.Index, ""))
		m.link(m.own, "vpx-2")
	},
	"down drops what hangs on it": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		m.furnish(m.own, l.Index)
		m.ok(m.own.SetLinkUp(t.Context(), l.Index, false))
		want := furniture{v4: true, guard: true}
		if got := m.furniture(m.own, l.Index); got != want {
			t.Fatalf("down: got %+v, want %+v", got, want)
		}
		m.ok(m.own.SetLinkUp(t.Context(), l.Index, true))
		if got := m.furniture(m.own, l.Index); got != want {
			t.Fatalf("up: got %+v, want %+v", got, want)
		}
	},
	"deletion drops all": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		m.furnish(m.own, l.Index)
		m.ok(m.own.DeleteLink(t.Context(), l.Index))
		if got := m.furniture(m.own, l.Index); got != (furniture{}) {
			t.Fatalf("got %+v", got)
		}
		m.tunnel(m.own, "vpx-1", 7)
	},
}

var addressContract = map[string]func(*testing.T, *machine){
	"add and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		for _, p := range []string{"100.64.0.1/32", "100.64.0.1/16", "169.254.7.7/30", "fd00::1/64"} {
			a := kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix(p), Protocol: 176}
			find := func() (found []kernel.Address) {
				all, err := m.own.Addresses(ctx)
				m.ok(err)
				for _, have := range all {
					if have.Prefix == a.Prefix {
						found = append(found, have)
					}
				}
				return found
			}
			for range 2 {
				m.ok(m.own.AddAddress(ctx, a))
			}
			want := a
			want.LinkLocal = p == "169.254.7.7/30"
			if got := find(); len(got) != 1 || got[0] != want {
				t.Errorf("%s: got %+v, want %+v", p, got, want)
			}
			for range 2 {
				m.ok(m.own.DeleteAddress(ctx, a))
			}
			if got := find(); len(got) != 0 {
				t.Errorf("%s: got %+v after deletion", p, got)
			}
		}
	},
	"an absent link": func(t *testing.T, m *machine) {
		a := kernel.Address{Link: 4711, Prefix: netip.MustParsePrefix("100.64.0.1/32")}
		m.is(m.own.AddAddress(t.Context(), a), kernel.ErrNotFound)
		m.ok(m.own.DeleteAddress(t.Context(), a))
		m.fails(m.own.AddAddress(t.Context(), kernel.Address{Link: 1}))
	},
	"routes go with their source": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		a := kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix("100.64.0.1/32")}
		r := route(l.Index, 1000, "172.16.101.0/24", 0)
		r.Source = a.Prefix.Addr()
		m.fails(m.own.ReplaceRoutes(ctx, []kernel.Route{r})[0])
		m.ok(m.own.AddAddress(ctx, a))
		m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
		m.ok(m.own.DeleteAddress(ctx, a))
		if got := m.routes(kernel.RouteFilter{Table: 1000}); len(got) != 0 {
			t.Fatalf("got %v", got)
		}
	},
}
