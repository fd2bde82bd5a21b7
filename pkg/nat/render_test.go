package nat

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

var update = flag.Bool("update", false, "write golden files")

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestRender(t *testing.T) {
	for name, n := range map[string]desired.NAT{
		"function-host": {
			SNAT:    []desired.SNAT{{Out: "vpx-+", To: addr("100.64.0.8"), Except: []netip.Addr{addr("100.64.0.8"), addr("fd00::8")}}},
			Clamp:   []desired.Clamp{{Link: "vpx-+", MTU: 1472}},
			Forward: []desired.Forward{{Out: "vpx-+"}},
			Guarded: []string{"vpx-+"},
		},
		"proxy-havip": {
			SNAT:    []desired.SNAT{{Out: "eth1", To: addr("172.16.101.9")}},
			Clamp:   []desired.Clamp{{Link: "vpx-1f2e", MTU: 1472}},
			Forward: []desired.Forward{{In: "vpx-1f2e", Out: "eth1"}},
			Guarded: []string{"vpx-1f2e", "eth1"},
		},
		"proxy-lone-dual-stack": {
			SNAT:    []desired.SNAT{{Out: "eth1"}, {Out: "eth1", IPv6: true}},
			Clamp:   []desired.Clamp{{Link: "vpx-1f2e", MTU: 1472}},
			Forward: []desired.Forward{{In: "vpx-1f2e", Out: "eth1"}},
			Guarded: []string{"vpx-1f2e", "eth1"},
		},
		"proxy-without-eni": {
			Clamp:   []desired.Clamp{{Link: "vpx-1f2e", MTU: 1472}},
			Guarded: []string{"vpx-1f2e"},
		},
		"first-match-decides": {
			SNAT: []desired.SNAT{
				{Out: "vpx-a", To: addr("100.64.0.1"), Except: []netip.Addr{addr("100.64.0.1")}},
				{Out: "vpx-+", To: addr("::ffff:100.64.0.2")},
				{Out: "vpx-+", To: addr("fd64::2"), Except: []netip.Addr{addr("fd64::2")}},
			},
		},
		"nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			s := Render(n)
			if err := s.Check(); err != nil {
				t.Errorf("Check: %v", err)
			}
			got := strings.Join(append(s.Commands(), ""), "\n")
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("rules differ from %s (-want +got):\n%s", file, d)
			}
		})
	}
}

func TestRemoveCommands(t *testing.T) {
	got := strings.Join(Render(desired.NAT{SNAT: []desired.SNAT{{Out: "eth1"}}, Clamp: []desired.Clamp{{Link: "a", MTU: 1400}}}).RemoveCommands(), "\n")
	want := `ip6tables -t filter -D FORWARD -m comment --comment "vpcproxy: guarded links" -j VPCPROXY-FORWARD
ip6tables -t filter -F VPCPROXY-FORWARD
ip6tables -t filter -X VPCPROXY-FORWARD
ip6tables -t mangle -D FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "vpcproxy: TCP segment size" -j VPCPROXY-MSS
ip6tables -t mangle -F VPCPROXY-MSS
ip6tables -t mangle -X VPCPROXY-MSS
iptables -t filter -D FORWARD -m comment --comment "vpcproxy: guarded links" -j VPCPROXY-FORWARD
iptables -t filter -F VPCPROXY-FORWARD
iptables -t filter -X VPCPROXY-FORWARD
iptables -t mangle -D FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "vpcproxy: TCP segment size" -j VPCPROXY-MSS
iptables -t mangle -F VPCPROXY-MSS
iptables -t mangle -X VPCPROXY-MSS
iptables -t nat -D POSTROUTING -m comment --comment "vpcproxy: source NAT" -j VPCPROXY-POSTROUTING
iptables -t nat -F VPCPROXY-POSTROUTING
iptables -t nat -X VPCPROXY-POSTROUTING`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestRenderAllLeavesOutEmptySets(t *testing.T) {
	host, empty := desired.NATKey{}, desired.NATKey{Netns: "vpx-a"}
	got := RenderAll(map[desired.NATKey]desired.NAT{
		host:  {Guarded: []string{"vpx-+"}},
		empty: {},
	})
	if _, ok := got[empty]; ok || len(got) != 1 {
		t.Errorf("RenderAll = %v, want only the set of %v: a backend lists no empty set, so it would be missing for ever", got, host)
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		nat  desired.NAT
		want string // part of the error
	}{
		"long link":              {desired.NAT{Guarded: []string{"vpx-0123456789ab"}}, "longer than 15"},
		"link with a line break": {desired.NAT{Guarded: []string{"a\n-F"}}, `character '\n'`},
		"link with a quote":      {desired.NAT{Guarded: []string{`a"b`}}, `character '"'`},
		"link that negates":      {desired.NAT{Guarded: []string{"!"}}, `character '!'`},
		"link like an option":    {desired.NAT{Guarded: []string{"-j"}}, "hyphen"},
		"plus in the middle":     {desired.NAT{Guarded: []string{"a+b"}}, `character '+'`},
		"NAT of everything":      {desired.NAT{SNAT: []desired.SNAT{{Out: "+"}}}, "needs an out link"},
		"guard of everything":    {desired.NAT{Guarded: []string{""}}, "needs a link"},
		"forward of everything":  {desired.NAT{Forward: []desired.Forward{{}}}, "needs a link"},
		"zone in the new source": {desired.NAT{SNAT: []desired.SNAT{{Out: "a", To: addr("fe80::1%a")}}}, "no IPv6 address"},
		"MTU of zero":            {desired.NAT{Clamp: []desired.Clamp{{Link: "a"}}}, "MSS -40"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Render(c.nat).Check()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check() = %v, want an error with %q", err, c.want)
			}
		})
	}
}
