package kernel_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// load is what a busy function host holds: 5,000 neighbors, and 1,000 attachments
// with a route and a rule each.
type load struct {
	neighbors []kernel.Neighbor
	routes    []kernel.Route
	rules     []kernel.Rule
}

func newLoad(link int) load {
	l := load{
		neighbors: make([]kernel.Neighbor, 5000),
		routes:    make([]kernel.Route, 1000),
		rules:     make([]kernel.Rule, 1000),
	}
	for i := range l.neighbors {
		high, low := byte(i>>8), byte(i)
		l.neighbors[i] = kernel.Neighbor{
			Link: link,
			Addr: netip.AddrFrom4([4]byte{100, 64, high, low}),
			NBMA: netip.AddrFrom4([4]byte{192, 168, high, low}),
		}
	}
	for i := range l.routes {
		table := uint32(10000 + i)
		l.routes[i] = kernel.Route{
			Table: table, Dst: netip.MustParsePrefix("172.16.101.0/24"), Type: kernel.RouteUnicast,
			Link: link, Via: l.neighbors[i].Addr, Onlink: true, Protocol: 176,
		}
		l.rules[i] = kernel.Rule{Priority: 1000, Mark: uint32(i+1) << 8, Mask: 0xffff00, Table: table, Protocol: 176}
	}
	return l
}

func busyMachine(b *testing.B) (kernel.Handle, load) {
	b.Helper()
	lab.Require(b, lab.GRE)
	h, err := newMachine(b).In("")
	if err != nil {
		b.Fatal(err)
	}
	if err := h.CreateGRE(b.Context(), "vpx-1", kernel.GRE{Local: netip.MustParseAddr("192.0.2.1"), Keyed: true, Key: 7}, 1400); err != nil {
		b.Fatal(err)
	}
	link, err := h.LinkByName(b.Context(), "vpx-1")
	if err != nil {
		b.Fatal(err)
	}
	if err := h.SetLinkUp(b.Context(), link.Index, true); err != nil {
		b.Fatal(err)
	}
	return h, newLoad(link.Index)
}

// BenchmarkProgram writes to an empty kernel; removing is not in the time.
func BenchmarkProgram(b *testing.B) {
	h, l := busyMachine(b)
	ctx := b.Context()
	for b.Loop() {
		errs := h.ReplaceNeighbors(ctx, l.neighbors)
		errs = append(errs, h.ReplaceRoutes(ctx, l.routes)...)
		errs = append(errs, h.AddRules(ctx, l.rules)...)
		b.StopTimer()
		errs = append(errs, h.DeleteRules(ctx, l.rules)...)
		errs = append(errs, h.DeleteRoutes(ctx, l.routes)...)
		errs = append(errs, h.DeleteNeighbors(ctx, l.neighbors)...)
		if err := errors.Join(errs...); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkList lists what a reconcile compares with.
func BenchmarkList(b *testing.B) {
	h, l := busyMachine(b)
	ctx := b.Context()
	errs := h.ReplaceNeighbors(ctx, l.neighbors)
	errs = append(errs, h.ReplaceRoutes(ctx, l.routes)...)
	errs = append(errs, h.AddRules(ctx, l.rules)...)
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		neighbors, err1 := h.Neighbors(ctx)
		routes, err2 := h.Routes(ctx, kernel.RouteFilter{Protocol: 176})
		rules, err3 := h.Rules(ctx)
		if err := errors.Join(err1, err2, err3); err != nil {
			b.Fatal(err)
		}
		if len(neighbors) != len(l.neighbors) || len(routes) != len(l.routes) || len(rules) < len(l.rules) {
			b.Fatalf("listed %d neighbors, %d routes, %d rules", len(neighbors), len(routes), len(rules))
		}
	}
}

// BenchmarkNamespace makes a namespace, opens it and deletes it.
func BenchmarkNamespace(b *testing.B) {
	lab.Require(b)
	host, ctx := newMachine(b), b.Context()
	for b.Loop() {
		err := host.CreateNamespace(ctx, "vpx-1")
		_, err2 := host.In("vpx-1")
		if err := errors.Join(err, err2, host.DeleteNamespace(ctx, "vpx-1")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSysctl reads a parameter of another namespace.
func BenchmarkSysctl(b *testing.B) {
	lab.Require(b)
	h, err := newMachine(b).In("")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := h.Sysctl(b.Context(), "net/ipv4/ip_forward"); err != nil {
			b.Fatal(err)
		}
	}
}
