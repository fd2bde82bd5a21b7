package bgp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Paths are the paths that a Speaker announces, as the last kind to be made and
// the first to be broken: what is announced is in place.
type Paths struct {
	speaker Speaker
}

type pathItem = reconcile.Item[desired.PathKey, desired.Path]

var (
	_ reconcile.Kind[desired.PathKey, desired.Path]    = (*Paths)(nil)
	_ reconcile.Batcher[desired.PathKey, desired.Path] = (*Paths)(nil)
)

// NewPaths returns the Kind.
func NewPaths(s Speaker) *Paths { return &Paths{speaker: s} }

// Name implements [reconcile.Kind].
func (*Paths) Name() string { return "paths" }

var errNotReady = errors.New("BGP has not started yet")

func (p *Paths) ready() error {
	select {
	case <-p.speaker.Ready():
		return nil
	default:
		return errNotReady
	}
}

// List implements [reconcile.Kind].
func (p *Paths) List(context.Context) (map[desired.PathKey]desired.Path, error) {
	if err := p.ready(); err != nil {
		return nil, err
	}
	out := map[desired.PathKey]desired.Path{}
	for _, have := range p.speaker.Announced() {
		v := desired.Path{NextHop: have.NextHop, Keyed: have.Encapsulation.Keyed, Key: have.Encapsulation.Key}
		for _, t := range have.Targets {
			v.Targets = append(v.Targets, desired.RouteTarget(t))
		}
		out[desired.PathKey{Netns: have.Label, RD: desired.RouteDistinguisher(have.RD), Prefix: have.Prefix}] = v
	}
	return out, nil
}

// Diff implements [reconcile.Kind].
func (*Paths) Diff(want, have desired.Path) string {
	if want.NextHop == have.NextHop && want.Keyed == have.Keyed && want.Key == have.Key && slices.Equal(want.Targets, have.Targets) {
		return ""
	}
	return fmt.Sprintf("via %s key %d %v, want via %s key %d %v", have.NextHop, have.Key, have.Targets, want.NextHop, want.Key, want.Targets)
}

// Upsert implements [reconcile.Kind].
func (p *Paths) Upsert(ctx context.Context, k desired.PathKey, want desired.Path) error {
	return p.UpsertBatch(ctx, []pathItem{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (p *Paths) Delete(ctx context.Context, k desired.PathKey, have desired.Path) error {
	return p.DeleteBatch(ctx, []pathItem{{Key: k, Value: have}})[0]
}

// UpsertBatch implements [reconcile.Batcher].
func (p *Paths) UpsertBatch(ctx context.Context, items []pathItem) []error {
	if err := p.ready(); err != nil {
		return slices.Repeat([]error{err}, len(items))
	}
	paths := make([]Path, len(items))
	for i, it := range items {
		paths[i] = Path{
			NLRI: nlri(it.Key), NextHop: it.Value.NextHop, Label: it.Key.Netns,
			Encapsulation: Encapsulation{GRE: true, Keyed: it.Value.Keyed, Key: it.Value.Key},
		}
		for _, t := range it.Value.Targets {
			paths[i].Targets = append(paths[i].Targets, Target(t))
		}
	}
	return p.speaker.Announce(ctx, paths)
}

// DeleteBatch implements [reconcile.Batcher].
func (p *Paths) DeleteBatch(ctx context.Context, items []pathItem) []error {
	routes := make([]NLRI, len(items))
	for i, it := range items {
		routes[i] = nlri(it.Key)
	}
	return p.speaker.Withdraw(ctx, routes)
}

func nlri(k desired.PathKey) NLRI { return NLRI{RD: RouteDistinguisher(k.RD), Prefix: k.Prefix} }
