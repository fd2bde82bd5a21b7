package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// edit is the change of one table, in iptables-restore's words.
type edit struct {
	table                                    string
	declare, unjump, empty, add, jump, erase []string
}

// String returns the transaction, or "" if there is nothing to change. Chains
// are declared first, which also empties them; jumps go before what they lead
// to.
func (e *edit) String() string {
	lines := slices.Concat(e.declare, e.unjump, e.empty, e.add, e.jump, e.erase)
	if len(lines) == 0 {
		return ""
	}
	return fmt.Sprintf("*%s\n%s\nCOMMIT\n", e.table, strings.Join(lines, "\n"))
}

// wanted is what one family's tables should hold.
type wanted map[nat.Chain][]nat.Rule

// script returns the transactions that bring one family's tables from what they
// are to what is wanted. move says whether a shadowed jump may be moved now.
func script(have []table, want wanted, move func(c nat.Chain, shadow string) bool) string {
	var b strings.Builder
	for _, name := range tableNames(have) {
		e := edit{table: name}
		t := find(have, name)
		for _, c := range nat.Chains() {
			if _, ok := want[c]; ok && c.Place().Table == name {
				e.place(t, c, want[c], move)
			}
		}
		e.clear(t, want)
		b.WriteString(e.String())
	}
	return b.String()
}

// tableNames returns our tables in writing order, then all others.
func tableNames(have []table) []string {
	var names []string
	for _, c := range nat.Chains() {
		if n := c.Place().Table; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, t := range have {
		if !slices.Contains(names, t.name) {
			names = append(names, t.name)
		}
	}
	return names
}

// place writes a chain and its jump as far as they are not right.
func (e *edit) place(t *table, c nat.Chain, want []nat.Rule, move func(c nat.Chain, shadow string) bool) {
	if !t.has(string(c)) || !slices.Equal(chainRules(t, c), want) {
		e.declare = append(e.declare, fmt.Sprintf(":%s - [0:0]", c))
		for _, r := range want {
			e.add = append(e.add, fmt.Sprintf("-A %s %s", c, r))
		}
	}
	switch f := findFault(t, c); {
	case f.text == "", f.shadow != "" && !move(c, f.shadow):
		return
	}
	for _, j := range jumpsTo(t, string(c)) {
		e.unjump = append(e.unjump, fmt.Sprintf("-D %s %s", j.chain, j.spec))
	}
	p := c.Place()
	if p.Last {
		e.jump = append(e.jump, fmt.Sprintf("-A %s %s", p.Hook, p.Jump(c)))
		return
	}
	e.jump = append(e.jump, fmt.Sprintf("-I %s 1 %s", p.Hook, p.Jump(c)))
}

// clear removes chains of ours that are not wanted in this table, with the
// jumps into them.
func (e *edit) clear(t *table, want wanted) {
	if t == nil {
		return
	}
	for _, c := range t.chains {
		_, keep := want[nat.Chain(c)]
		if !ours(c) || keep && nat.Chain(c).Place().Table == t.name {
			continue
		}
		for _, j := range jumpsTo(t, c) {
			e.unjump = append(e.unjump, fmt.Sprintf("-D %s %s", j.chain, j.spec))
		}
		e.empty = append(e.empty, "-F "+c)
		e.erase = append(e.erase, "-X "+c)
	}
}

func ours(chain string) bool { return strings.HasPrefix(chain, nat.ChainPrefix) }

// chainRules returns the rules of a chain of ours.
func chainRules(t *table, c nat.Chain) []nat.Rule {
	rules := []nat.Rule{}
	for _, r := range t.rules[string(c)] {
		rules = append(rules, nat.ParseRule(r.spec))
	}
	return rules
}

// jump is a rule outside our chains that calls one of them.
type jump struct {
	chain string
	index int
	spec  string
}

func jumpsTo(t *table, c string) []jump {
	if t == nil {
		return nil
	}
	var js []jump
	for _, from := range t.chains {
		if ours(from) {
			continue // goes with its chain
		}
		for i, r := range t.rules[from] {
			if target(nat.Words(r.spec)) == c {
				js = append(js, jump{from, i, r.spec})
			}
		}
	}
	return js
}

// fault is what is wrong with the way to a chain.
type fault struct {
	text   string // "" if nothing
	shadow string // the rule before it, if only its place is wrong
}

// findFault judges the jump of a chain that should be called.
func findFault(t *table, c nat.Chain) fault {
	p := c.Place()
	js := jumpsTo(t, string(c))
	switch {
	case len(js) == 0:
		return fault{text: fmt.Sprintf("jump from %s to %s missing", p.Hook, c)}
	case len(js) > 1:
		return fault{text: fmt.Sprintf("%d jumps to %s, not one", len(js), c)}
	}
	j := js[0]
	if want := nat.Words(p.Jump(c)); j.chain != p.Hook || !slices.Equal(nat.Words(j.spec), want) {
		return fault{text: fmt.Sprintf("jump to %s is \"%s %s\", not \"%s %s\"", c, j.chain, j.spec, p.Hook, p.Jump(c))}
	}
	if p.Last {
		return fault{} // the rules of others come first, as they should
	}
	if spec := shadowing(t, c, j.index); spec != "" {
		return fault{text: fmt.Sprintf("%s comes after %q of %s", c, spec, p.Hook), shadow: spec}
	}
	return fault{}
}
