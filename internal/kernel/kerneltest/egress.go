package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// guardOf returns ErrNotFound for a link without a guard.
func (s *space) guardOf(index int) (*guard, error) {
	l, err := s.link(index)
	if err != nil {
		return nil, err
	}
	if l.guard == nil {
		return nil, fmt.Errorf("egress guard of link %d: %w", index, kernel.ErrNotFound)
	}
	return l.guard, nil
}

func (h *handle) EgressSources(ctx context.Context, index int) ([]netip.Addr, error) {
	var sources []netip.Addr
	err := h.list(ctx, "EgressSources", func(s *space) error {
		g, err := s.guardOf(index)
		if err == nil {
			sources = slices.Clone(g.sources)
		}
		return err
	})
	return sources, err
}

func (h *handle) EgressDrops(ctx context.Context, index int) (uint64, error) {
	var drops uint64
	err := h.list(ctx, "EgressDrops", func(s *space) error {
		g, err := s.guardOf(index)
		if err == nil {
			drops = g.drops
		}
		return err
	})
	return drops, err
}

func (h *handle) SetEgressSources(ctx context.Context, index int, sources []netip.Addr) error {
	return h.change(ctx, "SetEgressSources", fmt.Sprint(index, " ", sources), func(s *space) error {
		l, err := s.link(index)
		if err != nil {
			return err
		}
		for _, source := range sources {
			if !source.IsValid() || source.Zone() != "" || source.Is4In6() {
				return fmt.Errorf("egress guard of link %d: %v is no source address", index, source)
			}
		}
		if l.guard == nil {
			l.guard = &guard{}
		}
		l.guard.sources = slices.Compact(slices.SortedFunc(slices.Values(sources), netip.Addr.Compare))
		h.fake.hint(s.name, kernel.HintEgress)
		return nil
	})
}

func (h *handle) DeleteEgressGuard(ctx context.Context, index int) error {
	return h.change(ctx, "DeleteEgressGuard", fmt.Sprint(index), func(s *space) error {
		if l := s.links[index]; l != nil && l.guard != nil {
			l.guard = nil
			h.fake.hint(s.name, kernel.HintEgress)
		}
		return nil
	})
}
