package kerneltest

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func (h *handle) Routes(ctx context.Context, f kernel.RouteFilter) ([]kernel.Route, error) {
	var all []kernel.Route
	err := h.list(ctx, "Routes", func(s *space) error {
		for _, r := range s.routes {
			if f.Matches(r) {
				all = append(all, r)
			}
		}
		return nil
	})
	return all, err
}

func sameKey(r kernel.Route) func(kernel.Route) bool {
	return func(o kernel.Route) bool {
		return o.Table == r.Table && o.Dst == r.Dst && o.Metric == r.Metric && o.TOS == r.TOS
	}
}

func (h *handle) ReplaceRoutes(ctx context.Context, rs []kernel.Route) []error {
	return changeEach(ctx, h, "ReplaceRoutes", rs, kernel.Route.String, func(s *space, r kernel.Route) error {
		if err := r.Validate(); err != nil {
			return err
		}
		if r.Type == 0 {
			r.Type = kernel.RouteUnicast
		}
		if err := s.resolve(&r); err != nil {
			return err
		}
		if i := slices.IndexFunc(s.routes, sameKey(r)); i >= 0 {
			if s.routes[i].Protocol != r.Protocol {
				return fmt.Errorf("protocol %d cannot replace the route of protocol %d: %w", r.Protocol, s.routes[i].Protocol, kernel.ErrForeign)
			}
			s.routes[i] = r
		} else {
			s.routes = append(s.routes, r)
		}
		h.fake.hint(s.name, kernel.HintRoutes)
		return nil
	})
}

// resolve checks a route as fib_create_info (net/ipv4/fib_semantics.c) does: the
// link is there and up, the next hop is on it, the source is ours.
func (s *space) resolve(r *kernel.Route) error {
	if r.Type != kernel.RouteUnicast {
		r.Link = 0
		return nil
	}
	if r.Nexthop != 0 {
		if _, ok := s.nexthops[r.Nexthop]; !ok {
			return fmt.Errorf("there is no nexthop %d: %w", r.Nexthop, unix.EINVAL)
		}
		return nil
	}
	if r.Via.IsValid() && !r.Onlink {
		i := slices.IndexFunc(s.addresses, func(a kernel.Address) bool {
			return (r.Link == 0 || r.Link == a.Link) && s.links[a.Link].Up &&
				!a.Prefix.IsSingleIP() && a.Prefix.Contains(r.Via)
		})
		if i < 0 {
			return fmt.Errorf("the next hop %s is not on a link: %w", r.Via, unix.ENETUNREACH)
		}
		r.Link = s.addresses[i].Link
	}
	l, err := s.link(r.Link)
	if err != nil {
		return err
	}
	if !l.Up {
		return fmt.Errorf("link %s: %w", l.Name, unix.ENETDOWN)
	}
	if r.Source.IsValid() && !s.local(r.Source) {
		return fmt.Errorf("source %s is not an address here: %w", r.Source, unix.EINVAL)
	}
	if r.Scope == 0 && !r.Via.IsValid() && r.Dst.Addr().Is4() {
		r.Scope = unix.RT_SCOPE_LINK
	}
	return nil
}

func (h *handle) DeleteRoutes(ctx context.Context, rs []kernel.Route) []error {
	return changeEach(ctx, h, "DeleteRoutes", rs, kernel.Route.String, func(s *space, r kernel.Route) error {
		r.Multipath = false
		if err := r.Validate(); err != nil {
			return err
		}
		s.routes = slices.DeleteFunc(s.routes, func(o kernel.Route) bool {
			return sameKey(r)(o) && o.Protocol == r.Protocol
		})
		h.fake.hint(s.name, kernel.HintRoutes)
		return nil
	})
}
