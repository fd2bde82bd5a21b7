package vip

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
)

// Sweep removes the HaVips of ours that keep does not claim, from the agent's
// own namespace and from those of ours: an agent that has just started finds
// there what another left behind when it was killed. It returns how many.
func Sweep(ctx context.Context, host Host, keep func(netns string, a kernel.Address) bool) (removed int, err error) {
	names, err := host.Namespaces(ctx)
	if err != nil {
		return 0, fmt.Errorf("look for HaVips: %w", err)
	}
	var errs []error
	for _, netns := range append([]string{""}, names...) {
		if netns != "" && !owned.Name(netns) {
			continue
		}
		n, err := sweep(ctx, host, netns, keep)
		removed += n
		if !errors.Is(err, kernel.ErrNotFound) { // a namespace that has gone meanwhile
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

func sweep(ctx context.Context, host Host, netns string, keep func(string, kernel.Address) bool) (removed int, err error) {
	h, err := host.In(netns)
	if err != nil {
		return 0, err
	}
	held, err := h.Addresses(ctx)
	if err != nil {
		return 0, fmt.Errorf("look for HaVips: %w", err)
	}
	var errs []error
	for _, a := range held {
		if !ours(a) || keep(netns, a) {
			continue
		}
		err := h.DeleteAddress(ctx, kernel.Address{Link: a.Link, Prefix: a.Prefix})
		if err == nil {
			removed++
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}
