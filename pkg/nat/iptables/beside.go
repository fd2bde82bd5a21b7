package iptables

import (
	"context"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// BaseChain is a built-in chain of iptables-legacy that decides about packets, beside
// the variant that is in use.
type BaseChain struct {
	Family nat.Family
	Table  string
	Name   string
	Policy string // ACCEPT or DROP
	// Rules are those of the chain, and of the chains that it calls, that drop or
	// refuse packets, or in table nat translate sources; as iptables prints them.
	Rules []string
	// GRE is how many of the rules that drop name protocol 47.
	GRE int
}

// translating are targets after which no other rule translates a source.
var translating = []string{"SNAT", "MASQUERADE", "NETMAP"}

// HasLegacy tells whether iptables-legacy is installed.
func (b *Backend) HasLegacy() bool { return b.legacy() != nil }

func (b *Backend) legacy() *variant {
	switch {
	case b.inUse.mode == Legacy:
		return &b.inUse
	case b.other != nil && b.other.mode == Legacy:
		return b.other
	}
	return nil
}

// LegacyChains returns the built-in chains of iptables-legacy in a namespace that
// drop or translate packets, unless what is ours passes before. It makes no table,
// and starts two programs where there are some. Our own rules are left out.
func (b *Backend) LegacyChains(ctx context.Context, netns string) ([]BaseChain, error) {
	v := b.legacy()
	if v == nil {
		return nil, nil
	}
	var out []BaseChain
	err := b.in(ctx, netns, "read iptables-legacy", func() error {
		for _, f := range families {
			tables, err := v.dump(ctx, f, false)
			if err != nil {
				return err
			}
			for i := range tables {
				out = append(out, deciding(f, &tables[i])...)
			}
		}
		return nil
	})
	return out, err
}

// deciding returns the built-in chains of a table that drop or translate.
func deciding(f nat.Family, t *table) []BaseChain {
	var out []BaseChain
	for _, name := range t.chains {
		policy, base := t.policies[name]
		if !base || t.name == "nat" && name != "POSTROUTING" {
			continue
		}
		c := BaseChain{Family: f, Table: t.name, Name: name, Policy: policy}
		passed := c.begin(t)
		if policy == "DROP" && !passed || len(c.Rules) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// pass are the rules after which a built-in chain lets pass what is ours.
var pass = map[string][][]string{
	"FORWARD":     {{"-i vpx-+ -j ACCEPT"}, {"-o vpx-+ -j ACCEPT"}},
	"POSTROUTING": {{"-o vpx-+ -j ACCEPT"}},
	"INPUT":       {{"-p gre -j ACCEPT", "-p 47 -j ACCEPT"}},
	"OUTPUT":      {{"-p gre -j ACCEPT", "-p 47 -j ACCEPT"}},
}

// begin collects what decides up to where all that is ours has passed, and tells
// whether it has.
func (c *BaseChain) begin(t *table) bool {
	left := slices.Clone(pass[c.Name])
	some := len(left) > 0
	seen := map[string]bool{c.Name: true}
	for _, r := range t.rules[c.Name] {
		left = slices.DeleteFunc(left, func(either []string) bool { return slices.Contains(either, r.spec) })
		if some && len(left) == 0 {
			return true
		}
		c.rule(t, c.Name, r, seen)
	}
	return false
}

// collect adds what decides in a chain and in those that it calls.
func (c *BaseChain) collect(t *table, chain string, seen map[string]bool) {
	if seen[chain] || ours(chain) {
		return
	}
	seen[chain] = true
	for _, r := range t.rules[chain] {
		c.rule(t, chain, r, seen)
	}
}

func (c *BaseChain) rule(t *table, chain string, r rule, seen map[string]bool) {
	words := nat.Words(r.spec)
	to := target(words)
	switch {
	case t.has(to):
		c.collect(t, to, seen)
	case t.name == "nat" && slices.Contains(translating, to):
		c.Rules = append(c.Rules, "-A "+chain+" "+r.spec)
	case t.name != "nat" && (to == "DROP" || to == "REJECT"):
		c.Rules = append(c.Rules, "-A "+chain+" "+r.spec)
		if namesGRE(words) {
			c.GRE++
		}
	}
}

func namesGRE(words []string) bool {
	i := slices.Index(words, "-p")
	return i >= 0 && i+1 < len(words) && (strings.EqualFold(words[i+1], "gre") || words[i+1] == "47") && (i == 0 || words[i-1] != "!")
}
