package kerneltest

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Contract is what every kernel.Host promises. newHost returns a machine of its own,
// fresh and with a network namespace in which nothing but lo exists.
func Contract(t *testing.T, newHost func(*testing.T) kernel.Host) {
	groups := map[string]map[string]func(*testing.T, *machine){
		"namespaces": namespaceContract,
		"links":      linkContract,
		"addresses":  addressContract,
		"neighbors":  neighborContract,
		"nexthops":   nexthopContract,
		"routes":     routeContract,
		"rules":      ruleContract,
		"sysctls":    sysctlContract,
		"egress":     egressContract,
		"watch":      watchContract,
	}
	for group, tests := range groups {
		for name, test := range tests {
			t.Run(group+"/"+name, func(t *testing.T) {
				host := newHost(t)
				own, err := host.In("")
				if err != nil {
					t.Fatal(err)
				}
				test(t, &machine{T: t, host: host, own: own})
			})
		}
	}
}

// machine is what a test of the contract works on.
type machine struct {
	*testing.T
	host kernel.Host
	own  kernel.Handle
}

func (m *machine) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// allOK checks the errors of a batch.
func (m *machine) allOK(errs []error) {
	m.Helper()
	m.ok(errors.Join(errs...))
}

func (m *machine) is(err, target error) {
	m.Helper()
	if !errors.Is(err, target) {
		m.Fatalf("got %v, want %v", err, target)
	}
}

// fails wants an error, whichever.
func (m *machine) fails(err error) {
	m.Helper()
	if err == nil {
		m.Fatal("want an error")
	}
}

// namespace makes a network namespace and opens it.
func (m *machine) namespace(name string) kernel.Handle {
	m.Helper()
	m.ok(m.host.CreateNamespace(m.Context(), name))
	h, err := m.host.In(name)
	m.ok(err)
	return h
}

var underlay = netip.MustParseAddr("192.0.2.1")

// tunnel makes a GRE device with the given key and brings it up.
func (m *machine) tunnel(h kernel.Handle, name string, key uint32) kernel.Link {
	m.Helper()
	m.ok(h.CreateGRE(m.Context(), name, kernel.GRE{Local: underlay, Keyed: true, Key: key, TTL: 64, PMTUDisc: true}, 1400))
	l := m.link(h, name)
	m.ok(h.SetLinkUp(m.Context(), l.Index, true))
	return m.link(h, name)
}

func (m *machine) link(h kernel.Handle, name string) kernel.Link {
	m.Helper()
	l, err := h.LinkByName(m.Context(), name)
	m.ok(err)
	return l
}

func (m *machine) linkNames(h kernel.Handle) kernel.LinkNames {
	m.Helper()
	names, err := h.LinkNames(m.Context())
	m.ok(err)
	return names
}

// listedNames is what linkNames must be.
func (m *machine) listedNames(h kernel.Handle) kernel.LinkNames {
	m.Helper()
	links, err := h.Links(m.Context())
	m.ok(err)
	names := kernel.LinkNames{ByIndex: map[int]string{}, ByName: map[string]int{}}
	for _, l := range links {
		names.ByIndex[l.Index], names.ByName[l.Name] = l.Name, l.Index
	}
	return names
}

// eventually polls for what the kernel does in its own time.
func (m *machine) eventually(what string, f func() bool) {
	m.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
	defer cancel()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.Fatalf("waited in vain: %s", what)
		}
	}
}

// furnish puts one object of each sort on a link.
func (m *machine) furnish(h kernel.Handle, index int) {
	m.Helper()
	ctx := m.Context()
	m.ok(h.AddAddress(ctx, kernel.Address{Link: index, Prefix: netip.MustParsePrefix("100.64.0.1/32")}))
	m.ok(h.AddAddress(ctx, kernel.Address{Link: index, Prefix: netip.MustParsePrefix("fd00::1/128")}))
	m.allOK(h.ReplaceNeighbors(ctx, []kernel.Neighbor{{Link: index, Addr: netip.MustParseAddr("100.64.0.2"), NBMA: netip.MustParseAddr("192.0.2.2")}}))
	m.allOK(h.ReplaceRoutes(ctx, []kernel.Route{route(index, 1000, "172.16.101.0/24", 0)}))
	m.ok(h.SetEgressSources(ctx, index, []netip.Addr{netip.MustParseAddr("100.64.0.1")}))
}

// furniture is what of furnish is on a link.
type furniture struct {
	v4, v6                   bool
	neighbors, routes, guard bool
}

func (m *machine) furniture(h kernel.Handle, index int) (f furniture) {
	m.Helper()
	ctx := m.Context()
	addresses, err := h.Addresses(ctx)
	m.ok(err)
	for _, a := range addresses {
		if a.Link == index && !a.LinkLocal {
			f.v4 = f.v4 || a.Prefix.Addr().Is4()
			f.v6 = f.v6 || a.Prefix.Addr().Is6()
		}
	}
	neighbors, err := h.Neighbors(ctx)
	m.ok(err)
	routes, err := h.Routes(ctx, kernel.RouteFilter{Table: 1000})
	m.ok(err)
	f.neighbors, f.routes = len(neighbors) > 0, len(routes) > 0
	_, err = h.EgressSources(ctx, index)
	if f.guard = err == nil; !f.guard {
		m.is(err, kernel.ErrNotFound)
	}
	return f
}
