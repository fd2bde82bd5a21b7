package route

import (
	"context"
	"errors"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Rules are the policy rules whose protocol number is ours. The kernel looks
// them up one by one for every packet, so there is one for each attachment and
// not one for each pod.
type Rules struct {
	host kernel.Host
}

type ruleItem = reconcile.Item[desired.RuleKey, desired.Rule]

var (
	_ reconcile.Kind[desired.RuleKey, desired.Rule]    = (*Rules)(nil)
	_ reconcile.Batcher[desired.RuleKey, desired.Rule] = (*Rules)(nil)
)

// NewRules returns the Kind.
func NewRules(host kernel.Host) *Rules {
	return &Rules{host: host}
}

// Name implements [reconcile.Kind].
func (*Rules) Name() string { return "rules" }

// List implements [reconcile.Kind].
func (r *Rules) List(ctx context.Context) (map[desired.RuleKey]desired.Rule, error) {
	out := map[desired.RuleKey]desired.Rule{}
	err := owned.VisitAll(ctx, r.host, func(netns string, h kernel.Handle) error {
		rules, err := h.Rules(ctx)
		if err != nil {
			return err
		}
		for _, have := range rules {
			// One that selects by more than we do was made by hand.
			if have.Protocol == desired.Protocol && !have.Other {
				out[desired.RuleKey{
					Netns: netns, IPv6: have.IPv6, Priority: have.Priority, Mark: have.Mark, Mask: have.Mask, Table: have.Table,
				}] = desired.Rule{}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Diff implements [reconcile.Kind]. A rule is all key.
func (*Rules) Diff(_, _ desired.Rule) string { return "" }

// Upsert implements [reconcile.Kind].
func (r *Rules) Upsert(ctx context.Context, k desired.RuleKey, want desired.Rule) error {
	return r.UpsertBatch(ctx, []ruleItem{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (r *Rules) Delete(ctx context.Context, k desired.RuleKey, have desired.Rule) error {
	return r.DeleteBatch(ctx, []ruleItem{{Key: k, Value: have}})[0]
}

// UpsertBatch implements [reconcile.Batcher].
func (r *Rules) UpsertBatch(ctx context.Context, items []ruleItem) []error {
	return r.batch(ctx, items, kernel.Handle.AddRules)
}

// DeleteBatch implements [reconcile.Batcher].
func (r *Rules) DeleteBatch(ctx context.Context, items []ruleItem) []error {
	errs := r.batch(ctx, items, kernel.Handle.DeleteRules)
	for i, err := range errs {
		if errors.Is(err, kernel.ErrNotFound) { // gone with its namespace
			errs[i] = nil
		}
	}
	return errs
}

func (r *Rules) batch(ctx context.Context, items []ruleItem, write func(kernel.Handle, context.Context, []kernel.Rule) []error) []error {
	netns := func(it ruleItem) string { return it.Key.Netns }
	return owned.Batch(ctx, r.host, items, netns, func(h kernel.Handle, items []ruleItem) []error {
		rules := make([]kernel.Rule, len(items))
		for i, it := range items {
			k := it.Key
			rules[i] = kernel.Rule{IPv6: k.IPv6, Priority: k.Priority, Mark: k.Mark, Mask: k.Mask, Table: k.Table, Protocol: desired.Protocol}
		}
		return write(h, ctx, rules)
	})
}
