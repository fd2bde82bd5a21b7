package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
)

// facts observes what a plan needs to know of the machine. What it has seen of
// a namespace is kept until that is marked stale, so that a thousand
// namespaces are not listed for an event in one. It is safe for concurrent use.
type facts struct {
	host kernel.Host

	mu    sync.Mutex
	seen  map[string][]plan.Interface // by namespace, except for the agent's own
	stale map[string]bool
	own   plan.Facts // of the agent's own namespace
	of    netip.Addr // whose link own has as the underlay link
	// groups is how flows can be spread; nil: not found out yet.
	groups *plan.Hashing
	links  map[string]bool // of the agent's own namespace, by name; nil: not listed yet
}

func newFacts(h kernel.Host) *facts {
	return &facts{host: h, seen: map[string][]plan.Interface{}, stale: map[string]bool{}}
}

// forget marks what is known of a namespace as stale.
func (f *facts) forget(netns string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale[netns] = true
}

// forgetAll marks everything as stale: events can be lost.
func (f *facts) forgetAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale[""] = true
	for netns := range f.seen {
		f.stale[netns] = true
	}
}

// observe returns the facts for a node with the given underlay address.
//
// The agent's own namespace is read before the others: an interface that moves
// from it meanwhile is then seen at least once.
func (f *facts) observe(ctx context.Context, underlay netip.Addr) (plan.Facts, error) {
	own, err := f.host.In("")
	if err != nil {
		return plan.Facts{}, err
	}
	out, err := f.ownNamespace(ctx, own, underlay)
	if err != nil {
		return out, err
	}
	all, err := own.Sysctl(ctx, "net/ipv4/conf/all/rp_filter")
	if err != nil {
		return out, fmt.Errorf("read rp_filter: %w", err)
	}
	out.StrictRPFilter = all == "1"
	inside, err := f.namespaces(ctx)
	out.Interfaces = slices.Concat(out.Interfaces, inside)
	return out, err
}

// ownNamespace returns what there is in the agent's own namespace.
func (f *facts) ownNamespace(ctx context.Context, own kernel.Handle, underlay netip.Addr) (plan.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links != nil && !f.stale[""] && f.of == underlay {
		return f.own, nil
	}
	var out plan.Facts
	links, err := own.Links(ctx)
	if err != nil {
		return out, fmt.Errorf("list interfaces: %w", err)
	}
	addresses, err := own.Addresses(ctx)
	if err != nil {
		return out, fmt.Errorf("list addresses: %w", err)
	}
	out.Interfaces = interfaces("", links, addresses)
	out.ForeignTunnels = foreignTunnels(links)
	if l, ok := holder(links, addresses, underlay); ok {
		out.UnderlayLink, out.UnderlayMTU = l.Name, l.MTU
	}
	f.own, f.of, f.links = out, underlay, make(map[string]bool, len(links))
	for _, l := range links {
		f.links[l.Name] = true
	}
	delete(f.stale, "")
	return out, nil
}

// hasLink tells whether the agent's own namespace had a link when it was
// observed last.
func (f *facts) hasLink(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.links[name]
}

func (f *facts) namespaces(ctx context.Context) ([]plan.Interface, error) {
	names, err := ownNamespaces(ctx, f.host)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := make(map[string][]plan.Interface, len(names))
	var out []plan.Interface
	for _, name := range names {
		list, ok := f.seen[name]
		if !ok || f.stale[name] {
			fresh, err := namespaceInterfaces(ctx, f.host, name)
			switch {
			case errors.Is(err, kernel.ErrNotFound):
				continue
			case err != nil && !ok:
				return nil, err
			case err == nil:
				list = fresh
				delete(f.stale, name)
			}
		}
		seen[name] = list
		out = append(out, list...)
	}
	f.seen = seen
	return out, nil
}

func namespaceInterfaces(ctx context.Context, host kernel.Host, netns string) ([]plan.Interface, error) {
	h, err := host.In(netns)
	if err != nil {
		return nil, err
	}
	links, err := h.Links(ctx)
	if err != nil {
		return nil, fmt.Errorf("list interfaces of namespace %s: %w", netns, err)
	}
	addresses, err := h.Addresses(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses of namespace %s: %w", netns, err)
	}
	return interfaces(netns, links, addresses), nil
}

// ownNamespaces lists the namespaces of ours.
func ownNamespaces(ctx context.Context, host kernel.Host) ([]string, error) {
	all, err := host.Namespaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var own []string
	for _, n := range all {
		if strings.HasPrefix(n, desired.LinkPrefix) {
			own = append(own, n)
		}
	}
	return own, nil
}

// interfaces returns what could be an ENI: everything with an Ethernet address.
func interfaces(netns string, links []kernel.Link, addresses []kernel.Address) []plan.Interface {
	var out []plan.Interface
	for _, l := range links {
		if len(l.MAC) != len("00:00:00:00:00:00") || strings.HasPrefix(l.Name, desired.LinkPrefix) || l.Name == "lo" {
			continue
		}
		i := plan.Interface{Netns: netns, Name: l.Name, MAC: l.MAC, PCI: l.PCI, NoCarrier: l.Up && !l.Lower}
		for _, a := range addresses {
			// A HaVip comes and goes with the election, and changes no plan.
			if a.Link == l.Index && !a.LinkLocal && a.Protocol != desired.HaVipProtocol {
				i.Addresses = append(i.Addresses, a.Prefix)
			}
		}
		out = append(out, i)
	}
	return out
}

func foreignTunnels(links []kernel.Link) []plan.Tunnel {
	var out []plan.Tunnel
	for _, l := range links {
		if l.GRE == nil || !l.GRE.Remote.IsValid() || l.GRE.Remote.IsUnspecified() || strings.HasPrefix(l.Name, desired.LinkPrefix) {
			continue
		}
		out = append(out, plan.Tunnel{Local: l.GRE.Local, Remote: l.GRE.Remote, Keyed: l.GRE.Keyed, Key: l.GRE.Key})
	}
	return out
}

// holder returns the link that an address is on.
func holder(links []kernel.Link, addresses []kernel.Address, a netip.Addr) (kernel.Link, bool) {
	for _, ad := range addresses {
		if ad.Prefix.Addr() != a {
			continue
		}
		for _, l := range links {
			if l.Index == ad.Link {
				return l, true
			}
		}
	}
	return kernel.Link{}, false
}

// DefaultUnderlay finds the address to use where the configuration names none:
// the first of the named interface, or of the one with the default route. It
// returns the address with its subnet's length.
func DefaultUnderlay(ctx context.Context, host kernel.Host, name string) (netip.Prefix, error) {
	h, err := host.In("")
	if err != nil {
		return netip.Prefix{}, err
	}
	var index int
	if name != "" {
		l, err := h.LinkByName(ctx, name)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("underlay interface %s: %w", name, err)
		}
		index = l.Index
	} else if index, err = defaultRouteLink(ctx, h); err != nil {
		return netip.Prefix{}, err
	}
	addresses, err := h.Addresses(ctx)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		// A HaVip that a former agent left behind is not the node's own.
		if a.Link == index && a.Prefix.Addr().Is4() && !a.LinkLocal && a.Protocol != desired.HaVipProtocol {
			return a.Prefix, nil
		}
	}
	return netip.Prefix{}, errors.New("the underlay interface has no IPv4 address; set underlay.address")
}

// UnderlaySubnet returns the subnet of an underlay address of this machine, or
// the zero Prefix if no interface has it.
func UnderlaySubnet(ctx context.Context, host kernel.Host, a netip.Addr) (netip.Prefix, error) {
	h, err := host.In("")
	if err != nil {
		return netip.Prefix{}, err
	}
	addresses, err := h.Addresses(ctx)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, ad := range addresses {
		if ad.Prefix.Addr() == a {
			return ad.Prefix.Masked(), nil
		}
	}
	return netip.Prefix{}, nil
}

func defaultRouteLink(ctx context.Context, h kernel.Handle) (int, error) {
	routes, err := h.Routes(ctx, kernel.RouteFilter{Table: mainTable})
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	best := kernel.Route{}
	for _, r := range routes {
		if r.Dst.Bits() == 0 && r.Dst.Addr().Is4() && r.Type == kernel.RouteUnicast && r.Link != 0 && (best.Link == 0 || r.Metric < best.Metric) {
			best = r
		}
	}
	if best.Link == 0 {
		return 0, errors.New("there is no default route to take the underlay address from; set underlay.address or underlay.interface")
	}
	return best.Link, nil
}

// mainTable is RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h).
const mainTable = 254
