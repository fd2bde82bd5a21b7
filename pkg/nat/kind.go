package nat

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Backend reads and writes a namespace's rules. netns is a name below
// /run/netns, or "" for the agent's own namespace. Methods may be called
// concurrently for different namespaces.
type Backend interface {
	// Read returns what is in the kernel now. An error means "unknown".
	Read(ctx context.Context, netns string) (RuleSet, error)
	// Write makes the rules those of want. At no moment does a packet meet a
	// part of a chain. What is as wanted is not written. Foreign rules stay.
	Write(ctx context.Context, netns string, want RuleSet) error
	// Counters returns the counts of our Drop rules, sorted.
	Counters(ctx context.Context, netns string) ([]Counter, error)
}

// Kind is the address translation and packet filter of every namespace: one
// object for each. Its values are RuleSets, because what is found in a kernel
// need not be what any desired.NAT asks for; RenderAll makes the wanted ones.
type Kind struct {
	backend    Backend
	namespaces func(context.Context) ([]string, error)
}

var _ reconcile.Kind[desired.NATKey, RuleSet] = (*Kind)(nil)

// NewKind returns a Kind. namespaces lists those that may hold rules of ours: ""
// and all whose names begin with desired.LinkPrefix.
func NewKind(b Backend, namespaces func(context.Context) ([]string, error)) *Kind {
	return &Kind{backend: b, namespaces: namespaces}
}

// Name returns "nat".
func (*Kind) Name() string { return "nat" }

// List reads every namespace. One that disappears meanwhile is left out.
func (k *Kind) List(ctx context.Context) (map[desired.NATKey]RuleSet, error) {
	names, err := k.namespaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	out := make(map[desired.NATKey]RuleSet, len(names))
	var errs []error
	for _, n := range names {
		s, err := k.backend.Read(ctx, n)
		switch {
		case err == nil:
			if !s.Empty() {
				out[desired.NATKey{Netns: n}] = s
			}
		case ctx.Err() != nil:
			return nil, err
		case !k.gone(ctx, n):
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// gone says whether a namespace is known not to exist.
func (k *Kind) gone(ctx context.Context, netns string) bool {
	names, err := k.namespaces(ctx)
	return err == nil && !slices.Contains(names, netns)
}

// Diff names the first rule or chain that is not as wanted.
func (*Kind) Diff(want, have RuleSet) string { return Diff(want, have) }

// Upsert writes the chains of one namespace that differ.
func (k *Kind) Upsert(ctx context.Context, key desired.NATKey, want RuleSet) error {
	return k.backend.Write(ctx, key.Netns, want)
}

// Delete removes chains and jumps of ours, in whatever firewall they are. In a
// namespace that is gone they are gone too.
func (k *Kind) Delete(ctx context.Context, key desired.NATKey, _ RuleSet) error {
	err := k.backend.Write(ctx, key.Netns, RuleSet{})
	if err != nil && ctx.Err() == nil && k.gone(ctx, key.Netns) {
		return nil
	}
	return err
}
