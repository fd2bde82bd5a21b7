package route

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// SteerTable is the packet filter that marks packets; see [nft.Tables].
type SteerTable interface {
	Load(ctx context.Context, netns string) (nft.Contents, error)
	Apply(ctx context.Context, netns string, ch nft.Change) error
}

// SteerNamespaces lists the network namespaces of the machine by name.
type SteerNamespaces interface {
	Namespaces(ctx context.Context) ([]string, error)
}

// Steers is the map from a packet's source and destination to the mark that
// selects its attachment's table. Where several match, the longest source
// prefix wins, and among those the longest destination prefix.
//
// A table that somebody has tampered with shows nothing of what it should hold,
// so that all of it is written again; and one SteerKey that has only a
// namespace, which nobody wants: deleting it repairs the table where nothing
// else did.
//
// Lists open every namespace of ours, which takes about 0.1 ms each.
type Steers struct {
	table      SteerTable
	namespaces SteerNamespaces
}

var (
	_ reconcile.Kind[desired.SteerKey, desired.Steer]    = (*Steers)(nil)
	_ reconcile.Batcher[desired.SteerKey, desired.Steer] = (*Steers)(nil)
)

// NewSteers returns the Kind.
func NewSteers(table SteerTable, namespaces SteerNamespaces) *Steers {
	return &Steers{table: table, namespaces: namespaces}
}

// Name implements [reconcile.Kind].
func (*Steers) Name() string { return "steers" }

// List implements [reconcile.Kind].
func (s *Steers) List(ctx context.Context) (map[desired.SteerKey]desired.Steer, error) {
	names, err := s.namespaces.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	steers := map[desired.SteerKey]desired.Steer{}
	for _, netns := range append(names, "") {
		if netns != "" && !strings.HasPrefix(netns, desired.LinkPrefix) {
			continue
		}
		c, err := s.table.Load(ctx, netns)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the namespace is gone, and the table with it
		} else if err != nil {
			return nil, err
		}
		if c.Damage != "" {
			steers[desired.SteerKey{Netns: netns}] = desired.Steer{}
			continue
		}
		for m, mark := range c.Steers {
			steers[desired.SteerKey{Netns: netns, Src: m.Src, Dst: m.Dst}] = desired.Steer{Mark: mark.Mark, Mask: mark.Mask}
		}
	}
	return steers, nil
}

// Diff implements [reconcile.Kind].
func (*Steers) Diff(want, have desired.Steer) string {
	if want == have {
		return ""
	}
	return fmt.Sprintf("mark %#x/%#x, want %#x/%#x", have.Mark, have.Mask, want.Mark, want.Mask)
}

// Upsert implements [reconcile.Kind].
func (s *Steers) Upsert(ctx context.Context, k desired.SteerKey, want desired.Steer) error {
	return s.UpsertBatch(ctx, []reconcile.Item[desired.SteerKey, desired.Steer]{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (s *Steers) Delete(ctx context.Context, k desired.SteerKey, have desired.Steer) error {
	return s.DeleteBatch(ctx, []reconcile.Item[desired.SteerKey, desired.Steer]{{Key: k, Value: have}})[0]
}

// UpsertBatch implements [reconcile.Batcher]: one transaction a namespace, of
// all its items that are valid.
func (s *Steers) UpsertBatch(ctx context.Context, items []reconcile.Item[desired.SteerKey, desired.Steer]) []error {
	errs := make([]error, len(items))
	for netns, indexes := range steersByNamespace(items) {
		ch := nft.Change{AddSteers: map[nft.Match]nft.Mark{}}
		var valid []int
		for _, i := range indexes {
			match := nft.Match{Src: items[i].Key.Src, Dst: items[i].Key.Dst}
			mark := nft.Mark{Mark: items[i].Value.Mark, Mask: items[i].Value.Mask}
			if errs[i] = errors.Join(match.Validate(), mark.Validate()); errs[i] == nil {
				valid = append(valid, i)
				ch.AddSteers[match] = mark
			}
		}
		if len(valid) > 0 {
			failSteers(errs, valid, s.table.Apply(ctx, netns, ch))
		}
	}
	return errs
}

// DeleteBatch implements [reconcile.Batcher]: one transaction a namespace.
func (s *Steers) DeleteBatch(ctx context.Context, items []reconcile.Item[desired.SteerKey, desired.Steer]) []error {
	errs := make([]error, len(items))
	for netns, indexes := range steersByNamespace(items) {
		var ch nft.Change
		for _, i := range indexes {
			ch.DeleteSteers = append(ch.DeleteSteers, nft.Match{Src: items[i].Key.Src, Dst: items[i].Key.Dst})
		}
		err := s.table.Apply(ctx, netns, ch)
		if !errors.Is(err, fs.ErrNotExist) { // otherwise gone with its namespace
			failSteers(errs, indexes, err)
		}
	}
	return errs
}

// steersByNamespace returns the indexes of items by namespace.
func steersByNamespace(items []reconcile.Item[desired.SteerKey, desired.Steer]) map[string][]int {
	indexes := map[string][]int{}
	for i, item := range items {
		indexes[item.Key.Netns] = append(indexes[item.Key.Netns], i)
	}
	return indexes
}

// failSteers notes what befell a transaction with all that were in it.
func failSteers(errs []error, indexes []int, err error) {
	for _, i := range indexes {
		if errs[i] == nil {
			errs[i] = err
		}
	}
}
