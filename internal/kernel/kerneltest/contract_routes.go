package kerneltest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const ours, theirs = 176, 4 // 4 is RTPROT_STATIC

// route is one of ours, through a neighbor of a tunnel.
func route(link int, table uint32, dst string, metric uint32) kernel.Route {
	r := kernel.Route{
		Table: table, Dst: netip.MustParsePrefix(dst), Metric: metric, Type: kernel.RouteUnicast,
		Link: link, Via: netip.MustParseAddr("100.64.0.2"), Onlink: true, Protocol: ours,
	}
	if r.Dst.Addr().Is6() {
		r.Via = netip.MustParseAddr("fd00::2")
	}
	return r
}

func (m *machine) routes(f kernel.RouteFilter) []kernel.Route {
	m.Helper()
	all, err := m.own.Routes(m.Context(), f)
	m.ok(err)
	return all
}

// hold wants exactly these routes in tables 1000 and 1001.
func (m *machine) hold(want ...kernel.Route) {
	m.Helper()
	got := append(m.routes(kernel.RouteFilter{Table: 1000}), m.routes(kernel.RouteFilter{Table: 1001})...)
	compare := func(a, b kernel.Route) int {
		if a.String() < b.String() {
			return -1
		}
		return 1
	}
	slices.SortFunc(got, compare)
	slices.SortFunc(want, compare)
	if !slices.Equal(got, want) {
		m.Fatalf("got\n%+v, want\n%+v", got, want)
	}
}

var routeContract = map[string]func(*testing.T, *machine){
	"replace and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		other := m.tunnel(m.own, "vpx-2", 8)
		for _, dst := range []string{"172.16.101.0/24", "0.0.0.0/0", "172.16.101.5/32", "fd01::/64", "::/0"} {
			r := route(l.Index, 1000, dst, 10)
			for range 2 {
				m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
				m.hold(r)
			}
			r.Link = other.Index
			m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
			m.hold(r)
			r.Type, r.Link, r.Via, r.Onlink = kernel.RouteUnreachable, 0, netip.Addr{}, false
			m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
			m.hold(r)
			for range 2 {
				m.allOK(m.own.DeleteRoutes(ctx, []kernel.Route{r}))
				m.hold()
			}
		}
	},
	"on the link": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		r := route(l.Index, 1000, "172.16.101.0/24", 0)
		r.Via, r.Onlink = netip.Addr{}, false
		m.allOK(m.own.ReplaceRoutes(t.Context(), []kernel.Route{r}))
		r.Scope = 253 // as the kernel wants it
		m.hold(r)
		m.allOK(m.own.ReplaceRoutes(t.Context(), []kernel.Route{r}))
		m.hold(r)
	},
	"a metric is part of the key": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		zero, ten := route(l.Index, 1000, "172.16.101.0/24", 0), route(l.Index, 1000, "172.16.101.0/24", 10)
		m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{ten, zero}))
		m.hold(zero, ten)
		for range 2 {
			m.allOK(m.own.DeleteRoutes(ctx, []kernel.Route{zero}))
			m.hold(ten)
		}
	},
	"someone else's route stays": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		for _, dst := range []string{"172.16.101.0/24", "fd01::/64"} {
			foreign := route(l.Index, 1000, dst, 10)
			foreign.Protocol = theirs
			m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{foreign}))
			mine, free := route(l.Index, 1000, dst, 10), route(l.Index, 1001, dst, 10)
			errs := m.own.ReplaceRoutes(ctx, []kernel.Route{mine, free})
			m.is(errs[0], kernel.ErrForeign)
			m.ok(errs[1])
			m.hold(foreign, free)
			m.allOK(m.own.DeleteRoutes(ctx, []kernel.Route{mine, free}))
			m.hold(foreign)
			m.allOK(m.own.DeleteRoutes(ctx, []kernel.Route{foreign}))
		}
	},
	"filters": func(t *testing.T, m *machine) {
		l := m.tunnel(m.own, "vpx-1", 7)
		other := m.tunnel(m.own, "vpx-2", 8)
		a := route(l.Index, 1000, "172.16.101.0/24", 0)
		b := route(other.Index, 1001, "172.16.101.0/24", 0)
		c := route(other.Index, 1001, "fd01::/64", 10)
		c.Protocol = theirs
		m.allOK(m.own.ReplaceRoutes(t.Context(), []kernel.Route{a, b, c}))
		for filter, want := range map[kernel.RouteFilter][]kernel.Route{
			{Table: 1001}:                    {b, c},
			{Table: 1002}:                    nil,
			{Protocol: ours}:                 {a, b},
			{Link: other.Index, Table: 1001}: {b, c},
			{Link: l.Index, Protocol: ours}:  {a},
			{Link: 4711}:                     nil,
		} {
			if got := m.routes(filter); !slices.Equal(got, want) {
				t.Errorf("%+v: got %v, want %v", filter, got, want)
			}
		}
		all := m.routes(kernel.RouteFilter{})
		for _, want := range []kernel.Route{a, b, c} {
			if !slices.Contains(all, want) {
				t.Errorf("%v is not listed without a filter", want)
			}
		}
	},
	"refused": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		good := func() kernel.Route { return route(l.Index, 1000, "172.16.101.0/24", 0) }
		tests := map[string]func(*kernel.Route){
			"host bits":            func(r *kernel.Route) { r.Dst = netip.MustParsePrefix("172.16.101.1/24") },
			"no destination":       func(r *kernel.Route) { r.Dst = netip.Prefix{} },
			"no table":             func(r *kernel.Route) { r.Table = 0 },
			"no protocol":          func(r *kernel.Route) { r.Protocol = 0 },
			"IPv6 without metric":  func(r *kernel.Route) { *r = route(l.Index, 1000, "fd01::/64", 0) },
			"next hop not on link": func(r *kernel.Route) { r.Onlink = false },
			"absent link":          func(r *kernel.Route) { r.Link = 4711 },
			"multipath":            func(r *kernel.Route) { r.Multipath = true },
		}
		for name, spoil := range tests {
			r := good()
			spoil(&r)
			if errs := m.own.ReplaceRoutes(ctx, []kernel.Route{r, good()}); errs[0] == nil || errs[1] != nil {
				t.Errorf("%s: got %v", name, errs)
			}
		}
		m.hold(good())
		m.ok(m.own.SetLinkUp(ctx, l.Index, false))
		m.fails(m.own.ReplaceRoutes(ctx, []kernel.Route{good()})[0])
	},
	"a next hop on the link": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		m.ok(m.own.AddAddress(ctx, kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix("100.64.0.1/24")}))
		r := route(0, 1000, "172.16.101.0/24", 0)
		r.Onlink = false
		m.allOK(m.own.ReplaceRoutes(ctx, []kernel.Route{r}))
		r.Link = l.Index
		m.hold(r)
	},
}
