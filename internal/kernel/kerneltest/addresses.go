package kerneltest

import (
	"context"
	"fmt"
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
