package nftables

import (
	"fmt"
	"slices"

	"github.com/google/nftables"

	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// table is one family's table as the kernel has it.
type table struct {
	exists bool
	flags  uint32
	chains []*nftables.Chain
	rules  []nft.RawRule
	extra  []string // sets and the like, which our tables have none of
}

// fill lists what is in the table.
func (t *table) fill(s *nft.Session, f nat.Family) error {
	if !t.exists {
		return nil
	}
	var err error
	if t.rules, err = s.Rules(tableFamily(f), TableName); err != nil {
		return err
	}
	own := handle(f)
	sets, err := s.Conn().GetSets(own)
	if err != nil {
		return err
	}
	for _, set := range sets {
		t.extra = append(t.extra, "set "+set.Name)
	}
	return nil
}

func handle(f nat.Family) *nftables.Table {
	return &nftables.Table{Name: TableName, Family: tableFamily(f)}
}

// report adds what the table holds to a RuleSet.
func (t *table) report(f nat.Family, out *nat.RuleSet) {
	if !t.exists {
		return
	}
	stray := func(format string, args ...any) {
		out.Strays = append(out.Strays, fmt.Sprintf("%s %s", f, fmt.Sprintf(format, args...)))
	}
	if t.flags != 0 {
		stray("table %s with flags %#x", TableName, t.flags)
	}
	for _, e := range t.extra {
		stray("%s of table %s", e, TableName)
	}
	if len(t.chains) == 0 {
		stray("table %s without a chain", TableName)
	}
	for _, c := range t.chains {
		chain, ok := chainNamed(c.Name)
		if !ok {
			stray("chain %s of table %s", c.Name, TableName)
			continue
		}
		k := nat.Key{Family: f, Chain: chain}
		rules, fault := t.chainRules(k)
		out.Rules[k] = rules
		if !hangs(c, bases[chain]) {
			fault = fmt.Sprintf("chain %s of table %s has another hook, priority or policy", c.Name, TableName)
		}
		if fault != "" {
			out.Faults[k] = fault
		}
	}
}

// chainRules returns the rules of a chain, and what is wrong with the rule that
// stands for the match of its place.
func (t *table) chainRules(k nat.Key) (rules []nat.Rule, fault string) {
	rules = []nat.Rule{}
	guarded := !passesOver(k.Chain)
	for _, r := range t.rules {
		if r.Chain != bases[k.Chain].name {
			continue
		}
		if !guarded {
			guarded = true
			if r.Comment == localComment && r.Is(notToThisMachine()) {
				continue
			}
			fault = "packets to this machine are not passed over"
		}
		p := nat.ParseRule(r.Comment)
		if p.Other != "" || !r.Is(expressions(k, p)) {
			p = nat.Rule{Other: fmt.Sprintf("(a rule with the comment %q)", r.Comment)}
		}
		rules = append(rules, p)
	}
	if !guarded {
		fault = "packets to this machine are not passed over"
	}
	return rules, fault
}

// hangs says whether a chain is where it should be, and passes what no rule
// decides.
func hangs(c *nftables.Chain, b base) bool {
	return c.Hooknum != nil && *c.Hooknum == *b.hook && c.Priority != nil && *c.Priority == b.priority &&
		c.Type == b.kind && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

// change puts into a batch what makes the table as wanted, and says whether
// that is anything.
func (t *table) change(c *nftables.Conn, f nat.Family, want map[nat.Key][]nat.Rule) bool {
	wanted := 0
	for k := range want {
		if k.Family == f {
			wanted++
		}
	}
	rebuild := t.exists && (t.flags != 0 || len(t.extra) > 0)
	switch {
	case wanted == 0 && !t.exists:
		return false
	case wanted == 0:
		c.DelTable(handle(f))
		return true
	case rebuild:
		c.DelTable(handle(f))
		*t = table{}
	}
	if !t.exists {
		c.AddTable(handle(f))
	}
	keep := map[nat.Chain]bool{}
	var remove []*nftables.Chain
	for _, ch := range t.chains {
		own := &nftables.Chain{Table: handle(f), Name: ch.Name}
		chain, known := chainNamed(ch.Name)
		k := nat.Key{Family: f, Chain: chain}
		switch {
		case !known || len(want[k]) == 0 || !hangs(ch, bases[chain]):
			remove = append(remove, own)
		case t.holds(k, want[k]):
			keep[chain] = true
			continue
		}
		c.FlushChain(own) // all of them before the first goes: rules refer to chains
	}
	for _, own := range remove {
		c.DelChain(own)
	}
	changed := !t.exists || len(remove) > 0
	for _, chain := range nat.Chains() {
		k := nat.Key{Family: f, Chain: chain}
		if rules := want[k]; len(rules) > 0 && !keep[chain] {
			place(c, k, rules)
			changed = true
		}
	}
	return changed
}

// holds says whether a chain has just these rules.
func (t *table) holds(k nat.Key, want []nat.Rule) bool {
	have, fault := t.chainRules(k)
	return fault == "" && slices.Equal(have, want)
}

// place puts a chain and its rules into the batch. One that is there, and empty
// by now, is taken as it is.
func place(c *nftables.Conn, k nat.Key, want []nat.Rule) {
	b := bases[k.Chain]
	policy, priority := nftables.ChainPolicyAccept, b.priority
	own := &nftables.Chain{Table: handle(k.Family), Name: b.name, Type: b.kind, Hooknum: b.hook, Priority: &priority, Policy: &policy}
	c.AddChain(own)
	if passesOver(k.Chain) {
		c.AddRule(&nftables.Rule{Table: own.Table, Chain: own, Exprs: notToThisMachine(), UserData: nft.CommentData(localComment)})
	}
	for _, r := range want {
		c.AddRule(&nftables.Rule{Table: own.Table, Chain: own, Exprs: expressions(k, r), UserData: nft.CommentData(r.String())})
	}
}
