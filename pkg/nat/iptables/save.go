package iptables

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// table is one table as iptables-save prints it.
type table struct {
	name   string
	chains []string // all, in order
	rules  map[string][]rule
	// policies are those of built-in chains.
	policies map[string]string
	hidden   bool // there, but iptables-nft cannot show it; all else is empty
}

// rule is one rule of a chain.
type rule struct {
	spec    string // what follows "-A CHAIN "
	packets uint64 // 0 unless saved with counters
}

func (t *table) has(chain string) bool { return t != nil && slices.Contains(t.chains, chain) }

// find returns the table of that name or nil.
func find(ts []table, name string) *table {
	for i := range ts {
		if ts[i].name == name {
			return &ts[i]
		}
	}
	return nil
}

// errHidden says that iptables-nft cannot show a table, because another program
// put rules into it that are not iptables'.
var errHidden = errors.New("holds rules that iptables cannot show; move them to a table of their own (see nft list ruleset)")

// checkVisible returns errHidden if a table that we need is hidden: what of
// ours is in there is unknown.
func checkVisible(ts []table) error {
	for _, c := range nat.Chains() {
		if t := find(ts, c.Place().Table); t != nil && t.hidden {
			return fmt.Errorf("table %s %w", t.name, errHidden)
		}
	}
	return nil
}

// parseSave reads the output of iptables-save. An unfinished table is an error:
// a list that is cut off must not pass for a shorter one.
func parseSave(out string) ([]table, error) {
	var tables []table
	var cur *table
	for i, line := range strings.Split(out, "\n") {
		line = strings.TrimSpace(line)
		name, hidden := incompatible(line)
		switch {
		case hidden && cur == nil:
			tables = append(tables, table{name: name, hidden: true})
		case line == "" || line[0] == '#':
		case line[0] == '*' && cur == nil:
			cur = &table{name: line[1:], rules: map[string][]rule{}, policies: map[string]string{}}
		case line == "COMMIT" && cur != nil:
			tables = append(tables, *cur)
			cur = nil
		case cur == nil || !cur.line(line):
			return nil, fmt.Errorf("line %d of iptables-save is not understood: %q", i+1, line)
		}
	}
	if cur != nil {
		return nil, fmt.Errorf("output of iptables-save ends within table %s", cur.name)
	}
	return tables, nil
}

// incompatible recognizes the comment by which iptables-nft-save tells that it
// leaves a table out; it tells in no other way (iptables/xtables-save.c).
func incompatible(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, "# Table `")
	if !ok {
		return "", false
	}
	name, rest, ok := strings.Cut(rest, "'")
	return name, ok && strings.HasPrefix(rest, " is incompatible")
}

// line adds a chain or rule.
func (t *table) line(line string) bool {
	if chain, ok := strings.CutPrefix(line, ":"); ok {
		chain, rest, ok := strings.Cut(chain, " ")
		t.chains = append(t.chains, chain)
		if policy, _, _ := strings.Cut(rest, " "); policy != "-" {
			t.policies[chain] = policy
		}
		return ok && chain != ""
	}
	var r rule
	if counted, ok := strings.CutPrefix(line, "["); ok {
		packets, rest, _ := strings.Cut(counted, ":")
		_, rest, ok = strings.Cut(rest, "] ")
		n, err := strconv.ParseUint(packets, 10, 64)
		if err != nil || !ok {
			return false
		}
		r.packets, line = n, rest
	}
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return false
	}
	chain, spec, _ := strings.Cut(rest, " ")
	r.spec = spec
	t.rules[chain] = append(t.rules[chain], r)
	return t.has(chain)
}

// target returns the chain or extension that a rule's words name, "" if none.
func target(words []string) string {
	for i, w := range words[:max(len(words)-1, 0)] {
		if w == "-j" || w == "-g" {
			return words[i+1]
		}
	}
	return ""
}
