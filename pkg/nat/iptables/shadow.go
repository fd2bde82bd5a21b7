package iptables

import (
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// shadowing returns the first rule before position index of the built-in chain
// that may decide about a packet which our chain has rules for; "" if none can.
func shadowing(t *table, c nat.Chain, index int) string {
	s := shadow{table: t, seen: map[visit]bool{}}
	for _, r := range t.rules[string(c)] {
		p := nat.ParseRule(r.spec)
		if w := (path{p.In, p.Out}); p.Other == "" && !slices.Contains(s.paths, w) {
			s.paths = append(s.paths, w)
		}
	}
	if len(s.paths) > maxPaths {
		s.paths = []path{{}} // any packet
	}
	all := paths(1)<<len(s.paths) - 1
	for _, r := range t.rules[c.Place().Hook][:index] {
		if s.decides(r.spec, all, true) {
			return r.spec
		}
	}
	return ""
}

// path is the links that a packet comes from and leaves by.
type path struct{ in, out nat.LinkPattern }

// paths is a set of shadow.paths, by position.
type paths uint64

const maxPaths = 63

type shadow struct {
	table *table
	paths []path         // what our rules are for
	seen  map[visit]bool // what decides nothing, as far as is known
}

// visit is a walk through a chain by packets of these paths.
type visit struct {
	chain string
	paths paths
}

// passive lists targets after which a packet goes on to the next rule. Any
// other extension is taken to decide.
var passive = []string{
	"", "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "LED", "LOG",
	"MARK", "NFLOG", "NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
}

// decides says whether a rule, or one that it leads to, may end the way of a
// packet of these paths through the built-in chain.
func (s shadow) decides(spec string, ps paths, top bool) bool {
	words := nat.Words(spec)
	to := target(words)
	if slices.Contains(passive, to) || to == "RETURN" && !top || to == "ACCEPT" && onlyKnown(words) {
		return false
	}
	if ps = s.matching(words, ps); ps == 0 {
		return false
	}
	v := visit{to, ps}
	switch {
	case !s.table.has(to):
		return true
	case s.seen[v] || ours(to):
		return false
	}
	s.seen[v] = true
	return slices.ContainsFunc(s.table.rules[to], func(r rule) bool { return s.decides(r.spec, ps, false) })
}

// matching returns the paths that a rule's links leave of some.
func (s shadow) matching(words []string, ps paths) paths {
	for i, p := range s.paths {
		if !meets(words, "-i", p.in) || !meets(words, "-o", p.out) {
			ps &^= 1 << i
		}
	}
	return ps
}

func meets(words []string, option string, link nat.LinkPattern) bool {
	i := slices.Index(words, option)
	if i < 0 || i+1 >= len(words) {
		return true
	}
	p := nat.LinkPattern(words[i+1])
	if i > 0 && words[i-1] == "!" {
		return !p.Covers(link)
	}
	return p.Overlaps(link)
}

// onlyKnown says whether a rule matches packets of known connections only: our
// chains accept those as well.
func onlyKnown(words []string) bool {
	i := slices.Index(words, "--ctstate")
	if i < 1 || i+1 >= len(words) || words[i-1] == "!" {
		return false
	}
	for _, state := range strings.Split(words[i+1], ",") {
		if state != "RELATED" && state != "ESTABLISHED" {
			return false
		}
	}
	return true
}
