package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// EgressGuards drop what leaves an attachment's interface from any source but
// the interface's own addresses: the last line behind address translation, which
// a flush of iptables or nftables does not open. They exist in namespaces of
// ours only.
type EgressGuards struct {
	host kernel.Host
}

var _ reconcile.Kind[desired.EgressKey, desired.Egress] = (*EgressGuards)(nil)

// NewEgressGuards returns the Kind.
func NewEgressGuards(host kernel.Host) *EgressGuards {
	return &EgressGuards{host: host}
}

// incomplete is listed as the sources of a guard of which parts are missing. No
// plan contains the zero address.
var incomplete = []netip.Addr{{}}

// Name implements [reconcile.Kind].
func (*EgressGuards) Name() string { return "egress" }

// List implements [reconcile.Kind].
func (g *EgressGuards) List(ctx context.Context) (map[desired.EgressKey]desired.Egress, error) {
	out := map[desired.EgressKey]desired.Egress{}
	err := owned.Visit(ctx, g.host, func(netns string, h kernel.Handle) error {
		links, err := h.Links(ctx)
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Name == "lo" || owned.Tunnel(l) {
				continue
			}
			sources, err := h.EgressSources(ctx, l.Index)
			switch {
			case errors.Is(err, kernel.ErrIncomplete):
				sources = incomplete
			case errors.Is(err, kernel.ErrNotFound):
				continue
			case err != nil:
				return err
			}
			out[desired.EgressKey{Netns: netns, Link: l.Name}] = desired.Egress{Sources: sources}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Diff implements [reconcile.Kind].
func (*EgressGuards) Diff(want, have desired.Egress) string {
	if slices.Equal(have.Sources, incomplete) {
		return "parts of the guard are missing"
	}
	h, w := slices.Clone(have.Sources), slices.Clone(want.Sources)
	slices.SortFunc(h, netip.Addr.Compare)
	slices.SortFunc(w, netip.Addr.Compare)
	if slices.Equal(h, w) {
		return ""
	}
	return fmt.Sprintf("lets %v pass, want %v", h, w)
}

// Upsert implements [reconcile.Kind].
func (g *EgressGuards) Upsert(ctx context.Context, k desired.EgressKey, want desired.Egress) error {
	h, l, err := owned.Link(ctx, g.host, k.Netns, k.Link)
	if err != nil {
		return fmt.Errorf("egress guard: %w", err)
	}
	return h.SetEgressSources(ctx, l.Index, want.Sources)
}

// Delete implements [reconcile.Kind].
func (g *EgressGuards) Delete(ctx context.Context, k desired.EgressKey, _ desired.Egress) error {
	h, l, err := owned.Link(ctx, g.host, k.Netns, k.Link)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("egress guard: %w", err)
	}
	return h.DeleteEgressGuard(ctx, l.Index)
}
