package route

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Nexthops are the nexthop objects of the agent's own namespace whose protocol
// number is ours. Only function hosts have any.
type Nexthops struct {
	host kernel.Host
}

type nexthopItem = reconcile.Item[desired.NexthopKey, desired.Nexthop]

var (
	_ reconcile.Kind[desired.NexthopKey, desired.Nexthop]    = (*Nexthops)(nil)
	_ reconcile.Batcher[desired.NexthopKey, desired.Nexthop] = (*Nexthops)(nil)
)

// NewNexthops returns the Kind.
func NewNexthops(host kernel.Host) *Nexthops { return &Nexthops{host: host} }

// Name implements [reconcile.Kind].
func (*Nexthops) Name() string { return "nexthops" }

// List implements [reconcile.Kind].
func (n *Nexthops) List(ctx context.Context) (map[desired.NexthopKey]desired.Nexthop, error) {
	h, err := n.host.In("")
	if err != nil {
		return nil, err
	}
	all, err := h.Nexthops(ctx)
	if err != nil {
		return nil, err
	}
	out := map[desired.NexthopKey]desired.Nexthop{}
	if len(all) == 0 {
		return out, nil
	}
	names, err := h.LinkNames(ctx)
	if err != nil {
		return nil, err
	}
	for _, have := range all {
		if have.Protocol != desired.Protocol {
			continue
		}
		v := desired.Nexthop{Via: have.Via, Onlink: have.Onlink, Members: have.Members, Resilient: have.Resilient, IdleSeconds: have.IdleSeconds}
		if !v.IsGroup() {
			v.Link = names.ByIndex[have.Link]
		}
		if have.Other {
			v = desired.Nexthop{} // nobody can want this
		}
		out[desired.NexthopKey{ID: have.ID}] = v
	}
	return out, nil
}

// Diff implements [reconcile.Kind].
func (*Nexthops) Diff(want, have desired.Nexthop) string {
	if reflect.DeepEqual(want, have) {
		return ""
	}
	return fmt.Sprintf("%s, want %s", nexthopText(have), nexthopText(want))
}

func nexthopText(n desired.Nexthop) string {
	switch {
	case n.Resilient:
		return fmt.Sprintf("resilient group %v idle_timer %d", n.Members, n.IdleSeconds)
	case n.IsGroup():
		return fmt.Sprintf("group %v", n.Members)
	}
	return fmt.Sprintf("via %s dev %s", n.Via, n.Link)
}

// Upsert implements [reconcile.Kind].
func (n *Nexthops) Upsert(ctx context.Context, k desired.NexthopKey, want desired.Nexthop) error {
	return n.UpsertBatch(ctx, []nexthopItem{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (n *Nexthops) Delete(ctx context.Context, k desired.NexthopKey, have desired.Nexthop) error {
	return n.DeleteBatch(ctx, []nexthopItem{{Key: k, Value: have}})[0]
}

func netnsOfNexthop(it nexthopItem) string { return it.Key.Netns }

// UpsertBatch implements [reconcile.Batcher]: next hops first, then groups.
func (n *Nexthops) UpsertBatch(ctx context.Context, items []nexthopItem) []error {
	return owned.Batch(ctx, n.host, items, netnsOfNexthop, func(h kernel.Handle, items []nexthopItem) []error {
		names, err := h.LinkNames(ctx)
		if err != nil {
			return owned.Repeat(err, len(items))
		}
		return owned.Translate(items, func(it nexthopItem) (kernel.Nexthop, error) {
			v := it.Value
			k := kernel.Nexthop{ID: it.Key.ID, Protocol: desired.Protocol, Via: v.Via, Onlink: v.Onlink, Members: v.Members,
				Resilient: v.Resilient, IdleSeconds: v.IdleSeconds}
			if v.Resilient {
				k.Buckets = desired.NexthopBuckets
			}
			if v.IsGroup() {
				return k, nil
			}
			var ok bool
			if k.Link, ok = names.ByName[v.Link]; !ok {
				return k, fmt.Errorf("nexthop %d: link %s: %w", it.Key.ID, v.Link, kernel.ErrNotFound)
			}
			return k, nil
		}, func(list []kernel.Nexthop) []error { return h.ReplaceNexthops(ctx, list) })
	})
}

// DeleteBatch implements [reconcile.Batcher]: groups first.
func (n *Nexthops) DeleteBatch(ctx context.Context, items []nexthopItem) []error {
	errs := owned.Batch(ctx, n.host, items, netnsOfNexthop, func(h kernel.Handle, items []nexthopItem) []error {
		list := make([]kernel.Nexthop, len(items))
		for i, it := range items {
			list[i] = kernel.Nexthop{ID: it.Key.ID, Protocol: desired.Protocol, Members: it.Value.Members}
		}
		return h.DeleteNexthops(ctx, list)
	})
	for i, err := range errs {
		if errors.Is(err, kernel.ErrNotFound) {
			errs[i] = nil
		}
	}
	return errs
}
