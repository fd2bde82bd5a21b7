package route

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// SteerTable is the packet filter that marks packets; see [nft.Tables].
type SteerTable interface {
	Load(ctx context.Context, netns string) (nft.Contents, error)
	Apply(ctx context.Context, netns string, ch nft.Change) error
	Exchange(ctx context.Context, remove, add map[nft.Match]nft.Mark) (done bool, err error)
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
//
// Beside the methods of the Kind, which the engine calls, [Steers.Exchange]
// may be called at any time.
type Steers struct {
	table      SteerTable
	namespaces SteerNamespaces

	mu sync.Mutex
	// exchanged is what Exchange has written since the last List began, a zero
	// Steer being a deletion. What the engine makes of an older list does not
	// concern these.
	exchanged map[desired.SteerKey]desired.Steer
	uses      uses // as of the last List, and of what was written since
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
	s.mu.Lock()
	s.exchanged = map[desired.SteerKey]desired.Steer{}
	s.mu.Unlock()
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
			steers[desired.SteerKey{Netns: netns, Src: m.Src, Dst: m.Dst}] = steerOf(mark)
		}
		for link, zone := range c.Zones {
			steers[desired.SteerKey{Netns: netns, Link: link}] = desired.Steer{Zone: zone}
		}
	}
	s.takeOver(steers)
	return steers, nil
}

// Diff implements [reconcile.Kind].
func (*Steers) Diff(want, have desired.Steer) string {
	if want == have {
		return ""
	}
	return steerText(have) + ", want " + steerText(want)
}

func steerText(s desired.Steer) string {
	if s.Refuse {
		return "refused"
	}
	return fmt.Sprintf("mark %#x/%#x zone %d", s.Mark, s.Mask, s.Zone)
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
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(items))
	for netns, indexes := range s.byNamespace(items) {
		ch := nft.Change{AddSteers: map[nft.Match]nft.Mark{}, AddZones: map[string]uint16{}}
		var valid []int
		for _, i := range indexes {
			if errs[i] = addSteer(&ch, items[i].Key, items[i].Value); errs[i] == nil {
				valid = append(valid, i)
			}
		}
		if len(valid) > 0 {
			err := s.table.Apply(ctx, netns, ch)
			failSteers(errs, valid, err)
			if err == nil && netns == "" {
				s.uses.add(ch.AddSteers, 1)
			}
		}
	}
	return errs
}

// addSteer adds an object to a change, or returns why it cannot be written.
func addSteer(ch *nft.Change, k desired.SteerKey, v desired.Steer) error {
	if k.Link != "" {
		if err := nft.ValidateZone(k.Link, v.Zone); err != nil {
			return err
		}
		ch.AddZones[k.Link] = v.Zone
		return nil
	}
	match, mark := nft.Match{Src: k.Src, Dst: k.Dst}, markOf(v)
	if err := errors.Join(match.Validate(), mark.Validate()); err != nil {
		return err
	}
	ch.AddSteers[match] = mark
	return nil
}

// DeleteBatch implements [reconcile.Batcher]: one transaction a namespace.
func (s *Steers) DeleteBatch(ctx context.Context, items []reconcile.Item[desired.SteerKey, desired.Steer]) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(items))
	for netns, indexes := range s.byNamespace(items) {
		var ch nft.Change
		for _, i := range indexes {
			if link := items[i].Key.Link; link != "" {
				ch.DeleteZones = append(ch.DeleteZones, link)
				continue
			}
			ch.DeleteSteers = append(ch.DeleteSteers, nft.Match{Src: items[i].Key.Src, Dst: items[i].Key.Dst})
		}
		err := s.table.Apply(ctx, netns, ch)
		if !errors.Is(err, fs.ErrNotExist) { // otherwise gone with its namespace
			failSteers(errs, indexes, err)
		}
	}
	return errs
}

// byNamespace returns the indexes of items by namespace, without those that
// Exchange has overtaken: they are as they should be. It needs s.mu.
func (s *Steers) byNamespace(items []reconcile.Item[desired.SteerKey, desired.Steer]) map[string][]int {
	indexes := map[string][]int{}
	for i, item := range items {
		if _, overtaken := s.exchanged[item.Key]; !overtaken {
			indexes[item.Key.Netns] = append(indexes[item.Key.Netns], i)
		}
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
