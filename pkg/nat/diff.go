package nat

import (
	"fmt"
	"slices"
)

// Diff returns "" if have is just what want says, otherwise the first reason
// why it is not.
func Diff(want, have RuleSet) string {
	for _, k := range Keys() {
		w, wanted := want.Rules[k]
		h, there := have.Rules[k]
		if k.Family == IPv6 && have.NoIPv6 {
			if slices.ContainsFunc(w, func(r Rule) bool { return r.Action == SNAT || r.Action == Masquerade }) {
				return "nat: IPv6 source NAT is wanted, but the kernel has no IPv6 here"
			}
			continue
		}
		var reason string
		switch {
		case wanted && !there:
			reason = fmt.Sprintf("%s missing", k.Chain)
		case !wanted && there:
			reason = fmt.Sprintf("%s not wanted", k.Chain)
		default:
			reason = diffRules(k.Chain, w, h)
		}
		if reason == "" {
			reason = have.Faults[k]
		}
		if reason != "" {
			return fmt.Sprintf("nat: %s: %s", k.Family, reason)
		}
	}
	if len(have.Strays) > 0 {
		return "nat: left over: " + have.Strays[0]
	}
	return ""
}

// diffRules describes the first rule that differs.
func diffRules(c Chain, want, have []Rule) string {
	for i, w := range want {
		switch {
		case i < len(have) && have[i] == w:
		case i >= len(have) || i+1 < len(want) && want[i+1] == have[i]:
			return fmt.Sprintf("rule %d of %s missing: %s", i+1, c, w)
		default:
			return fmt.Sprintf("rule %d of %s is %q, not %q", i+1, c, have[i], w)
		}
	}
	if len(have) > len(want) {
		return fmt.Sprintf("rule %d of %s not wanted: %s", len(want)+1, c, have[len(want)])
	}
	return ""
}
