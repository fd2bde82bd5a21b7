package tunnel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Addresses are the addresses on tunnel devices, and what an attachment's
// interface needs beyond its own.
//
// On a tunnel device of ours every address is ours but the link-local ones. On
// other links ours are those with our IFA_PROTO (Linux 5.18); older kernels do
// not keep that, so there an address which is no longer wanted stays until its
// interface is given back. A wanted address that somebody else has put in place
// already is as good as ours, and stays theirs.
type Addresses struct {
	host kernel.Host
	want map[desired.AddressKey]desired.Address
}

var (
	_ reconcile.Kind[desired.AddressKey, desired.Address]   = (*Addresses)(nil)
	_ reconcile.Scoped[desired.AddressKey, desired.Address] = (*Addresses)(nil)
)

// NewAddresses returns the Kind.
func NewAddresses(host kernel.Host) *Addresses {
	return &Addresses{host: host}
}

// Want implements [reconcile.Scoped].
func (a *Addresses) Want(want map[desired.AddressKey]desired.Address) { a.want = want }

// Name implements [reconcile.Kind].
func (*Addresses) Name() string { return "addresses" }

// List implements [reconcile.Kind].
func (a *Addresses) List(ctx context.Context) (map[desired.AddressKey]desired.Address, error) {
	out := map[desired.AddressKey]desired.Address{}
	err := owned.VisitAll(ctx, a.host, func(netns string, h kernel.Handle) error {
		links, err := h.Links(ctx)
		if err != nil {
			return err
		}
		byIndex := make(map[int]kernel.Link, len(links))
		for _, l := range links {
			byIndex[l.Index] = l
		}
		addresses, err := h.Addresses(ctx)
		if err != nil {
			return err
		}
		for _, have := range addresses {
			l, ok := byIndex[have.Link]
			if !ok {
				continue // a link that came between the two listings
			}
			k := desired.AddressKey{Netns: netns, Link: l.Name, Prefix: have.Prefix}
			_, want := a.want[k]
			if want || have.Protocol == desired.Protocol || owned.Tunnel(l) && !have.LinkLocal {
				out[k] = desired.Address{}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Diff implements [reconcile.Kind]. An address is all key.
func (*Addresses) Diff(_, _ desired.Address) string { return "" }

// Upsert implements [reconcile.Kind].
func (a *Addresses) Upsert(ctx context.Context, k desired.AddressKey, _ desired.Address) error {
	h, l, err := owned.Link(ctx, a.host, k.Netns, k.Link)
	if err != nil {
		return fmt.Errorf("address %s: %w", k.Prefix, err)
	}
	return h.AddAddress(ctx, kernel.Address{Link: l.Index, Prefix: k.Prefix, Protocol: desired.Protocol})
}

// Delete implements [reconcile.Kind].
func (a *Addresses) Delete(ctx context.Context, k desired.AddressKey, _ desired.Address) error {
	h, l, err := owned.Link(ctx, a.host, k.Netns, k.Link)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("address %s: %w", k.Prefix, err)
	}
	return h.DeleteAddress(ctx, kernel.Address{Link: l.Index, Prefix: k.Prefix})
}
