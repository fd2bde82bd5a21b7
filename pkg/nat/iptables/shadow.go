package iptables

import (
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// shadowing returns the first rule before position index of the built-in chain
// that may decide about a packet which our chain has rules for; "" if none can.
func shadowing(t *table, c nat.Chain, index int) string {
	s := shadow{table: t, seen: map[string]bool{}}
	for _, r := range t.rules[string(c)] {
		if p := parseRule(r.spec); p.Other == "" {
			s.traffic = append(s.traffic, path{p.In, p.Out})
		}
	}
	for _, r := range t.rules[c.Place().Hook][:index] {
		if s.decides(r.spec, true) {
			return r.spec
		}
	}
	return ""
}

// path is the links that a packet comes from and leaves by.
type path struct{ in, out nat.LinkPattern }

type shadow struct {
	table   *table
	traffic []path          // what our rules are for
	seen    map[string]bool // chains that decide nothing, as far as is known
}

// passive lists targets after which a packet goes on to the next rule. Any
// other extension is taken to decide.
var passive = []string{
	"", "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "LED", "LOG",
	"MARK", "NFLOG", "NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
}

// decides says whether a rule, or one that it leads to, may end a packet's way
// through the built-in chain.
func (s shadow) decides(spec string, top bool) bool {
	words := split(spec)
	to := target(words)
	switch {
	case slices.Contains(passive, to), to == "RETURN" && !top:
		return false
	case !s.concerns(words), to == "ACCEPT" && onlyKnown(words):
		return false
	case !s.table.has(to):
		return true
	case s.seen[to] || ours(to):
		return false
	}
	s.seen[to] = true
	return slices.ContainsFunc(s.table.rules[to], func(r rule) bool { return s.decides(r.spec, false) })
}

// concerns says whether a rule's links leave it a packet of ours.
func (s shadow) concerns(words []string) bool {
	return slices.ContainsFunc(s.traffic, func(p path) bool {
		return meets(words, "-i", p.in) && meets(words, "-o", p.out)
	})
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
