package nat

import (
	"maps"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

func TestDiff(t *testing.T) {
	want := Render(desired.NAT{
		SNAT:    []desired.SNAT{{Out: "vpx-+", To: addr("100.64.0.8")}, {Out: "eth1", To: addr("fd64::1")}},
		Forward: []desired.Forward{{Out: "vpx-+"}},
		Guarded: []string{"vpx-+"},
	})
	nat4, fwd6 := Key{IPv4, Postrouting}, Key{IPv6, Forward}
	for name, c := range map[string]struct {
		change func(*RuleSet)
		want   string
	}{
		"equal":         {func(*RuleSet) {}, ""},
		"chain missing": {func(s *RuleSet) { delete(s.Rules, nat4) }, "nat: IPv4: VPCPROXY-POSTROUTING missing"},
		"chain flushed": {func(s *RuleSet) { s.Rules[nat4] = nil },
			"nat: IPv4: rule 1 of VPCPROXY-POSTROUTING missing: -o vpx-+ -j SNAT --to-source 100.64.0.8 --random-fully"},
		"chain not wanted": {func(s *RuleSet) { s.Rules[Key{IPv4, MSS}] = nil }, "nat: IPv4: VPCPROXY-MSS not wanted"},
		"rule missing": {func(s *RuleSet) { s.Rules[fwd6] = slices.Delete(s.Rules[fwd6], 1, 2) },
			`nat: IPv6: rule 2 of VPCPROXY-FORWARD missing: -i vpx-+ -m conntrack --ctstate INVALID -m comment --comment "vpcproxy: invalid" -j DROP`},
		"last rule missing": {func(s *RuleSet) { s.Rules[fwd6] = s.Rules[fwd6][:len(s.Rules[fwd6])-1] },
			"nat: IPv6: rule 6 of VPCPROXY-FORWARD missing: -o vpx-+ -j ACCEPT"},
		"rule edited": {func(s *RuleSet) { s.Rules[nat4] = []Rule{{Other: "-j ACCEPT"}} },
			`nat: IPv4: rule 1 of VPCPROXY-POSTROUTING is "-j ACCEPT", not "-o vpx-+ -j SNAT --to-source 100.64.0.8 --random-fully"`},
		"rule added": {func(s *RuleSet) { s.Rules[nat4] = append(s.Rules[nat4], Rule{Other: "-j ACCEPT"}) },
			"nat: IPv4: rule 2 of VPCPROXY-POSTROUTING not wanted: -j ACCEPT"},
		"fault":         {func(s *RuleSet) { s.Faults = map[Key]string{nat4: "not called"} }, "nat: IPv4: not called"},
		"stray":         {func(s *RuleSet) { s.Strays = []string{"an old chain"} }, "nat: left over: an old chain"},
		"IPv6 vanished": {func(s *RuleSet) { s.NoIPv6 = true }, "nat: IPv6 source NAT is wanted, but the kernel has no IPv6 here"},
	} {
		t.Run(name, func(t *testing.T) {
			have := RuleSet{Rules: map[Key][]Rule{}}
			for k, r := range want.Rules {
				have.Rules[k] = slices.Clone(r)
			}
			c.change(&have)
			if got := Diff(want, have); got != c.want {
				t.Errorf("Diff = %q\nwant   %q", got, c.want)
			}
		})
	}
}

func TestDiffGuardsNothingWithoutIPv6(t *testing.T) {
	want := Render(desired.NAT{Guarded: []string{"vpx-+"}})
	have := RuleSet{Rules: maps.Clone(want.Rules), NoIPv6: true}
	maps.DeleteFunc(have.Rules, func(k Key, _ []Rule) bool { return k.Family == IPv6 })
	if got := Diff(want, have); got != "" {
		t.Errorf("Diff = %q, want none: there is nothing to guard where the kernel has no IPv6", got)
	}
}
