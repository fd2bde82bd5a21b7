package kerneltest

import (
	"context"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// PutRule adds a rule as another program would, also one that the contract's methods
// cannot write.
func (f *Fake) PutRule(netns string, r kernel.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.spaces[netns]
	s.rules = append(s.rules, r)
	f.hint(netns, kernel.HintRules)
}

func (h *handle) Rules(ctx context.Context) ([]kernel.Rule, error) {
	var all []kernel.Rule
	err := h.list(ctx, "Rules", func(s *space) error {
		all = slices.Clone(s.rules)
		return nil
	})
	return all, err
}

func (h *handle) AddRules(ctx context.Context, rs []kernel.Rule) []error {
	return changeEach(ctx, h, "AddRules", rs, kernel.Rule.String, func(s *space, r kernel.Rule) error {
		if err := r.Validate(); err != nil {
			return err
		}
		if !slices.Contains(s.rules, r) {
			s.rules = append(s.rules, r)
			h.fake.hint(s.name, kernel.HintRules)
		}
		return nil
	})
}

func (h *handle) DeleteRules(ctx context.Context, rs []kernel.Rule) []error {
	return changeEach(ctx, h, "DeleteRules", rs, kernel.Rule.String, func(s *space, r kernel.Rule) error {
		if err := r.Validate(); err != nil {
			return err
		}
		if i := slices.Index(s.rules, r); i >= 0 {
			s.rules = slices.Delete(s.rules, i, i+1)
			h.fake.hint(s.name, kernel.HintRules)
		}
		return nil
	})
}
