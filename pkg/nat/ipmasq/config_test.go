package ipmasq

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// example is a configuration file and what upstream's documentation (its
// README, flags included) says that it means.
type example struct {
	name string
	text string
	o    Options
	// keep4 and keep6 are the destinations without masquerade, in upstream's
	// order, separated by spaces; keep6 is for Options.IPv6 only.
	keep4, keep6 string
	resync       time.Duration // 0: the default
	err          string        // part of the error; the configuration is refused
}

const (
	rfc1918   = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"
	defaults4 = "169.254.0.0/16 " + rfc1918
	allRanges = defaults4 + " 100.64.0.0/10 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4"
)

var (
	v6  = Options{IPv6: true}
	all = Options{AllReserved: true}
)

// many returns n ranges, as list entries with a prefix, or with spaces between.
func many(n int, before, after string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s10.%d.0.0/16%s", before, i, after)
	}
	return b.String()
}

var examples = []example{
	{name: "no file", text: "", keep4: defaults4},
	{name: "empty document", text: "---\n", keep4: defaults4},
	{name: "only a comment", text: "# nothing yet\n", keep4: defaults4},
	{name: "empty object in JSON", text: "{}", keep4: defaults4},
	{name: "null", text: "null\n", keep4: defaults4},
	{name: "all reserved ranges by flag", text: "", o: all, keep4: allRanges},
	{name: "the flag gives way to the list", text: "nonMasqueradeCIDRs: [10.0.0.0/8]", o: all, keep4: "169.254.0.0/16 10.0.0.0/8"},
	{name: "the flag stays with other keys", text: "masqLinkLocal: true", o: all, keep4: strings.TrimPrefix(allRanges, "169.254.0.0/16 ")},
	{name: "upstream's example", text: "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\nresyncInterval: 60s\n", keep4: "169.254.0.0/16 10.0.0.0/8", resync: time.Minute},
	{name: "all keys in YAML", text: "nonMasqueradeCIDRs:\n  - 172.16.0.0/12\n  - 10.0.0.0/8\ncidrLimit: 64\nmasqLinkLocal: true\nresyncInterval: 5s\n",
		keep4: "172.16.0.0/12 10.0.0.0/8", resync: 5 * time.Second},
	{name: "all keys in JSON", text: `{"nonMasqueradeCIDRs": ["172.16.0.0/12", "10.0.0.0/8"], "cidrLimit": 64, "masqLinkLocal": true, "resyncInterval": "5s"}`,
		keep4: "172.16.0.0/12 10.0.0.0/8", resync: 5 * time.Second},
	{name: "JSON behind white space", text: "\n\t {\"masqLinkLocal\": true}\n", keep4: rfc1918},
	{name: "JSON with escapes", text: `{"resyncInterval": "5m"}`, keep4: defaults4, resync: 5 * time.Minute},
	{name: "one range", text: "nonMasqueradeCIDRs: [192.168.0.0/16]", keep4: "169.254.0.0/16 192.168.0.0/16"},
	{name: "order is kept", text: "nonMasqueradeCIDRs: [192.168.0.0/16, 10.0.0.0/8, 172.16.0.0/12]", keep4: "169.254.0.0/16 192.168.0.0/16 10.0.0.0/8 172.16.0.0/12"},
	{name: "empty list masquerades everything", text: "nonMasqueradeCIDRs: []", keep4: "169.254.0.0/16"},
	{name: "null list is an empty one", text: "nonMasqueradeCIDRs: null", keep4: "169.254.0.0/16"},
	{name: "null list in JSON", text: `{"nonMasqueradeCIDRs": null}`, keep4: "169.254.0.0/16"},
	{name: "empty list and link-local masqueraded", text: "nonMasqueradeCIDRs: []\nmasqLinkLocal: true\n", keep4: ""},
	{name: "everything kept", text: "nonMasqueradeCIDRs: [0.0.0.0/0]", keep4: "169.254.0.0/16 0.0.0.0/0"},
	{name: "single addresses", text: "nonMasqueradeCIDRs: [203.0.113.7/32, 198.51.100.1/32]", keep4: "169.254.0.0/16 203.0.113.7/32 198.51.100.1/32"},
	{name: "odd lengths", text: "nonMasqueradeCIDRs: [10.64.0.0/10, 10.128.0.0/9, 172.20.4.0/22, 192.168.7.240/28, 1.2.3.4/31]", keep4: "169.254.0.0/16 10.64.0.0/10 10.128.0.0/9 172.20.4.0/22 192.168.7.240/28 1.2.3.4/31"},
	{name: "a range within another", text: "nonMasqueradeCIDRs: [10.0.0.0/8, 10.1.0.0/16]", keep4: "169.254.0.0/16 10.0.0.0/8 10.1.0.0/16"},
	{name: "a range twice", text: "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.0/8]", keep4: "169.254.0.0/16 10.0.0.0/8"},
	{name: "link-local in the list", text: "nonMasqueradeCIDRs: [169.254.0.0/16]", keep4: "169.254.0.0/16"},
	{name: "link-local masqueraded but for the metadata server", text: "nonMasqueradeCIDRs: [169.254.169.254/32]\nmasqLinkLocal: true\n", keep4: "169.254.169.254/32"},
	{name: "multicast and class E", text: "nonMasqueradeCIDRs: [224.0.0.0/4, 240.0.0.0/4]", keep4: "169.254.0.0/16 224.0.0.0/4 240.0.0.0/4"},
	{name: "masqLinkLocal alone", text: "masqLinkLocal: true", keep4: rfc1918},
	{name: "masqLinkLocal false", text: "masqLinkLocal: false", keep4: defaults4},
	{name: "YAML 1.1 booleans", text: "masqLinkLocal: yes", keep4: rfc1918},
	{name: "null boolean is the default", text: "masqLinkLocal: null", keep4: defaults4},
	{name: "masqLinkLocalIPv6 without IPv6", text: "masqLinkLocalIPv6: true", keep4: defaults4},
	{name: "resyncInterval alone", text: "resyncInterval: 1m30s", keep4: defaults4, resync: 90 * time.Second},
	{name: "resyncInterval in milliseconds", text: "resyncInterval: 1500ms", keep4: defaults4, resync: 1500 * time.Millisecond},
	{name: "resyncInterval of nothing is a second", text: "resyncInterval: 0s", keep4: defaults4, resync: time.Second},
	{name: "negative resyncInterval is a second", text: "resyncInterval: -5s", keep4: defaults4, resync: time.Second},
	{name: "cidrLimit equal to the number", text: "cidrLimit: 3", keep4: defaults4},
	{name: "larger cidrLimit", text: "cidrLimit: 70\nnonMasqueradeCIDRs:\n" + many(70, "- ", "\n"), keep4: "169.254.0.0/16 " + many(70, "", " ")},
	{name: "64 ranges", text: "nonMasqueradeCIDRs:\n" + many(64, "- ", "\n"), keep4: "169.254.0.0/16 " + many(64, "", " ")},
	{name: "cidrLimit 0 and no range", text: "cidrLimit: 0\nnonMasqueradeCIDRs: []\n", keep4: "169.254.0.0/16"},
	{name: "keys in other cases", text: "NONMASQUERADECIDRS: [10.0.0.0/8]\nmasqlinklocal: true\n", keep4: "10.0.0.0/8"},
	{name: "unknown keys", text: "nonMasqueradeCIDRs: [10.0.0.0/8]\nnonMasqueradeCidr: 1\nextra: {a: b}\n", keep4: "169.254.0.0/16 10.0.0.0/8"},
	{name: "second document", text: "nonMasqueradeCIDRs: [10.0.0.0/8]\n---\nnonMasqueradeCIDRs: [1.0.0.0/8]\n", keep4: "169.254.0.0/16 10.0.0.0/8"},
	{name: "quoted and anchored", text: "x: &a \"10.0.0.0/8\"\nnonMasqueradeCIDRs: [*a, '11.0.0.0/8']\n", keep4: "169.254.0.0/16 10.0.0.0/8 11.0.0.0/8"},
	{name: "whole number with a point in YAML", text: "cidrLimit: 64.0", keep4: defaults4},

	{name: "IPv6 with defaults", text: "", o: v6, keep4: defaults4, keep6: "fe80::/10"},
	{name: "IPv6 ranges", text: "nonMasqueradeCIDRs: [10.0.0.0/8, 'fc00::/7', '2001:db8::/32']", o: v6, keep4: "169.254.0.0/16 10.0.0.0/8", keep6: "fe80::/10 fc00::/7 2001:db8::/32"},
	{name: "IPv6 ranges only", text: "nonMasqueradeCIDRs: ['fd00::/8']", o: v6, keep4: "169.254.0.0/16", keep6: "fe80::/10 fd00::/8"},
	{name: "IPv6 link-local masqueraded", text: "masqLinkLocalIPv6: true", o: v6, keep4: defaults4, keep6: ""},
	{name: "both link-locals masqueraded", text: `{"masqLinkLocal": true, "masqLinkLocalIPv6": true}`, o: v6, keep4: rfc1918, keep6: ""},
	{name: "IPv6 kept wholly", text: "nonMasqueradeCIDRs: ['::/0']", o: v6, keep4: "169.254.0.0/16", keep6: "fe80::/10 ::/0"},
	{name: "single IPv6 address", text: "nonMasqueradeCIDRs: ['2001:DB8:0:0::1/128']", o: v6, keep4: "169.254.0.0/16", keep6: "fe80::/10 2001:db8::1/128"},
	{name: "IPv6 of odd length", text: "nonMasqueradeCIDRs: ['2001:db8:8000::/33']", o: v6, keep4: "169.254.0.0/16", keep6: "fe80::/10 2001:db8:8000::/33"},
	{name: "IPv6 and all reserved ranges", text: "", o: Options{IPv6: true, AllReserved: true}, keep4: allRanges, keep6: "fe80::/10"},

	{name: "IPv6 range without IPv6", text: "nonMasqueradeCIDRs: ['fc00::/7']", err: "nonMasqueradeCIDRs[0]: fc00::/7 is IPv6, which nat.masq.ipv6 has not switched on"},
	{name: "no CIDR", text: "nonMasqueradeCIDRs: [abcdefg]", err: `nonMasqueradeCIDRs[0]: "abcdefg" is not a CIDR`},
	{name: "one of two is no CIDR", text: "nonMasqueradeCIDRs: [10.0.0.0/8, abcdefg]", err: "nonMasqueradeCIDRs[1]"},
	{name: "an address", text: "nonMasqueradeCIDRs: [10.0.0.1]", err: "is not a CIDR"},
	{name: "byte out of range", text: "nonMasqueradeCIDRs: [10.256.0.0/16]", err: "is not a CIDR"},
	{name: "length out of range", text: "nonMasqueradeCIDRs: [10.0.0.0/33]", err: "is not a CIDR"},
	{name: "IPv6 length out of range", text: "nonMasqueradeCIDRs: ['fc00::/129']", o: v6, err: "is not a CIDR"},
	{name: "empty entry", text: "nonMasqueradeCIDRs: ['']", err: "is not a CIDR"},
	{name: "null entry is the default in its place", text: "nonMasqueradeCIDRs: [null]", keep4: "169.254.0.0/16 10.0.0.0/8"},
	{name: "spaces around", text: "nonMasqueradeCIDRs: [' 10.0.0.0/8']", err: "is not a CIDR"},
	{name: "zone", text: "nonMasqueradeCIDRs: ['fe80::%eth0/10']", o: v6, err: "is not a CIDR"},
	{name: "leading zero in a byte", text: "nonMasqueradeCIDRs: [010.0.0.0/8]", err: "is not a CIDR"},
	{name: "leading zero in the length", text: "nonMasqueradeCIDRs: [10.0.0.0/08]", err: "is not a CIDR"},
	{name: "IPv4 mapped into IPv6", text: "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']", o: v6, err: "is an IPv4 range written as IPv6"},
	{name: "not aligned", text: "nonMasqueradeCIDRs: [10.0.0.1/8]", err: "10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?"},
	{name: "IPv6 not aligned", text: "nonMasqueradeCIDRs: ['fc00::1/7']", o: v6, err: "did you mean fc00::/7?"},
	{name: "65 ranges", text: "nonMasqueradeCIDRs:\n" + many(65, "- ", "\n"), err: "has 65 entries, more than cidrLimit (64)"},
	{name: "cidrLimit below the defaults", text: "cidrLimit: 2", err: "has 3 entries, more than cidrLimit (2)"},
	{name: "negative cidrLimit", text: "cidrLimit: -1\nnonMasqueradeCIDRs: []\n", err: "more than cidrLimit (-1)"},
	{name: "cidrLimit as text", text: "cidrLimit: '64'", err: "cidrLimit: is a string; want a whole number"},
	{name: "broken cidrLimit", text: "cidrLimit: 64.5", err: "cidrLimit"},
	{name: "list is one text", text: "nonMasqueradeCIDRs: 10.0.0.0/8", err: "nonMasqueradeCIDRs: is a string; want a list of CIDRs"},
	{name: "entry is a number", text: "nonMasqueradeCIDRs: [10]", err: "want a list of CIDRs"},
	{name: "boolean as text", text: "masqLinkLocal: 'true'", err: "masqLinkLocal: is a string; want true or false"},
	{name: "resyncInterval without unit", text: "resyncInterval: 60", err: "resyncInterval: want a duration with its unit"},
	{name: "resyncInterval of an unknown unit", text: "resyncInterval: 5days", err: `resyncInterval: "5days" is not a duration`},
	{name: "empty resyncInterval", text: "resyncInterval: ''", err: "resyncInterval"},
	{name: "null resyncInterval", text: "resyncInterval: null", err: "resyncInterval"},
	{name: "no YAML", text: "*", err: "yaml"},
	{name: "no JSON", text: "{*", err: "invalid character"},
	{name: "YAML between braces", text: "{masqLinkLocal: true}", err: "invalid character"},
	{name: "two JSON values", text: "{} {}", err: "invalid character"},
	{name: "a list", text: "- 10.0.0.0/8", err: "cannot unmarshal array"},
	{name: "a text", text: "10.0.0.0/8", err: "cannot unmarshal string"},
	{name: "tabs in YAML", text: "nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n", err: "yaml"},
}

func prefixes(s string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func TestParse(t *testing.T) {
	if len(examples) < 60 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			c, err := Parse([]byte(e.text), e.o)
			if e.err != "" {
				if err == nil || !strings.Contains(err.Error(), e.err) {
					t.Fatalf("Parse = %+v, %v; want an error with %q", c, err, e.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := []desired.Masquerade{{Keep: prefixes(e.keep4)}}
			if e.o.IPv6 {
				want = append(want, desired.Masquerade{IPv6: true, Keep: prefixes(e.keep6)})
			}
			if d := cmp.Diff(want, c.Masquerade(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			resync := e.resync
			if resync == 0 {
				resync = defaultResync
			}
			if c.ResyncInterval != resync {
				t.Errorf("ResyncInterval = %s, want %s", c.ResyncInterval, resync)
			}
		})
	}
}

// TestDecisions goes through pairs of sources and destinations: at, before and
// after the edges of every range. Upstream looks at the destination alone, and
// not at packets to the node itself.
func TestDecisions(t *testing.T) {
	const attachment = "vpx-red"
	tunnel := netip.MustParseAddr("100.64.0.8")
	sources := map[bool][]netip.Addr{
		false: {netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("192.168.80.8"), netip.MustParseAddr("203.0.113.5")},
		true:  {netip.MustParseAddr("fd00::5"), netip.MustParseAddr("2001:db8::5")},
	}
	pairs := 0
	for _, e := range examples {
		if e.err != "" {
			continue
		}
		c, err := Parse([]byte(e.text), e.o)
		if err != nil {
			t.Errorf("%s: %v", e.name, err)
			continue
		}
		rules := nat.Render(desired.NAT{SNAT: []desired.SNAT{{Out: "vpx-+", To: tunnel, Except: []netip.Addr{tunnel}}}, Masquerade: c.Masquerade()})
		if err := rules.Check(); err != nil {
			t.Errorf("%s: %v", e.name, err)
		}
		for ipv6, keep := range map[bool][]netip.Prefix{false: prefixes(e.keep4), true: prefixes(e.keep6)} {
			for _, dst := range edges(keep, ipv6) {
				for _, src := range sources[ipv6] {
					p := packet{src: src, dst: dst, out: "eth0"}
					want := verdict{nat.Masquerade, netip.Addr{}}
					if ipv6 && !e.o.IPv6 || within(keep, dst) {
						want = verdict{}
					}
					check(t, e.name, rules, p, want)
					p.local = true
					check(t, e.name, rules, p, verdict{})
					if !ipv6 {
						check(t, e.name, rules, packet{src: src, dst: dst, out: attachment}, verdict{nat.SNAT, tunnel})
					}
					pairs += 2
				}
			}
		}
	}
	if pairs < 5000 {
		t.Errorf("only %d pairs", pairs)
	}
	t.Logf("%d configurations, %d pairs", len(examples), pairs)
}

func within(keep []netip.Prefix, a netip.Addr) bool {
	for _, p := range keep {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// edges returns the first and last address of each range, their neighbors, and
// some addresses of no range in particular.
func edges(keep []netip.Prefix, ipv6 bool) []netip.Addr {
	common := []string{"8.8.8.8", "169.254.169.254", "10.1.2.3", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "240.0.0.1", "224.0.0.251", "0.0.0.1", "255.255.255.255"}
	if ipv6 {
		common = []string{"2001:4860:4860::8888", "fe80::1", "fc00::1", "fd00::1", "2001:db8::1", "ff02::1", "::1"}
	}
	var out []netip.Addr
	for _, s := range common {
		out = append(out, netip.MustParseAddr(s))
	}
	for _, p := range keep {
		b := p.Addr().AsSlice()
		for i := p.Bits(); i < p.Addr().BitLen(); i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		last, _ := netip.AddrFromSlice(b)
		for _, a := range []netip.Addr{p.Addr().Prev(), p.Addr(), last, last.Next()} {
			if a.IsValid() {
				out = append(out, a)
			}
		}
	}
	return out
}

type packet struct {
	src, dst netip.Addr
	out      string
	local    bool // to an address of the node
}

type verdict struct {
	action nat.Action // Masquerade, SNAT or "": the source stays
	to     netip.Addr
}

func check(t *testing.T, name string, s nat.RuleSet, p packet, want verdict) {
	t.Helper()
	if got := decide(s, p); got != want {
		t.Errorf("%s: %s → %s by %s (local: %t): %+v, want %+v", name, p.src, p.dst, p.out, p.local, got, want)
	}
}

// decide walks our chains as the kernel does.
func decide(s nat.RuleSet, p packet) verdict {
	f := nat.IPv4
	if p.dst.Is6() {
		f = nat.IPv6
	}
	for _, c := range []nat.Chain{nat.Postrouting, nat.Masq} {
		if c.Place().Match == nat.NotToThisMachine && p.local {
			continue
		}
		for _, r := range s.Rules[nat.Key{Family: f, Chain: c}] {
			if !r.Out.Covers(nat.LinkPattern(p.out)) || r.Source.IsValid() && r.Source != p.src || r.Dest.IsValid() && !r.Dest.Contains(p.dst) {
				continue
			}
			if r.Action == nat.Return {
				break
			}
			if r.Action == nat.Accept {
				return verdict{}
			}
			return verdict{r.Action, r.To}
		}
	}
	return verdict{}
}

// FuzzParse checks that nothing makes the decoder panic, and that what is accepted
// is what rules can hold: ranges without host bits, of a family that is on, each
// once; a configuration that is written down again means the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']\ncidrLimit: 3\nmasqLinkLocal: true\nresyncInterval: 60s\n"), true, false)
	f.Add([]byte(`{"NONMASQUERADECIDRS": ["10.0.0.0/8"], "resyncInterval": "1h"}`), false, true)
	f.Add([]byte("a: &a [*a]"), false, false)
	f.Fuzz(func(t *testing.T, text []byte, six, all bool) {
		o := Options{IPv6: six, AllReserved: all}
		c, err := Parse(text, o)
		if err != nil {
			return
		}
		if c.ResyncInterval < minResync {
			t.Errorf("the file is read every %v", c.ResyncInterval)
		}
		seen := map[netip.Prefix]bool{}
		for _, p := range c.NonMasqueradeCIDRs {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is6() && !six || seen[p] {
				t.Errorf("%v is accepted", p)
			}
			seen[p] = true
		}
		for _, m := range c.Masquerade() {
			for _, p := range m.Keep {
				if p.Addr().Is6() != m.IPv6 {
					t.Errorf("%v is kept in the other family", p)
				}
			}
		}
		written, err := json.Marshal(map[string]any{
			"nonMasqueradeCIDRs": c.NonMasqueradeCIDRs, "cidrLimit": len(c.NonMasqueradeCIDRs), "masqLinkLocal": c.MasqLinkLocal,
			"masqLinkLocalIPv6": c.MasqLinkLocalIPv6, "resyncInterval": c.ResyncInterval.String(),
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(written, o)
		if err != nil {
			t.Fatalf("%v in %s", err, written)
		}
		if c.NonMasqueradeCIDRs == nil {
			return // null leaves the defaults
		}
		if !reflect.DeepEqual(again, c) {
			t.Errorf("written %+v, read %+v", c, again)
		}
	})
}
