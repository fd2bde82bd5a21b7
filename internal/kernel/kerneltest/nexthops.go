package kerneltest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func (h *handle) Nexthops(ctx context.Context) ([]kernel.Nexthop, error) {
	var all []kernel.Nexthop
	err := h.list(ctx, "Nexthops", func(s *space) error {
		all = slices.Collect(maps.Values(s.nexthops))
		return nil
	})
	return all, err
}

func (h *handle) ReplaceNexthops(ctx context.Context, ns []kernel.Nexthop) []error {
	order := make([]int, len(ns)) // next hops before groups
	for i := range ns {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return min(len(ns[a].Members), 1) - min(len(ns[b].Members), 1) })
	sorted := make([]kernel.Nexthop, len(ns))
	for i, at := range order {
		sorted[i] = ns[at]
	}
	errs := make([]error, len(ns))
	for i, err := range h.replaceNexthops(ctx, sorted) {
		errs[order[i]] = err
	}
	return errs
}

func (h *handle) replaceNexthops(ctx context.Context, ns []kernel.Nexthop) []error {
	return changeEach(ctx, h, "ReplaceNexthops", ns, kernel.Nexthop.String, func(s *space, n kernel.Nexthop) error {
		if err := n.Validate(); err != nil {
			return err
		}
		have, taken := s.nexthops[n.ID]
		if taken && have.Protocol != n.Protocol {
			return fmt.Errorf("protocol %d cannot replace the nexthop of protocol %d: %w", n.Protocol, have.Protocol, kernel.ErrForeign)
		}
		if taken && have.Resilient != n.Resilient {
			return fmt.Errorf("a group's type cannot be changed: %w", unix.EINVAL)
		}
		for _, id := range n.Members {
			if _, ok := s.nexthops[id]; !ok {
				return fmt.Errorf("there is no nexthop %d: %w", id, unix.EINVAL)
			}
		}
		if len(n.Members) == 0 {
			if _, err := s.link(n.Link); err != nil {
				return err
			}
		}
		s.nexthops[n.ID] = n
		h.fake.hint(s.name, kernel.HintNexthops)
		return nil
	})
}

func (h *handle) DeleteNexthops(ctx context.Context, ns []kernel.Nexthop) []error {
	return changeEach(ctx, h, "DeleteNexthops", ns, kernel.Nexthop.String, func(s *space, n kernel.Nexthop) error {
		if have, ok := s.nexthops[n.ID]; ok && have.Protocol == n.Protocol {
			s.dropNexthop(n.ID)
			h.fake.hint(s.name, kernel.HintNexthops, kernel.HintRoutes)
		}
		return nil
	})
}

// dropNexthop removes an object, and with it groups that it was the last member
// of, and the routes by either (remove_nexthop, net/ipv4/nexthop.c).
func (s *space) dropNexthop(id uint32) {
	delete(s.nexthops, id)
	s.routes = slices.DeleteFunc(s.routes, func(r kernel.Route) bool { return r.Nexthop == id })
	for group, n := range s.nexthops {
		if !slices.Contains(n.Members, id) {
			continue
		}
		n.Members = slices.DeleteFunc(slices.Clone(n.Members), func(m uint32) bool { return m == id })
		if len(n.Members) == 0 {
			s.dropNexthop(group)
			continue
		}
		s.nexthops[group] = n
	}
}

func (h *handle) NexthopGroups(ctx context.Context) (plain, resilient bool, err error) {
	err = h.list(ctx, "NexthopGroups", func(*space) error { return nil })
	return err == nil, err == nil, err
}
