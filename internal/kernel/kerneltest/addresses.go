package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func (h *handle) Addresses(ctx context.Context) ([]kernel.Address, error) {
	var all []kernel.Address
	err := h.list(ctx, "Addresses", func(s *space) error {
		all = slices.Clone(s.addresses)
		return nil
	})
	return all, err
}

func sameAddress(a kernel.Address) func(kernel.Address) bool {
	return func(b kernel.Address) bool { return a.Link == b.Link && a.Prefix == b.Prefix }
}

func (h *handle) AddAddress(ctx context.Context, a kernel.Address) error {
	return h.change(ctx, "AddAddress", fmt.Sprintf("%s on %d", a.Prefix, a.Link), func(s *space) error {
		if !a.Prefix.IsValid() {
			return fmt.Errorf("%v is no address with a prefix length", a.Prefix)
		}
		if _, err := s.link(a.Link); err != nil {
			return err
		}
		if slices.ContainsFunc(s.addresses, sameAddress(a)) {
			return nil
		}
		a.Dynamic, a.LinkLocal = false, a.Prefix.Addr().IsLinkLocalUnicast()
		s.addresses = append(s.addresses, a)
		h.fake.hint(s.name, kernel.HintAddresses)
		return nil
	})
}

// DeleteAddress removes routes that prefer the address as their source, too.
func (h *handle) DeleteAddress(ctx context.Context, a kernel.Address) error {
	return h.change(ctx, "DeleteAddress", fmt.Sprintf("%s on %d", a.Prefix, a.Link), func(s *space) error {
		if !slices.ContainsFunc(s.addresses, sameAddress(a)) {
			return nil
		}
		s.addresses = slices.DeleteFunc(s.addresses, sameAddress(a))
		if !s.local(a.Prefix.Addr()) && a.Prefix.Addr().Is4() {
			s.routes = slices.DeleteFunc(s.routes, func(r kernel.Route) bool { return r.Source == a.Prefix.Addr() })
		}
		h.fake.hint(s.name, kernel.HintAddresses, kernel.HintRoutes)
		return nil
	})
}

// local says whether the namespace has the address.
func (s *space) local(addr netip.Addr) bool {
	return slices.ContainsFunc(s.addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == addr })
}

func (h *handle) Neighbors(ctx context.Context) ([]kernel.Neighbor, error) {
	var all []kernel.Neighbor
	err := h.list(ctx, "Neighbors", func(s *space) error {
		all = slices.SortedFunc(maps.Values(s.neighbors), func(a, b kernel.Neighbor) int {
			return cmp.Or(cmp.Compare(a.Link, b.Link), a.Addr.Compare(b.Addr))
		})
		return nil
	})
	return all, err
}

func neighborName(n kernel.Neighbor) string { return fmt.Sprintf("%s on %d", n.Addr, n.Link) }

func (h *handle) ReplaceNeighbors(ctx context.Context, ns []kernel.Neighbor) []error {
	return changeEach(ctx, h, "ReplaceNeighbors", ns, neighborName, func(s *space, n kernel.Neighbor) error {
		if err := n.Validate(); err != nil {
			return err
		}
		l, err := s.link(n.Link)
		if err != nil {
			return err
		}
		if l.GRE == nil {
			return fmt.Errorf("link %s has no IPv4 link-layer addresses", l.Name)
		}
		if n.State == 0 {
			n.State = kernel.NeighborPermanent
		}
		s.neighbors[neighborKey{n.Link, n.Addr}] = n
		h.fake.hint(s.name, kernel.HintNeighbors)
		return nil
	})
}

func (h *handle) DeleteNeighbors(ctx context.Context, ns []kernel.Neighbor) []error {
	return changeEach(ctx, h, "DeleteNeighbors", ns, neighborName, func(s *space, n kernel.Neighbor) error {
		delete(s.neighbors, neighborKey{n.Link, n.Addr})
		h.fake.hint(s.name, kernel.HintNeighbors)
		return nil
	})
}
