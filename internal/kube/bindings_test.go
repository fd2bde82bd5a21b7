package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func value(s string) *string { return &s }

func pod(name string, annotation *string, addresses ...string) Pod {
	p := Pod{Namespace: "shop", Name: name, UID: "uid-" + name, Annotation: annotation}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

func bound(address, attachments, owner string) Bound {
	return Bound{Address: netip.MustParseAddr(address), Attachments: parseNames(attachments), Interface: "veth1", Owner: owner}
}

func TestChanges(t *testing.T) {
	later := func(p Pod) Pod { p.Created = 1; return p }
	for name, c := range map[string]struct {
		pods     []Pod
		fallback string // annotation of the namespace
		bound    []Bound
		want     string // one change a word: address=attachments@owner
	}{
		"nothing":                          {},
		"annotated":                        {pods: []Pod{pod("a", value("red"), "10.0.0.5")}, want: "10.0.0.5=red@kubernetes/uid-a"},
		"several attachments":              {pods: []Pod{pod("a", value(" red,blue ,red,"), "10.0.0.5")}, want: "10.0.0.5=blue,red@kubernetes/uid-a"},
		"both families":                    {pods: []Pod{pod("a", value("red"), "10.0.0.5", "fd00::5")}, want: "10.0.0.5=red@kubernetes/uid-a fd00::5=red@kubernetes/uid-a"},
		"not annotated":                    {pods: []Pod{pod("a", nil, "10.0.0.5")}},
		"no address yet":                   {pods: []Pod{pod("a", value("red"))}},
		"namespace's default":              {pods: []Pod{pod("a", nil, "10.0.0.5")}, fallback: "red", want: "10.0.0.5=red@kubernetes/uid-a"},
		"pod's own over the default":       {pods: []Pod{pod("a", value("blue"), "10.0.0.5")}, fallback: "red", want: "10.0.0.5=blue@kubernetes/uid-a"},
		"empty value over the default":     {pods: []Pod{pod("a", value(""), "10.0.0.5")}, fallback: "red"},
		"bound already":                    {pods: []Pod{pod("a", value("red"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "kubernetes/uid-a")}},
		"annotation changed":               {pods: []Pod{pod("a", value("blue"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "kubernetes/uid-a")}, want: "10.0.0.5=blue@kubernetes/uid-a"},
		"annotation removed":               {pods: []Pod{pod("a", nil, "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "kubernetes/uid-a")}, want: "10.0.0.5=@kubernetes/uid-a"},
		"pod gone":                         {bound: []Bound{bound("10.0.0.5", "red", "kubernetes/uid-a")}, want: "10.0.0.5=@kubernetes/uid-a"},
		"address of another pod now":       {pods: []Pod{pod("b", value("red"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "kubernetes/uid-a")}, want: "10.0.0.5=red@kubernetes/uid-b"},
		"two pods show one address":        {pods: []Pod{pod("old", value("red"), "10.0.0.5"), later(pod("new", value("blue"), "10.0.0.5"))}, want: "10.0.0.5=blue@kubernetes/uid-new"},
		"plugin's, the same":               {pods: []Pod{pod("a", value("red"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "cni/n/c/eth0")}},
		"plugin's, annotation changed":     {pods: []Pod{pod("a", value("blue"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "cni/n/c/eth0")}, want: "10.0.0.5=blue@cni/n/c/eth0"},
		"plugin's, annotation removed":     {pods: []Pod{pod("a", nil, "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "cni/n/c/eth0")}, want: "10.0.0.5=@cni/n/c/eth0"},
		"plugin's, pod not published yet":  {pods: []Pod{pod("a", value("red"))}, bound: []Bound{bound("10.0.0.5", "red", "cni/n/c/eth0")}},
		"a network's is left alone":        {pods: []Pod{pod("a", nil, "10.0.0.5")}, bound: []Bound{bound("10.0.0.5", "red", "cni-network/n/c/eth0")}},
		"an operator's is left alone":      {pods: []Pod{pod("a", value("red"), "10.0.0.5"), pod("b", nil, "10.0.0.6")}, bound: []Bound{bound("10.0.0.5", "blue", ""), bound("10.0.0.6", "blue", "me")}},
		"removals come before new ones":    {pods: []Pod{pod("b", value("red"), "10.0.0.5")}, bound: []Bound{bound("10.0.0.9", "red", "kubernetes/uid-a")}, want: "10.0.0.9=@kubernetes/uid-a 10.0.0.5=red@kubernetes/uid-b"},
		"another namespace has no default": {pods: []Pod{{Namespace: "other", Name: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}}, fallback: "red"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, c := range changes(c.pods, map[string]string{"shop": c.fallback}, c.bound) {
				got = append(got, fmt.Sprintf("%s=%s@%s", c.Address, strings.Join(c.Attachments, ","), c.Owner))
				if len(c.Attachments) > 0 && strings.HasPrefix(c.Owner, "cni/") && c.Interface != "veth1" {
					t.Errorf("%s: the interface is lost", c.Address)
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("changes = %q, want %q", s, c.want)
			}
		})
	}
}
