package nat

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

func ranges(s string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func TestConflicts(t *testing.T) {
	ours := []desired.Masquerade{{Keep: ranges("169.254.0.0/16 10.0.0.0/8")}, {IPv6: true, Keep: ranges("fe80::/10")}}
	agent := func(keep string) MasqAgent {
		return MasqAgent{Family: IPv4, Chain: "IP-MASQ-AGENT", First: true, Keep: ranges(keep), Masquerades: true}
	}
	for name, c := range map[string]struct {
		s    Survey
		want string // part of the only problem; "" if there is none
	}{
		"nobody":                {Survey{}, ""},
		"the same":              {Survey{MasqAgents: []MasqAgent{agent("10.0.0.0/8 169.254.0.0/16")}}, ""},
		"the same in pieces":    {Survey{MasqAgents: []MasqAgent{agent("10.128.0.0/9 10.0.0.0/9 169.254.0.0/16 10.1.0.0/16")}}, ""},
		"the other masquerades": {Survey{MasqAgents: []MasqAgent{agent("169.254.0.0/16")}}, "called before ours): toward 10.0.0.0/8 its rule wins and masquerades"},
		"a piece is missing":    {Survey{MasqAgents: []MasqAgent{agent("169.254.0.0/16 10.0.0.0/9")}}, "toward 10.0.0.0/8 its rule wins"},
		"ours masquerades":      {Survey{MasqAgents: []MasqAgent{agent("169.254.0.0/16 10.0.0.0/8 192.168.0.0/16")}}, "toward 192.168.0.0/16 our rule wins and masquerades"},
		"many ranges":           {Survey{MasqAgents: []MasqAgent{agent("169.254.0.0/16 10.0.0.0/8 1.0.0.0/8 2.0.0.0/8 3.0.0.0/8 4.0.0.0/8 5.0.0.0/8")}}, "toward 1.0.0.0/8, 2.0.0.0/8, 3.0.0.0/8, 2 more our rule wins"},
		"it does nothing":       {Survey{MasqAgents: []MasqAgent{{Family: IPv4, Chain: "IP-MASQ-AGENT"}}}, ""},
		"IPv6":                  {Survey{MasqAgents: []MasqAgent{{Family: IPv6, Chain: "M", Masquerades: true}}}, "(IPv6 chain M, called after ours): toward fe80::/10 its rule wins"},
		"a rule before ours":    {Survey{Before: []string{`IPv4 VPCPROXY-POSTROUTING comes after "-j MASQUERADE" of POSTROUTING`}}, "it wins until our rule is moved up again"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(c.s.Conflicts(ours), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("Conflicts = %q, want %q", got, c.want)
			}
		})
	}
	if got := (Survey{MasqAgents: []MasqAgent{agent("")}}).Conflicts(nil); len(got) > 0 {
		t.Errorf("Conflicts = %q; where we masquerade nothing there are none", got)
	}
}
