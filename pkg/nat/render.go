package nat

import (
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// Header bytes of a TCP segment without options (RFC 9293, RFC 791, RFC 8200).
const (
	headersIPv4 = 40
	headersIPv6 = 60
)

// ICMPv6 types that a guarded link must let in (RFC 4443 registry): multicast
// listener query, neighbor solicitation, neighbor advertisement.
var neededICMPv6 = []uint8{130, 135, 136}

// RenderAll renders every namespace's NAT: the wanted objects of Kind.
func RenderAll(all map[desired.NATKey]desired.NAT) map[desired.NATKey]RuleSet {
	out := make(map[desired.NATKey]RuleSet, len(all))
	for k, n := range all {
		if s := Render(n); !s.Empty() {
			out[k] = s
		}
	}
	return out
}

// Render returns the rules that n asks for; the package comment says which. It
// always succeeds: RuleSet.Check finds values that no rule can hold.
func Render(n desired.NAT) RuleSet {
	s := RuleSet{Rules: map[Key][]Rule{}}
	for _, f := range []Family{IPv4, IPv6} {
		for c, rules := range map[Chain][]Rule{
			Postrouting: translate(n.SNAT, f),
			Masq:        masquerade(n.Masquerade, f),
			MSS:         clamp(n.Clamp, f),
			Input:       input(n.Guarded, f),
			Forward:     forward(n, f),
		} {
			if len(rules) > 0 {
				s.Rules[Key{f, c}] = rules
			}
		}
	}
	return s
}

func pattern(link string) LinkPattern {
	if link == "+" {
		return ""
	}
	return LinkPattern(link)
}

func family(s desired.SNAT) Family {
	if to := s.To.Unmap(); to.IsValid() && to.Is6() || !to.IsValid() && s.IPv6 {
		return IPv6
	}
	return IPv4
}

func ofFamily(a netip.Addr, f Family) bool { return a.IsValid() && a.Is4() == (f == IPv4) }

func translate(snats []desired.SNAT, f Family) []Rule {
	var rules []Rule
	for _, s := range snats {
		if family(s) != f {
			continue
		}
		out := pattern(s.Out)
		for _, a := range s.Except {
			if a = a.Unmap(); ofFamily(a, f) {
				rules = append(rules, Rule{Source: a, Out: out, Action: Accept})
			}
		}
		r := Rule{Out: out, Action: Masquerade}
		if s.To.IsValid() {
			r.Action, r.To = SNAT, s.To.Unmap()
		}
		rules = append(rules, r)
	}
	return rules
}

func masquerade(all []desired.Masquerade, f Family) []Rule {
	var rules []Rule
	for _, m := range all {
		if m.IPv6 != (f == IPv6) {
			continue
		}
		for _, p := range m.Keep {
			r := Rule{Action: Return}
			if p.Bits() > 0 { // iptables does not print a match of everything
				r.Dest = p
			}
			rules = append(rules, r)
		}
		rules = append(rules, Rule{Action: Masquerade})
	}
	return rules
}

func clamp(clamps []desired.Clamp, f Family) []Rule {
	headers := headersIPv4
	if f == IPv6 {
		headers = headersIPv6
	}
	var rules []Rule
	for _, c := range clamps {
		l, mss := pattern(c.Link), c.MTU-headers
		rules = append(rules,
			Rule{Out: l, SYN: true, Action: SetMSS, MSS: mss},
			Rule{In: l, SYN: true, Action: SetMSS, MSS: mss},
			Rule{Out: l, SYN: true, Action: ClampMSS},
		)
	}
	return rules
}

func input(guarded []string, f Family) []Rule {
	var rules []Rule
	for _, g := range guarded {
		in := pattern(g)
		rules = append(rules, Rule{In: in, State: Known, Action: Accept})
		if f == IPv6 {
			for _, t := range neededICMPv6 {
				rules = append(rules, Rule{In: in, ICMPv6: t, Action: Accept})
			}
		}
		rules = append(rules,
			Rule{In: in, State: Invalid, Action: Drop, Reason: InvalidPacket},
			Rule{In: in, Action: Drop, Reason: InboundUserVPC},
		)
	}
	return rules
}

// forward orders rules as the package comment numbers them. Most packets match
// one of the first rules: established connections.
func forward(n desired.NAT, f Family) []Rule {
	var known, invalid, named, closed, open []Rule
	for _, g := range n.Guarded {
		in := pattern(g)
		known = append(known, Rule{In: in, State: Known, Action: Accept})
		invalid = append(invalid, Rule{In: in, State: Invalid, Action: Drop, Reason: InvalidPacket})
		closed = append(closed, Rule{In: in, Action: Drop, Reason: InboundUserVPC})
	}
	translated := translatedLinks(n, f)
	for _, out := range translated {
		invalid = append(invalid, Rule{Out: out, State: Untranslated, Action: Drop, Reason: InvalidPacket})
	}
	for _, out := range translatedLinks(n, f.other()) {
		if !slices.ContainsFunc(translated, func(t LinkPattern) bool { return t.Covers(out) }) {
			invalid = append(invalid, Rule{Out: out, Action: Drop, Reason: NoSourceNAT})
		}
	}
	for _, w := range n.Forward {
		r := Rule{In: pattern(w.In), Out: pattern(w.Out), Action: Accept}
		if r.In == "" {
			if slices.Contains(translated, r.Out) { // or rule 4 refuses it
				known = append(known, Rule{Out: r.Out, State: Known, Action: Accept})
			}
			open = append(open, r)
		} else {
			named = append(named, r)
		}
	}
	return slices.Concat(known, invalid, named, closed, open)
}

// translatedLinks returns the links with source NAT in a family, as few
// patterns as Guarded allows: every rule costs each packet.
func translatedLinks(n desired.NAT, f Family) []LinkPattern {
	var outs []LinkPattern
	for _, s := range n.SNAT {
		if family(s) != f {
			continue
		}
		out := pattern(s.Out)
		for _, g := range n.Guarded {
			if pattern(g).Covers(out) {
				out = pattern(g)
				break
			}
		}
		if !slices.Contains(outs, out) {
			outs = append(outs, out)
		}
	}
	return outs
}
