package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// view is what one family's tables hold, in both variants.
type view struct {
	inUse []table
	other []table
}

// look reads one family on the calling thread's namespace. The variant that is
// not in use holds nothing that counts, so it may be unreadable.
func (b *Backend) look(ctx context.Context, f nat.Family) (view, error) {
	var v view
	var err error
	if v.inUse, err = b.inUse.dump(ctx, f, false); err == nil {
		err = checkVisible(v.inUse)
	}
	if err != nil || b.other == nil {
		return v, err
	}
	if v.other, err = b.other.dump(ctx, f, false); err != nil && ctx.Err() == nil {
		b.unreadable.Do(func() {
			b.log.Warn("cannot look for rules of ours that an earlier run may have left in the other variant of iptables", "variant", string(b.other.mode), "error", err)
		})
		return v, nil
	}
	return v, err
}

// finding is what of ours is in a namespace, in both variants.
type finding struct {
	rules  map[nat.Key][]nat.Rule
	faults map[nat.Key]fault
	strays []string
	agents []nat.MasqAgent
	noIPv6 bool
}

// Read returns what chains of ours hold in a namespace, in both variants. A
// jump that others have shadowed is a fault only when it may be moved again.
func (b *Backend) Read(ctx context.Context, netns string) (nat.RuleSet, error) {
	var f finding
	err := b.in(ctx, netns, "read rules", func() (err error) {
		f, err = b.find(ctx, netns)
		return err
	})
	if err != nil {
		b.seen.Forget(netns)
		return nat.RuleSet{}, err
	}
	s := nat.RuleSet{Rules: maps.Clone(f.rules), Faults: map[nat.Key]string{}, Strays: slices.Clone(f.strays), NoIPv6: f.noIPv6}
	for k, fault := range f.faults {
		if fault.shadow == "" || b.pace.due(seat{netns, k}, b.now()) {
			s.Faults[k] = fault.text
		}
	}
	return s, nil
}

// find reads the calling thread's namespace, or remembers what it found if the
// kernel says that the rules are the same as then.
func (b *Backend) find(ctx context.Context, netns string) (finding, error) {
	if err := ctx.Err(); err != nil {
		return finding{}, err
	}
	// Taken first: a change after it makes the next stamp differ.
	now, stampErr := takeStamp()
	if stampErr == nil {
		if f, ok := b.seen.Get(netns, now); ok {
			return f, nil
		}
	}
	f := finding{rules: map[nat.Key][]nat.Rule{}, faults: map[nat.Key]fault{}}
	for _, family := range families {
		if family == nat.IPv6 && !hasIPv6() {
			f.noIPv6 = true
			continue
		}
		v, err := b.look(ctx, family)
		if err != nil {
			return f, err
		}
		f.add(family, v)
	}
	b.seen.Put(netns, now, stampErr == nil, f)
	return f, nil
}

// knowsNothingOf says whether the calling thread's namespace is known to hold
// nothing of ours now.
func (b *Backend) knowsNothingOf(netns string) bool {
	now, err := takeStamp()
	if err != nil {
		return false
	}
	f, ok := b.seen.Get(netns, now)
	return ok && len(f.rules)+len(f.strays) == 0
}

// add notes what one family's tables hold.
func (f *finding) add(family nat.Family, v view) {
	f.agents = append(f.agents, masqAgents(family, v.inUse)...)
	f.agents = append(f.agents, masqAgents(family, v.other)...)
	for i := range v.inUse {
		t := &v.inUse[i]
		for _, name := range t.chains {
			c := nat.Chain(name)
			switch {
			case !ours(name):
			case c.Place().Table != t.name:
				f.strays = append(f.strays, fmt.Sprintf("%s chain %s of table %s", family, name, t.name))
			default:
				k := nat.Key{Family: family, Chain: c}
				f.rules[k] = chainRules(t, c)
				if fault := findFault(t, c); fault.text != "" {
					f.faults[k] = fault
				}
			}
		}
	}
	for _, t := range v.other {
		for _, name := range t.chains {
			if ours(name) {
				f.strays = append(f.strays, fmt.Sprintf("%s chain %s of table %s in the variant of iptables that is not in use", family, name, t.name))
			}
		}
	}
}
