package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Protocol numbers of routes that come back by themselves
// (include/uapi/linux/rtnetlink.h).
const (
	protocolKernel = 2 // follow from addresses
	protocolRA     = 9 // follow from router advertisements
)

// furniture is what a link loses when it is moved, apart from what is ours:
// that is made again by its own Kind.
type furniture struct {
	addresses []eniAddress
	routes    []eniRoute
}

// read lists a link's furniture.
func read(ctx context.Context, h kernel.Handle, index int) (furniture, error) {
	var f furniture
	addresses, err := h.Addresses(ctx)
	if err != nil {
		return f, err
	}
	for _, a := range addresses {
		if a.Link == index && !a.LinkLocal && a.Protocol != desired.Protocol && a.Protocol != desired.HaVipProtocol {
			f.addresses = append(f.addresses, eniAddress{Prefix: a.Prefix, Broadcast: a.Broadcast, Protocol: a.Protocol, Scope: a.Scope})
		}
	}
	routes, err := h.Routes(ctx, kernel.RouteFilter{Link: index})
	if err != nil {
		return f, err
	}
	for _, r := range routes {
		if r.Protocol == protocolKernel || r.Protocol == protocolRA || r.Protocol == desired.Protocol || r.Multipath || r.TOS != 0 {
			continue
		}
		f.routes = append(f.routes, eniRoute{
			Table: r.Table, Dst: r.Dst, Metric: r.Metric, Type: r.Type, Via: r.Via, Onlink: r.Onlink,
			Source: r.Source, Protocol: r.Protocol, Scope: r.Scope,
		})
	}
	return f, nil
}

// routeKey is what the kernel tells routes apart by.
type routeKey struct {
	table  uint32
	dst    string
	metric uint32
}

func (r eniRoute) key() routeKey { return routeKey{r.Table, r.Dst.String(), r.Metric} }

// minus returns the part of f that have lacks. A route is there if any route has
// its place.
func (f furniture) minus(have furniture) furniture {
	var out furniture
	for _, a := range f.addresses {
		if !slices.ContainsFunc(have.addresses, func(h eniAddress) bool { return h.Prefix == a.Prefix }) {
			out.addresses = append(out.addresses, a)
		}
	}
	for _, r := range f.routes {
		if !slices.ContainsFunc(have.routes, func(h eniRoute) bool { return h.key() == r.key() }) {
			out.routes = append(out.routes, r)
		}
	}
	return out
}

// union returns f and what other has beyond it.
func (f furniture) union(other furniture) furniture {
	more := other.minus(f)
	return furniture{append(slices.Clone(f.addresses), more.addresses...), append(slices.Clone(f.routes), more.routes...)}
}

// lost returns the part of f that have lacks by accident: setting a link down
// takes its routes and its IPv6 addresses, and a flush takes all. An address
// that somebody has replaced by another one is not lost, nor is a route whose
// source address is not there.
func (f furniture) lost(have furniture) furniture {
	out := f.minus(have)
	out.addresses = slices.DeleteFunc(out.addresses, func(a eniAddress) bool {
		return slices.ContainsFunc(have.addresses, func(h eniAddress) bool { return h.Prefix.Addr().Is4() == a.Prefix.Addr().Is4() })
	})
	now := append(slices.Clone(have.addresses), out.addresses...)
	out.routes = slices.DeleteFunc(out.routes, func(r eniRoute) bool {
		return r.Source.IsValid() && !slices.ContainsFunc(now, func(a eniAddress) bool { return a.Prefix.Addr() == r.Source })
	})
	return out
}

func (f furniture) empty() bool { return len(f.addresses)+len(f.routes) == 0 }

// put adds furniture to a link that is up. What is there already is success.
func (f furniture) put(ctx context.Context, h kernel.Handle, l kernel.Link) error {
	var errs []error
	for _, a := range f.addresses {
		err := h.AddAddress(ctx, kernel.Address{Link: l.Index, Prefix: a.Prefix, Broadcast: a.Broadcast, Protocol: a.Protocol, Scope: a.Scope})
		if err != nil {
			errs = append(errs, fmt.Errorf("restore address %s of %s: %w", a.Prefix, l.Name, err))
		}
	}
	// Next hops must be covered by a route on the link, so those come first.
	for _, viaGateway := range []bool{false, true} {
		var batch []kernel.Route
		for _, r := range f.routes {
			if r.Via.IsValid() == viaGateway {
				batch = append(batch, kernel.Route{
					Table: r.Table, Dst: r.Dst, Metric: r.Metric, Type: r.Type, Link: l.Index, Via: r.Via,
					Onlink: r.Onlink, Source: r.Source, Protocol: r.Protocol, Scope: r.Scope,
				})
			}
		}
		if len(batch) == 0 {
			continue
		}
		for i, err := range h.ReplaceRoutes(ctx, batch) {
			// Somebody else's route in its place is as good.
			if err != nil && !errors.Is(err, kernel.ErrForeign) {
				errs = append(errs, fmt.Errorf("restore route %s of %s: %w", batch[i].Dst, l.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
