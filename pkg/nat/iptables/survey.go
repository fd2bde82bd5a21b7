package iptables

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// What ip-masq-agent calls its chain, and how the comment of its jump begins,
// whatever the chain is called (its cmd/ip-masq-agent).
const (
	masqAgentChain   = "IP-MASQ-AGENT"
	masqAgentComment = "ip-masq-agent: "
)

var _ nat.Surveyor = (*Backend)(nil)

// Survey implements nat.Surveyor.
func (b *Backend) Survey(netns string) nat.Survey {
	f := b.seen.Last(netns)
	s := nat.Survey{MasqAgents: slices.Clone(f.agents)}
	for _, k := range nat.Keys() {
		if fault := f.faults[k]; fault.shadow != "" && k.Chain == nat.Postrouting && !b.pace.due(seat{netns, k}, b.now()) {
			s.Before = append(s.Before, k.Family.String()+" "+fault.text)
		}
	}
	return s
}

// masqAgents finds ip-masq-agent's chains in a family's tables.
func masqAgents(f nat.Family, tables []table) []nat.MasqAgent {
	t := find(tables, nat.Masq.Place().Table)
	if t == nil {
		return nil
	}
	var out []nat.MasqAgent
	first := true
	for _, r := range t.rules[nat.Masq.Place().Hook] {
		words := nat.Words(r.spec)
		to := target(words)
		if to == string(nat.Masq) {
			first = false
		}
		if t.has(to) && !ours(to) && (to == masqAgentChain || strings.HasPrefix(comment(words), masqAgentComment)) {
			a := nat.MasqAgent{Family: f, Chain: to, First: first}
			a.Keep, a.Masquerades = decisions(t.rules[to])
			out = append(out, a)
		}
	}
	return out
}

// decisions reads the ranges that a chain returns from before it masquerades.
func decisions(rules []rule) (keep []netip.Prefix, masquerades bool) {
	for _, r := range rules {
		words := nat.Words(r.spec)
		switch target(words) {
		case "MASQUERADE":
			return keep, true
		case "RETURN":
			i := slices.Index(words, "-d")
			if i < 0 {
				return keep, false // everything returns here
			}
			if p, err := netip.ParsePrefix(words[i+1]); err == nil && (i == 0 || words[i-1] != "!") {
				keep = append(keep, p)
			}
		}
	}
	return keep, false
}

func comment(words []string) string {
	if i := slices.Index(words, "--comment"); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return ""
}
