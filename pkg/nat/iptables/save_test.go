package iptables

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

func read(t *testing.T, file string) []table {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	ts, err := parseSave(string(b))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return ts
}

// proxyNAT is what testdata/*.save hold: the golden file
// proxy-lone-dual-stack of package nat, typed into iptables 1.8.9 of each
// variant.
var proxyNAT = nat.Render(desired.NAT{
	SNAT:    []desired.SNAT{{Out: "eth1"}, {Out: "eth1", IPv6: true}},
	Clamp:   []desired.Clamp{{Link: "vpx-1f2e", MTU: 1472}},
	Forward: []desired.Forward{{In: "vpx-1f2e", Out: "eth1"}},
	Guarded: []string{"vpx-1f2e", "eth1"},
})

func TestRealOutputReadsAsWhatWasWritten(t *testing.T) {
	for _, mode := range []Mode{NFT, Legacy} {
		have := finding{rules: map[nat.Key][]nat.Rule{}, faults: map[nat.Key]fault{}}
		for f, name := range map[nat.Family]string{nat.IPv4: "ipv4", nat.IPv6: "ipv6"} {
			have.add(f, view{inUse: read(t, string(mode)+"-"+name+".save")})
		}
		if d := nat.Diff(proxyNAT, nat.RuleSet{Rules: have.rules}); d != "" || len(have.faults)+len(have.strays) > 0 {
			t.Errorf("%s: %s; faults %v, left over %v", mode, d, have.faults, have.strays)
		}
	}
}

func TestParseSaveRefuses(t *testing.T) {
	for name, out := range map[string]string{
		"cut off in a table":        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j ACCEPT\n",
		"rule outside of a table":   "-A POSTROUTING -j ACCEPT\n",
		"rule of an unknown chain":  "*nat\n-A POSTROUTING -j ACCEPT\nCOMMIT\n",
		"table in a table":          "*nat\n*filter\nCOMMIT\n",
		"end without beginning":     "COMMIT\n",
		"counter that is no number": "*nat\n:A - [0:0]\n[x:0] -A A\nCOMMIT\n",
		"something else":            "*nat\nERROR\nCOMMIT\n",
	} {
		if ts, err := parseSave(out); err == nil {
			t.Errorf("%s: parsed as %v; a list that is not whole must not pass for one", name, ts)
		}
	}
}

func TestHiddenTables(t *testing.T) {
	for out, want := range map[string]error{
		"# Table `nat' is incompatible, use 'nft' tool.\n":                     errHidden,
		"*filter\nCOMMIT\n# Table `mangle' is incompatible, use 'nft' tool.\n": errHidden,
		"# Table `raw' is incompatible, use 'nft' tool.\n*nat\nCOMMIT\n":       nil, // none of ours
		"# Table `nat' is fine\n*nat\nCOMMIT\n":                                nil,
	} {
		ts, err := parseSave(out)
		if err != nil {
			t.Errorf("parseSave(%q): %v", out, err)
		}
		if err := checkVisible(ts); !errors.Is(err, want) {
			t.Errorf("%q: error %v, want %v", out, err, want)
		}
		if text := script(ts, nil, nil); text != "" {
			t.Errorf("%q: would write\n%s", out, text)
		}
	}
}

func TestParseSaveCounters(t *testing.T) {
	ts, err := parseSave("*filter\n:A - [0:0]\n[12:3456] -A A -j DROP\n[0:0] -A A\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []table{{name: "filter", chains: []string{"A"}, rules: map[string][]rule{"A": {{"-j DROP", 12}, {}}}, policies: map[string]string{}}}
	if d := cmp.Diff(want, ts, cmp.AllowUnexported(table{}, rule{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAddCounts(t *testing.T) {
	ts, err := parseSave(`*filter
:VPCPROXY-INPUT - [0:0]
:OTHER - [0:0]
[3:0] -A VPCPROXY-INPUT -i eth1 -m comment --comment "vpcproxy: inbound_user_vpc" -j DROP
[4:0] -A VPCPROXY-INPUT -i eth1 -m comment --comment "vpcproxy: inbound_user_vpc" -j DROP
[5:0] -A VPCPROXY-INPUT -i eth1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[6:0] -A OTHER -i eth1 -m comment --comment "vpcproxy: inbound_user_vpc" -j DROP
COMMIT
`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[nat.Counter]uint64{}
	addCounts(got, nat.IPv4, &ts[0])
	want := map[nat.Counter]uint64{
		{Key: nat.Key{Family: nat.IPv4, Chain: nat.Input}, Reason: nat.InboundUserVPC, In: "eth1"}: 7,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSplit(t *testing.T) {
	for spec, want := range map[string][]string{
		"":                     nil,
		" -j  X ":              {"-j", "X"},
		`--comment "a b" -j X`: {"--comment", "a b", "-j", "X"},
		`"a \"b\" \\"`:         {`a "b" \`},
		`--comment "" -j X`:    {"--comment", "", "-j", "X"},
	} {
		if d := cmp.Diff(want, nat.Words(spec), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("nat.Words(%q) (-want +got):\n%s", spec, d)
		}
	}
}

func TestParseRule(t *testing.T) {
	known := nat.Rule{In: "eth1", State: nat.Known, Action: nat.Accept}
	for spec, want := range map[string]nat.Rule{
		// Spellings of the same rule.
		"-i eth1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": known,
		"-m conntrack --ctstate ESTABLISHED,RELATED -i eth1 -j ACCEPT": known,
		"-i a -p icmpv6 -m icmp6 --icmpv6-type neighbour-solicitation -j ACCEPT": {
			In: "a", ICMPv6: 135, Action: nat.Accept},
		"-o a -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1432": {
			Out: "a", SYN: true, Action: nat.SetMSS, MSS: 1432},
	} {
		if got := nat.ParseRule(spec); got != want {
			t.Errorf("nat.ParseRule(%q) = %+v, want %+v", spec, got, want)
		}
	}
	for _, spec := range []string{
		"", "-j", "-i eth1", "-j RETURN -i eth1 -s 10.0.0.0/8", "! -i eth1 -j ACCEPT",
		"-i eth1 -m conntrack --ctstate NEW -j ACCEPT --nflog",
		"-o a -j SNAT --to-source 10.0.0.1", // not random
		"-o a -j SNAT --to-source 10.0.0.1-10.0.0.2 --random-fully",
		"-o a -p tcp -m tcp --tcp-flags SYN,RST,ACK SYN -j TCPMSS --set-mss 1432",
		"-o a -p tcp -m tcp --tcp-flags SYN,RST RST -j TCPMSS --set-mss 1432",
		"-i a -p tcp -j ACCEPT", "-i a -m mark --mark 1 -j ACCEPT",
		"-i a -i b -j ACCEPT",
		`-i a -m comment --comment "something else" -j DROP`,
		"-s 10.0.0.1/24 -o a -j ACCEPT", "-j ACCEPT -o", "--ctstate",
	} {
		if got := nat.ParseRule(spec); got.Other == "" || spec != "" && got.Other != spec {
			t.Errorf("nat.ParseRule(%q) = %+v; want it taken as a rule of others", spec, got)
		}
	}
}

func FuzzParseSave(f *testing.F) {
	for _, file := range []string{"nft-ipv4.save", "nft-ipv6.save", "legacy-ipv4.save", "legacy-ipv6.save"} {
		b, err := os.ReadFile("testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("*nat\n:VPCPROXY-OLD - [0:0]\n-A VPCPROXY-OLD -j VPCPROXY-OLD\nCOMMIT\n")
	for _, rules := range proxyNAT.Rules {
		for _, r := range rules {
			f.Add(r.String())
		}
	}
	f.Fuzz(func(t *testing.T, out string) {
		for spec := range strings.Lines(out) {
			checkRule(t, strings.TrimSuffix(spec, "\n"))
		}
		ts, err := parseSave(out)
		if err != nil {
			return
		}
		// What is left to do for removal names only what is ours.
		text := script(ts, nil, nil)
		for _, line := range strings.Split(text, "\n") {
			words := nat.Words(line)
			if len(words) > 1 && slices.Contains([]string{"-F", "-X"}, words[0]) && !ours(words[1]) {
				t.Errorf("removal touches a foreign chain: %q", line)
			}
			if len(words) > 1 && words[0] == "-D" && !ours(target(words)) {
				t.Errorf("removal deletes a foreign rule: %q", line)
			}
		}
	})
}

// checkRule wants what is taken for a rule of ours to be written as it is read.
func checkRule(t *testing.T, spec string) {
	t.Helper()
	if _, rest, ok := strings.Cut(spec, " VPCPROXY-FORWARD "); ok { // as in -A CHAIN RULE
		spec = rest
	}
	r := nat.ParseRule(spec)
	if r.Other != "" {
		return
	}
	if again := nat.ParseRule(r.String()); again != r {
		t.Errorf("%q reads as %+v, which is written %q and reads as %+v", spec, r, r, again)
	}
}
