package kerneltest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

var namespaceContract = map[string]func(*testing.T, *machine){
	"create and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		for range 2 {
			m.ok(m.host.CreateNamespace(ctx, "vpx-b"))
		}
		m.ok(m.host.CreateNamespace(ctx, "vpx-a"))
		names, err := m.host.Namespaces(ctx)
		m.ok(err)
		if want := []string{"vpx-a", "vpx-b"}; !slices.Equal(names, want) {
			t.Fatalf("got %v, want %v", names, want)
		}
		for range 2 {
			m.ok(m.host.DeleteNamespace(ctx, "vpx-b"))
		}
		_, err = m.host.In("vpx-b")
		m.is(err, kernel.ErrNotFound)
		names, err = m.host.Namespaces(ctx)
		m.ok(err)
		if want := []string{"vpx-a"}; !slices.Equal(names, want) {
			t.Fatalf("got %v, want %v", names, want)
		}
	},
	"a new one has lo up and does not forward": func(t *testing.T, m *machine) {
		// What a new namespace may inherit.
		m.ok(m.own.SetSysctl(t.Context(), "net/ipv4/ip_forward", "1"))
		h := m.namespace("vpx-a")
		if lo := m.link(h, "lo"); !lo.Up || lo.Type != "" || lo.MAC != "" {
			t.Fatalf("got %+v, want lo, up", lo)
		}
		for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if value, err := h.Sysctl(t.Context(), name); err != nil || value != "0" {
				t.Fatalf("%s is %q, %v, want 0", name, value, err)
			}
		}
	},
	"names": func(t *testing.T, m *machine) {
		m.fails(m.host.CreateNamespace(t.Context(), ""))
		_, err := m.host.In("vpx-absent")
		m.is(err, kernel.ErrNotFound)
		m.is(m.host.Run(t.Context(), "vpx-absent", func() error { return nil }), kernel.ErrNotFound)
		_, err = m.host.Watch(t.Context(), "vpx-absent")
		m.is(err, kernel.ErrNotFound)
	},
	"a handle stays with its namespace": func(t *testing.T, m *machine) {
		ctx := t.Context()
		before := m.namespace("vpx-a")
		m.tunnel(before, "vpx-1", 1)
		m.ok(m.host.DeleteNamespace(ctx, "vpx-a"))
		after := m.namespace("vpx-a")
		_, err := before.Links(ctx)
		m.is(err, kernel.ErrNotFound)
		m.is(before.SetSysctl(ctx, "net/ipv4/ip_forward", "1"), kernel.ErrNotFound)
		m.is(before.ReplaceRoutes(ctx, []kernel.Route{route(1, 1000, "172.16.101.0/24", 0)})[0], kernel.ErrNotFound)
		_, err = after.LinkByName(ctx, "vpx-1")
		m.is(err, kernel.ErrNotFound)
	},
	"deleting frees a tunnel's key at once": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		l := m.tunnel(m.own, "vpx-1", 7)
		m.ok(m.own.MoveLink(t.Context(), l.Index, "vpx-a"))
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-a"))
		m.tunnel(m.own, "vpx-2", 7)
	},
	"a tunnel ends with its underlay": func(t *testing.T, m *machine) {
		under, over := m.namespace("vpx-a"), m.namespace("vpx-b")
		l := m.tunnel(under, "vpx-1", 7)
		m.ok(under.MoveLink(t.Context(), l.Index, "vpx-b"))
		m.link(over, "vpx-1")
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-a"))
		m.eventually("the tunnel is gone", func() bool {
			_, err := over.LinkByName(t.Context(), "vpx-1")
			return errors.Is(err, kernel.ErrNotFound)
		})
	},
	"run": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		want := errors.New("from inside")
		m.is(m.host.Run(t.Context(), "vpx-a", func() error { return want }), want)
	},
	"a context that has ended writes nothing": func(t *testing.T, m *machine) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		m.is(m.host.CreateNamespace(ctx, "vpx-a"), context.Canceled)
		m.is(m.own.AddRules(ctx, []kernel.Rule{mark(1, 1000)})[0], context.Canceled)
		_, err := m.own.Links(ctx)
		m.is(err, context.Canceled)
		names, err := m.host.Namespaces(t.Context())
		m.ok(err)
		rules, err := m.own.Rules(t.Context())
		m.ok(err)
		if len(names) > 0 || slices.Contains(rules, mark(1, 1000)) {
			t.Fatalf("got namespaces %v, rules %v", names, rules)
		}
	},
	"closing": func(t *testing.T, m *machine) {
		h := m.namespace("vpx-a")
		hints, err := m.host.Watch(t.Context(), "vpx-a")
		m.ok(err)
		for range 2 {
			m.ok(m.host.Close())
		}
		m.eventually("the watch ends", func() bool { return closed(hints) })
		_, err = m.host.In("vpx-a")
		m.fails(err)
		_, err = h.Links(t.Context())
		m.fails(err)
	},
}
