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

// Neighbors are the permanent neighbor entries of tunnel devices: which underlay
// (NBMA) address a tunnel address is reached at. The kernel keeps no owner with
// an entry, so every permanent one on a device of ours is ours. They
// vanish when the device goes down, and do not count toward the kernel's limits
// (gc_thresh).
type Neighbors struct {
	host kernel.Host
}

type neighborItem = reconcile.Item[desired.NeighborKey, desired.Neighbor]

var (
	_ reconcile.Kind[desired.NeighborKey, desired.Neighbor]    = (*Neighbors)(nil)
	_ reconcile.Batcher[desired.NeighborKey, desired.Neighbor] = (*Neighbors)(nil)
)

// NewNeighbors returns the Kind.
func NewNeighbors(host kernel.Host) *Neighbors {
	return &Neighbors{host: host}
}

// Name implements [reconcile.Kind].
func (*Neighbors) Name() string { return "neighbors" }

// List implements [reconcile.Kind].
func (n *Neighbors) List(ctx context.Context) (map[desired.NeighborKey]desired.Neighbor, error) {
	out := map[desired.NeighborKey]desired.Neighbor{}
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
			if name, ok := names[e.Link]; ok && e.State == kernel.NeighborPermanent {
				out[desired.NeighborKey{Netns: netns, Link: name, Addr: e.Addr}] = desired.Neighbor{NBMA: e.NBMA}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Diff implements [reconcile.Kind].
func (*Neighbors) Diff(want, have desired.Neighbor) string {
	if want == have {
		return ""
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
			return kernel.Neighbor{Link: index, Addr: it.Key.Addr, NBMA: it.Value.NBMA, State: kernel.NeighborPermanent}, nil
		}, func(ns []kernel.Neighbor) []error { return write(h, ctx, ns) })
	})
}
