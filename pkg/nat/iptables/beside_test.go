package iptables

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

func TestDecidingChains(t *testing.T) {
	chain := func(table, name, policy string, gre int, rules ...string) BaseChain {
		return BaseChain{Family: nat.IPv4, Table: table, Name: name, Policy: policy, Rules: rules, GRE: gre}
	}
	for name, tc := range map[string]struct {
		save string
		want []BaseChain
	}{
		"nothing":                     {"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [7:420]\n-A FORWARD -j LOG\nCOMMIT\n", nil},
		"a policy":                    {"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [7:420]\nCOMMIT\n", []BaseChain{chain("filter", "FORWARD", "DROP", 0)}},
		"a policy, and ours let in":   {"*filter\n:FORWARD DROP [7:420]\n-A FORWARD -i vpx-+ -j ACCEPT\n-A FORWARD -o vpx-+ -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", nil},
		"a policy, and half let in":   {"*filter\n:FORWARD DROP [7:420]\n-A FORWARD -i vpx-+ -j ACCEPT\nCOMMIT\n", []BaseChain{chain("filter", "FORWARD", "DROP", 0)}},
		"let in, but too late":        {"*filter\n:FORWARD ACCEPT [7:420]\n-A FORWARD -j DROP\n-A FORWARD -i vpx-+ -j ACCEPT\n-A FORWARD -o vpx-+ -j ACCEPT\nCOMMIT\n", []BaseChain{chain("filter", "FORWARD", "ACCEPT", 0, "-A FORWARD -j DROP")}},
		"in a chain that it calls":    {"*filter\n:FORWARD ACCEPT [0:0]\n:other - [0:0]\n:idle - [0:0]\n-A FORWARD -j other\n-A other -s 10.0.0.0/8 -j REJECT\n-A other -j other\n-A idle -j DROP\nCOMMIT\n", []BaseChain{chain("filter", "FORWARD", "ACCEPT", 0, "-A other -s 10.0.0.0/8 -j REJECT")}},
		"GRE":                         {"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p gre -j DROP\n-A PREROUTING ! -p 47 -j DROP\nCOMMIT\n", []BaseChain{chain("raw", "PREROUTING", "ACCEPT", 1, "-A PREROUTING -p gre -j DROP", "-A PREROUTING ! -p 47 -j DROP")}},
		"GRE let in":                  {"*filter\n:INPUT DROP [0:0]\n-A INPUT -p 47 -j ACCEPT\nCOMMIT\n", nil},
		"translation":                 {"*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination 10.0.0.1\n-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE\nCOMMIT\n", []BaseChain{chain("nat", "POSTROUTING", "ACCEPT", 0, "-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE")}},
		"translation, but not ours":   {"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o vpx-+ -j ACCEPT\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n", nil},
		"what an earlier run of ours": {"*nat\n:POSTROUTING ACCEPT [0:0]\n:VPCPROXY-POSTROUTING - [0:0]\n-A POSTROUTING -j VPCPROXY-POSTROUTING\n-A VPCPROXY-POSTROUTING -j MASQUERADE\nCOMMIT\n", nil},
	} {
		tables, err := parseSave(tc.save)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []BaseChain
		for i := range tables {
			got = append(got, deciding(nat.IPv4, &tables[i])...)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
