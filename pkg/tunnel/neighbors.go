package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Neighbors are the permanent neighbor entries of tunnel devices: which underlay
// (NBMA) address a tunnel address is reached at. The kernel keeps no owner with
// an entry, so every permanent one on a device of ours is ours. They
// vanish when the device goes down, and do not count toward the kernel's limits
// (gc_thresh).
//
// An entry that is wanted on demand is made by the Responder. Here, one that the
// kernel does not have is as good as there; one that it has must be right.
type Neighbors struct {
	host    kernel.Host
	resolve Resolver
	want    map[desired.NeighborKey]desired.Neighbor
}

type neighborItem = reconcile.Item[desired.NeighborKey, desired.Neighbor]

var (
	_ reconcile.Kind[desired.NeighborKey, desired.Neighbor]    = (*Neighbors)(nil)
	_ reconcile.Batcher[desired.NeighborKey, desired.Neighbor] = (*Neighbors)(nil)
	_ reconcile.Scoped[desired.NeighborKey, desired.Neighbor]  = (*Neighbors)(nil)
)

// NewNeighbors returns the Kind. The resolver's word on an entry that is wanted
// on demand is above the wanted one's own.
func NewNeighbors(host kernel.Host, r Resolver) *Neighbors {
	return &Neighbors{host: host, resolve: r}
}

// Want implements [reconcile.Scoped].
func (n *Neighbors) Want(want map[desired.NeighborKey]desired.Neighbor) { n.want = want }

// Name implements [reconcile.Kind].
func (*Neighbors) Name() string { return "neighbors" }

// List implements [reconcile.Kind].
func (n *Neighbors) List(ctx context.Context) (map[desired.NeighborKey]desired.Neighbor, error) {
	out := map[desired.NeighborKey]desired.Neighbor{}
	for k, w := range n.want {
		if w.OnDemand {
			out[k] = w
		}
	}
	err := owned.VisitAll(ctx, n.host, func(netns string, h kernel.Handle) error {
		_, names, err := owned.Indexes(ctx, h, owned.Tunnel)
		if err != nil || len(names) == 0 {
			return err
		}
		entries, err := h.Neighbors(ctx)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, ok := names[e.Link]
			if !ok {
				continue
			}
			k := desired.NeighborKey{Netns: netns, Link: name, Addr: e.Addr}
			if v, ok := n.shown(k, e); ok {
				out[k] = v
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// shown is an entry of the kernel as a desired one; false if it is no answer.
func (n *Neighbors) shown(k desired.NeighborKey, e kernel.Neighbor) (desired.Neighbor, bool) {
	want := n.want[k]
	if !want.OnDemand {
		return desired.Neighbor{NBMA: e.NBMA}, e.State == kernel.NeighborPermanent
	}
	switch {
	case !e.NBMA.IsValid():
		return desired.Neighbor{}, false // asked for
	case e.State != kernel.NeighborPermanent:
		return desired.Neighbor{OnDemand: true}, true // would expire, and count toward the limits
	case e.NBMA == n.answer(k, want):
		return want, true
	case e.NBMA == want.NBMA:
		return desired.Neighbor{OnDemand: true}, true
	}
	return desired.Neighbor{NBMA: e.NBMA, OnDemand: true}, true
}

// answer is where the neighbor is, as far as we know.
func (n *Neighbors) answer(k desired.NeighborKey, want desired.Neighbor) netip.Addr {
	if want.OnDemand {
		if nbma, ok := n.resolve.Resolve(k); ok {
			return nbma
		}
	}
	return want.NBMA
}

// Diff implements [reconcile.Kind].
func (*Neighbors) Diff(want, have desired.Neighbor) string {
	switch {
	case want.NBMA == have.NBMA: // whoever made it, and when
		return ""
	case !have.NBMA.IsValid():
		return "is not permanent, or its host has moved"
	}
	return fmt.Sprintf("at %s, want %s", have.NBMA, want.NBMA)
}

// Upsert implements [reconcile.Kind].
func (n *Neighbors) Upsert(ctx context.Context, k desired.NeighborKey, want desired.Neighbor) error {
	return n.UpsertBatch(ctx, []neighborItem{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (n *Neighbors) Delete(ctx context.Context, k desired.NeighborKey, have desired.Neighbor) error {
	return n.DeleteBatch(ctx, []neighborItem{{Key: k, Value: have}})[0]
}

// UpsertBatch implements [reconcile.Batcher].
func (n *Neighbors) UpsertBatch(ctx context.Context, items []neighborItem) []error {
	return n.batch(ctx, items, kernel.Handle.ReplaceNeighbors)
}

// DeleteBatch implements [reconcile.Batcher].
func (n *Neighbors) DeleteBatch(ctx context.Context, items []neighborItem) []error {
	errs := n.batch(ctx, items, kernel.Handle.DeleteNeighbors)
	for i, err := range errs {
		if errors.Is(err, kernel.ErrNotFound) { // gone with its link or namespace
			errs[i] = nil
		}
	}
	return errs
}

func (n *Neighbors) batch(ctx context.Context, items []neighborItem, write func(kernel.Handle, context.Context, []kernel.Neighbor) []error) []error {
	netns := func(it neighborItem) string { return it.Key.Netns }
	return owned.Batch(ctx, n.host, items, netns, func(h kernel.Handle, items []neighborItem) []error {
		links, _, err := owned.Indexes(ctx, h, owned.Tunnel)
		if err != nil {
			return owned.Repeat(err, len(items))
		}
		return owned.Translate(items, func(it neighborItem) (kernel.Neighbor, error) {
			index, ok := links[it.Key.Link]
			if !ok {
				return kernel.Neighbor{}, fmt.Errorf("neighbor %s: link %s: %w", it.Key.Addr, it.Key.Link, kernel.ErrNotFound)
			}
			return kernel.Neighbor{Link: index, Addr: it.Key.Addr, NBMA: n.answer(it.Key, it.Value), State: kernel.NeighborPermanent}, nil
		}, func(ns []kernel.Neighbor) []error { return write(h, ctx, ns) })
	})
}
