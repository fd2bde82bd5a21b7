package kerneltest

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

var sysctlContract = map[string]func(*testing.T, *machine){
	"each namespace has its own": func(t *testing.T, m *machine) {
		ctx := t.Context()
		const name = "net/ipv4/ip_forward"
		h := m.namespace("vpx-a")
		m.ok(h.SetSysctl(ctx, name, "1"))
		m.ok(m.own.SetSysctl(ctx, name, "0"))
		for handle, want := range map[kernel.Handle]string{h: "1", m.own: "0"} {
			if got, err := handle.Sysctl(ctx, name); err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
	},
	"of a link": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1.2", 7) // a dot is no separator
		for _, name := range []string{"net/ipv4/conf/vpx-1.2/rp_filter", "net/ipv6/conf/vpx-1.2/disable_ipv6", "net/ipv4/neigh/vpx-1.2/app_solicit"} {
			for _, want := range []string{"1", "0"} {
				m.ok(m.own.SetSysctl(ctx, name, want))
				if got, err := m.own.Sysctl(ctx, name); err != nil || got != want {
					t.Fatalf("%s: got %q, %v, want %q", name, got, err, want)
				}
			}
		}
		m.ok(m.own.SetSysctl(ctx, "net/ipv4/ip_forward", "1"))
		if got, err := m.own.Sysctl(ctx, "net/ipv4/conf/vpx-1.2/forwarding"); err != nil || got != "1" {
			t.Fatalf("forwarding: got %q, %v", got, err)
		}
		m.ok(m.own.DeleteLink(ctx, l.Index))
		_, err := m.own.Sysctl(ctx, "net/ipv4/conf/vpx-1.2/rp_filter")
		m.is(err, kernel.ErrNotFound)
	},
	"many": func(t *testing.T, m *machine) {
		ctx := t.Context()
		h := m.namespace("vpx-a")
		m.tunnel(h, "vpx-1", 7)
		m.ok(h.SetSysctl(ctx, "net/ipv4/ip_forward", "1"))
		m.ok(h.SetSysctl(ctx, "net/ipv4/conf/vpx-1/rp_filter", "2"))
		got, err := h.Sysctls(ctx, []string{"net/ipv4/ip_forward", "net/ipv4/conf/vpx-1/rp_filter", "net/ipv4/conf/vpx-2/rp_filter"})
		want := map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/vpx-1/rp_filter": "2"}
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		_, err = h.Sysctls(ctx, []string{"net/ipv4/ip_forward", "kernel/hostname"})
		m.fails(err)
	},
	"many, again": func(t *testing.T, m *machine) {
		ctx := t.Context()
		h := m.namespace("vpx-a")
		l := m.tunnel(h, "vpx-1", 7)
		m.tunnel(h, "vpx-2", 8)
		names := []string{"net/ipv4/conf/vpx-1/rp_filter", "net/ipv4/conf/vpx-2/rp_filter", "net/ipv4/conf/vpx-3/rp_filter"}
		expect := func(when string, want map[string]string) {
			t.Helper()
			for range 2 {
				if got, err := h.Sysctls(ctx, names); err != nil || !maps.Equal(got, want) {
					t.Errorf("%s: got %v, %v, want %v", when, got, err, want)
				}
			}
		}
		m.ok(h.SetSysctl(ctx, names[0], "2"))
		m.ok(h.SetSysctl(ctx, names[1], "0"))
		expect("at first", map[string]string{names[0]: "2", names[1]: "0"})
		m.ok(h.SetSysctl(ctx, names[0], "1"))
		expect("changed", map[string]string{names[0]: "1", names[1]: "0"})
		m.ok(h.SetLinkUp(ctx, l.Index, false))
		m.ok(h.SetLinkName(ctx, l.Index, "vpx-3"))
		expect("with the device renamed", map[string]string{names[1]: "0", names[2]: "1"})
		m.ok(h.DeleteLink(ctx, l.Index))
		expect("with the device deleted", map[string]string{names[1]: "0"})
		m.tunnel(h, "vpx-1", 7)
		m.ok(h.SetSysctl(ctx, names[0], "2"))
		expect("with another device of the name", map[string]string{names[0]: "2", names[1]: "0"})
	},
	"absent": func(t *testing.T, m *machine) {
		_, err := m.own.Sysctl(t.Context(), "net/ipv4/absent")
		m.is(err, kernel.ErrNotFound)
		m.is(m.own.SetSysctl(t.Context(), "net/ipv4/absent", "1"), kernel.ErrNotFound)
		for _, name := range []string{"kernel/hostname", "net/../kernel/hostname", "net.ipv4.ip_forward", ""} {
			_, err := m.own.Sysctl(t.Context(), name)
			m.fails(err)
			m.fails(m.own.SetSysctl(t.Context(), name, "1"))
		}
	},
}

func addrs(all ...string) []netip.Addr {
	parsed := make([]netip.Addr, len(all))
	for i, a := range all {
		parsed[i] = netip.MustParseAddr(a)
	}
	return parsed
}

var egressContract = map[string]func(*testing.T, *machine){
	"set and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		_, err := m.own.EgressSources(ctx, l.Index)
		m.is(err, kernel.ErrNotFound)
		_, err = m.own.EgressDrops(ctx, l.Index)
		m.is(err, kernel.ErrNotFound)
		for _, sources := range [][]netip.Addr{
			addrs("172.16.101.100"),
			addrs("172.16.101.100"),
			addrs("172.16.101.9", "172.16.101.100", "fd00::1", "fd00::2"),
			addrs("172.16.101.9", "fd00::2"),
			addrs("0.0.0.1", "255.255.255.254", "ff02::fb"),
			addrs("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
			nil,
		} {
			m.ok(m.own.SetEgressSources(ctx, l.Index, sources))
			if got, err := m.own.EgressSources(ctx, l.Index); err != nil || !slices.Equal(got, sources) {
				t.Fatalf("got %v, %v, want %v", got, err, sources)
			}
		}
		if drops, err := m.own.EgressDrops(ctx, l.Index); err != nil || drops != 0 {
			t.Fatalf("got %d drops, %v", drops, err)
		}
		for range 2 {
			m.ok(m.own.DeleteEgressGuard(ctx, l.Index))
		}
		_, err = m.own.EgressSources(ctx, l.Index)
		m.is(err, kernel.ErrNotFound)
	},
	"any order, and twice": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		m.ok(m.own.SetEgressSources(t.Context(), l.Index, addrs("fd00::1", "192.0.2.9", "192.0.2.10", "192.0.2.9")))
		if got, err := m.own.EgressSources(t.Context(), l.Index); err != nil || !slices.Equal(got, addrs("192.0.2.9", "192.0.2.10", "fd00::1")) {
			t.Fatalf("got %v, %v", got, err)
		}
	},
	"refused": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		m.is(m.own.SetEgressSources(ctx, 4711, nil), kernel.ErrNotFound)
		m.ok(m.own.DeleteEgressGuard(ctx, 4711))
		for _, bad := range []netip.Addr{{}, netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")} {
			m.fails(m.own.SetEgressSources(ctx, l.Index, []netip.Addr{bad}))
		}
		_, err := m.own.EgressSources(ctx, l.Index)
		m.is(err, kernel.ErrNotFound)
	},
}
