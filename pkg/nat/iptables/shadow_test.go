package iptables

import (
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// hostNAT is what a function host has.
var hostNAT = nat.Render(desired.NAT{
	SNAT:    []desired.SNAT{{Out: "vpx-+"}},
	Clamp:   []desired.Clamp{{Link: "vpx-+", MTU: 1472}},
	Forward: []desired.Forward{{Out: "vpx-+"}},
	Guarded: []string{"vpx-+"},
})

func TestShadowing(t *testing.T) {
	for name, c := range map[string]struct {
		chain nat.Chain
		rules string // before our jump, and of other chains
		want  string // the rule that shadows; "" if none
	}{
		"nothing":                  {nat.Forward, "", ""},
		"accept":                   {nat.Forward, "-A FORWARD -j ACCEPT", "-j ACCEPT"},
		"second rule":              {nat.Forward, "-A FORWARD -i lo -o lo -j ACCEPT\n-A FORWARD -j DROP", "-j DROP"},
		"other links":              {nat.Forward, "-A FORWARD -i docker0 -o docker0 -j ACCEPT", ""},
		"our link as a pattern":    {nat.Forward, "-A FORWARD -i v+ -j ACCEPT", "-i v+ -j ACCEPT"},
		"all but one link":         {nat.Forward, "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "-i docker0 ! -o docker0 -j ACCEPT"},
		"all but our links":        {nat.Input, "-A INPUT ! -i vpx-+ -j ACCEPT", ""},
		"counts only":              {nat.Forward, "-A FORWARD -s 10.0.0.0/8", ""},
		"logs":                     {nat.Forward, "-A FORWARD -j LOG --log-prefix \"-j ACCEPT\"", ""},
		"known connections":        {nat.Forward, "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", ""},
		"known connections, DROP":  {nat.Forward, "-A FORWARD -m conntrack --ctstate ESTABLISHED -j DROP", "-m conntrack --ctstate ESTABLISHED -j DROP"},
		"new connections":          {nat.Forward, "-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"},
		"all but known":            {nat.Forward, "-A FORWARD -m conntrack ! --ctstate ESTABLISHED -j ACCEPT", "-m conntrack ! --ctstate ESTABLISHED -j ACCEPT"},
		"to the policy":            {nat.Forward, "-A FORWARD -j RETURN", "-j RETURN"},
		"chain that returns":       {nat.Forward, ":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN", ""},
		"chain of other links":     {nat.Forward, ":D - [0:0]\n-A FORWARD -i docker0 -j D\n-A D -i docker0 ! -o docker0 -j D2\n:D2 - [0:0]\n-A D2 -o docker0 -j DROP", ""},
		"chain of chains":          {nat.Postrouting, ":A - [0:0]\n:B - [0:0]\n-A POSTROUTING -j A\n-A A -g B\n-A B -j MASQUERADE", "-j A"},
		"chains in a circle":       {nat.Postrouting, ":A - [0:0]\n:B - [0:0]\n-A POSTROUTING -j A\n-A A -j B\n-A B -j A", ""},
		"masquerade of a bridge":   {nat.Postrouting, "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"},
		"masquerade of the uplink": {nat.Postrouting, "-A POSTROUTING -o eth0 -j MASQUERADE", ""},
		"kube-proxy":               {nat.Postrouting, ":K - [0:0]\n-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j K\n-A K -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A K -j MARK --set-xmark 0x4000/0x0\n-A K -j MASQUERADE --random-fully", "-m comment --comment \"kubernetes postrouting rules\" -j K"},
		"own chain":                {nat.MSS, ":VPCPROXY-OLD - [0:0]\n-A FORWARD -j VPCPROXY-OLD\n-A VPCPROXY-OLD -j ACCEPT", ""},
		"unknown extension":        {nat.MSS, "-A FORWARD -j FANCY", "-j FANCY"},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.chain.Place()
			var b strings.Builder
			b.WriteString("*" + p.Table + "\n:" + p.Hook + " ACCEPT [0:0]\n:" + string(c.chain) + " - [0:0]\n")
			var rest []string
			for _, l := range strings.Split(c.rules, "\n") { // chains come first
				if strings.HasPrefix(l, ":") {
					b.WriteString(l + "\n")
				} else {
					rest = append(rest, l)
				}
			}
			b.WriteString(strings.Join(rest, "\n") + "\n-A " + p.Hook + " " + p.Jump(c.chain) + "\n-A " + p.Hook + " -j ACCEPT\n")
			for _, r := range hostNAT.Rules[nat.Key{Family: nat.IPv4, Chain: c.chain}] {
				b.WriteString("-A " + string(c.chain) + " " + r.String() + "\n")
			}
			ts, err := parseSave(b.String() + "COMMIT\n")
			if err != nil {
				t.Fatal(err)
			}
			if got := findFault(&ts[0], c.chain); got.shadow != c.want {
				t.Errorf("shadowed by %q, want %q", got.shadow, c.want)
			}
		})
	}
}
