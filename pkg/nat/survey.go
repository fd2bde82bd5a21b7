package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// MasqAgent is a chain of ip-masq-agent in one address family.
type MasqAgent struct {
	Family Family
	Chain  string // IP-MASQ-AGENT, unless it was started with another name
	// First says that its jump stands before that of our Masq chain, or that
	// we have none.
	First bool
	// Keep are the destinations toward which it leaves sources alone.
	Keep []netip.Prefix
	// Masquerades says that it masquerades toward all others.
	Masquerades bool
}

// Survey is what a Backend has found beside our rules that may decide about
// packets we have rules for.
type Survey struct {
	MasqAgents []MasqAgent
	// Before names rules that decide before ours do and stay there for a
	// while, because the backend moves its rules with pauses only.
	Before []string
	// Refusing names chains that drop what they do not know, and that no rule of
	// ours can overrule.
	Refusing []string
}

// Surveyor is a Backend that can look around. What it tells is as old as its
// last Read or Write of the namespace.
type Surveyor interface {
	Survey(netns string) Survey
}

// maxExamples bounds how many ranges a problem names.
const maxExamples = 3

// Conflicts says, for each address family, which rule wins where ip-masq-agent
// and our Masquerade decide differently. Both only ever masquerade or pass a
// packet on: whichever masquerades wins, wherever it stands. Attachments come
// before both, unless Before says otherwise.
func (s Survey) Conflicts(ours []desired.Masquerade) []string {
	var out []string
	for _, b := range s.Before {
		out = append(out, fmt.Sprintf("a rule of another program decides about packets to attachments before ours: %s; it wins until our rule is moved up again", b))
	}
	for _, r := range s.Refusing {
		out = append(out, fmt.Sprintf("%s drops by default what passes through this machine, attachments' packets too unless a rule there accepts them: accept what goes to and comes from vpx-*, or set nat.backend to iptables", r))
	}
	for _, a := range s.MasqAgents {
		i := slices.IndexFunc(ours, func(m desired.Masquerade) bool { return m.IPv6 == (a.Family == IPv6) })
		if i < 0 || !a.Masquerades {
			continue
		}
		theirs, mine := outside(ours[i].Keep, a.Keep), outside(a.Keep, ours[i].Keep)
		var parts []string
		if len(theirs) > 0 {
			parts = append(parts, fmt.Sprintf("toward %s its rule wins and masquerades, though nat.masq.config keeps the source", examples(theirs)))
		}
		if len(mine) > 0 {
			parts = append(parts, fmt.Sprintf("toward %s our rule wins and masquerades, though it keeps the source", examples(mine)))
		}
		if len(parts) > 0 {
			where := "after"
			if a.First {
				where = "before"
			}
			out = append(out, fmt.Sprintf("ip-masq-agent runs here too (%s chain %s, called %s ours): %s; give both the same configuration, or stop one",
				a.Family, a.Chain, where, strings.Join(parts, "; ")))
		}
	}
	return out
}

func examples(ps []netip.Prefix) string {
	var words []string
	for _, p := range ps[:min(len(ps), maxExamples)] {
		words = append(words, p.String())
	}
	if more := len(ps) - maxExamples; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

// outside returns those of some ranges that others do not wholly cover.
func outside(some, others []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(some), func(p netip.Prefix) bool { return covered(p, others) })
}

// covered says whether every address of p is in one of the ranges.
func covered(p netip.Prefix, by []netip.Prefix) bool {
	overlap := false
	for _, q := range by {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
		overlap = overlap || q.Overlaps(p)
	}
	if !overlap {
		return false
	}
	// Some lie within p: each half is one bit longer, up to a single address.
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	return covered(low, by) && covered(netip.PrefixFrom(upperHalf(p), p.Bits()+1), by)
}

// upperHalf returns the first address of a range's second half.
func upperHalf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b) // as long as it was
	return a
}
