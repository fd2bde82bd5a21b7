package nft_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

var handleOf = regexp.MustCompile(`# handle (\d+)`)

// handle returns the handle of the rule of a chain that contains text.
func (m *machine) handle(netns, chain, text string) string {
	m.t.Helper()
	for line := range strings.Lines(m.run(netns, "nft", "-a", "list", "chain", "inet", nft.TableName, chain)) {
		if h := handleOf.FindStringSubmatch(line); h != nil && strings.Contains(line, text) && !strings.Contains(line, "{") {
			return h[1]
		}
	}
	m.t.Fatalf("chain %s has no rule with %q", chain, text)
	return ""
}

// tableHandle returns the handle of the table, which another one of the same
// name does not have.
func (m *machine) tableHandle(netns string) string {
	m.t.Helper()
	for line := range strings.Lines(m.run(netns, "nft", "-a", "list", "table", "inet", nft.TableName)) {
		if h := handleOf.FindStringSubmatch(line); h != nil && strings.HasPrefix(line, "table inet "+nft.TableName+" ") {
			return h[1]
		}
	}
	m.t.Fatal("no handle of the table")
	return ""
}

func TestTamperingIsNoticedAndRepaired(t *testing.T) {
	const table = "inet vpcproxy"
	rule := func(chain, text, op, rest string) func(*machine) string {
		return func(m *machine) string {
			return fmt.Sprintf("%s rule %s %s handle %s %s", op, table, chain, m.handle("own", chain, text), rest)
		}
	}
	command := func(format string) func(*machine) string {
		return func(*machine) string { return fmt.Sprintf(format, table) }
	}
	cases := map[string]func(*machine) string{
		"rule deleted":           rule("prerouting", "jump gre", "delete", ""),
		"one of many deleted":    rule("gre", "0x200086dd", "delete", ""),
		"drop deleted":           rule("gre", "\tcounter name", "delete", ""),
		"verdict replaced":       rule("gre", "\tcounter name", "replace", `counter name unknown_peer accept`),
		"counter exchanged":      rule("gre", "\tcounter name", "replace", `counter name forged_gre drop`),
		"value replaced":         rule("prerouting", "@steer4_32_24", "replace", "ip saddr . ip daddr & 255.255.255.128 vmap @steer4_32_24"),
		"set exchanged":          rule("gre", "@endpoints4", "replace", "ip daddr != @remotes4 return"),
		"lookup inverted":        rule("gre", "@endpoints4", "replace", "ip daddr @endpoints4 return"),
		"notrack lost":           rule("gre_output", "notrack", "replace", "meta nfproto ipv4 meta l4proto gre ip saddr @endpoints4 accept"),
		"condition added":        rule("gre_forward", "@remotes4", "replace", `meta nfproto ipv4 meta l4proto gre ip daddr @remotes4 ip ttl 9 counter name "forged_gre" drop`),
		"unknown expression":     rule("gre_forward", "@remotes4", "replace", `meta nfproto ipv4 meta l4proto gre ip daddr @remotes4 fib saddr type unicast counter name "forged_gre" drop`),
		"mark rule replaced":     rule("mark_00000100_0000ff00", "mark", "replace", "meta mark set 0x100 accept"),
		"zone rule replaced":     rule("mark_00000300_0000ff00_44c3", "zone", "replace", "ct zone set 9 accept"),
		"zone of one direction":  rule("zone_44c3", "zone", "replace", "ct original zone set 17603 accept"),
		"zone chain flushed":     command("flush chain %s zone_44c1"),
		"zone of a link to else": command("add element %s zones { vpx-x : accept }"),
		"refusal flushed":        command("flush chain %s refuse"),
		"accept added":           command("insert rule %s gre accept"),
		"rule appended":          command("add rule %s gre_output accept"),
		"chain flushed":          command("flush chain %s prerouting"),
		"table flushed":          command("flush table %s"),
		"base chain deleted":     command("delete chain %s gre_forward"),
		"base chain added":       command("add chain %s first { type filter hook prerouting priority -310; }"),
		"plain chain added":      command("add chain %s foreign"),
		"policy changed":         command("add chain %s prerouting { policy drop; }"),
		"notrack counted":        rule("gre_output", "notrack", "replace", "meta nfproto ipv4 meta l4proto gre ip saddr @endpoints4 notrack counter"),
		"foreign chain in use":   command("add chain %[1]s foreign; add rule %[1]s foreign accept; insert rule %[1]s gre jump foreign"),
		"foreign set in use":     command("add set %[1]s foreign { type ipv4_addr; }; insert rule %[1]s gre ip saddr @foreign accept"),
		"foreign counter in use": command("add counter %[1]s foreign; insert rule %[1]s gre counter name foreign"),
		"foreign map in use":     command("add chain %[1]s foreign; add map %[1]s foreign { type ipv4_addr : verdict; }; add element %[1]s foreign { 1.2.3.4 : jump foreign }; insert rule %[1]s gre ip saddr vmap @foreign"),
		"element to elsewhere":   command("add chain %[1]s foreign; add element %[1]s steer4_32_24 { 10.9.9.9 . 10.9.9.0 : goto foreign }"),
		"all but a set deleted":  command("delete table %[1]s; add table %[1]s; add set %[1]s endpoints4 { type ipv4_addr; }; add element %[1]s endpoints4 { 192.168.4.2 }"),
		"counter deleted":        command("flush chain %[1]s gre; delete counter %[1]s unknown_peer"),
		"foreign chain and set":  command("add set %[1]s foreign { type ipv4_addr; }; add chain %[1]s foreign { type filter hook prerouting priority 0; }; add rule %[1]s foreign ip saddr @foreign accept"),
		"older layout":           command(olderChains + "\n\tdelete chain %s prerouting"),
		"dormant":                command("add table %s { flags dormant; }"),
		"set added":              command("add set %s foreign { type ipv4_addr; }"),
		"interval map added":     command("add map %s steer4_24_24 { type ipv4_addr . ipv4_addr : verdict; flags interval; }"),
		"map of other type":      command("add map %s steer4_24_24 { type ipv4_addr : verdict; }"),
		"empty steering map":     command("add map %s steer4_24_24 { type ipv4_addr . ipv4_addr : verdict; }"),
		"counter added":          command("add counter %s foreign"),
		"quota added":            command("add quota %s foreign { 1 mbytes }"),
		"endpoint deleted":       command("delete element %s endpoints4 { 192.168.4.2 }"),
		"endpoints flushed":      command("flush set %s endpoints4"),
		"remote deleted":         command("delete element %s remotes4 { 192.168.80.8 }"),
		"remote added":           command("add element %s remotes4 { 1.2.3.4 }"),
		"element that accepts":   command("add element %s steer4_32_24 { 10.9.9.9 . 10.9.9.0 : accept }"),
		"element that jumps":     command("add element %s steer4_32_24 { 10.9.9.9 . 10.9.9.0 : jump mark_00000100_0000ff00 }"),
		"element with host bits": command("add element %s steer4_32_24 { 10.9.9.9 . 10.9.9.9 : goto mark_00000100_0000ff00 }"),
	}
	m := newMachine(t, "own")
	ts := m.tables("own")
	ch := everything()
	for name, tamper := range cases {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.apply(ts, "", ch)
			defer func() { // what is not repaired must not fail the others
				if err := ts.Remove(context.Background(), ""); err != nil {
					t.Fatal(err)
				}
			}()
			before := m.tableHandle("own")
			m.nft("own", tamper(m))

			got := m.load(ts, "")
			if got.Damage == "" {
				t.Fatalf("not noticed:\n%s", m.nft("own", "list ruleset"))
			}
			t.Log(got.Damage)
			m.apply(ts, "", nft.Change{})
			want := contentsOf(ch, nft.Peer{Local: other.Local})
			if strings.HasPrefix(name, "all but") {
				want = contentsOf(nft.Change{AddPeers: []nft.Peer{endpoint}})
			}
			m.expect(ts, "", want)
			// Chains that stay on their hooks have no gap.
			anew := slices.Contains([]string{
				"dormant", "policy changed", "interval map added", "map of other type", "all but a set deleted",
			}, name)
			if after := m.tableHandle("own"); !anew && after != before {
				t.Errorf("not repaired in place: table handle %s, now %s", before, after)
			}
		})
	}
}

// A set of another type cannot be changed in place, and what it held is lost.
func TestSetOfAnotherTypeIsReplaced(t *testing.T) {
	for _, definition := range []string{
		"type ipv4_addr;",
		"type ipv4_addr . ipv4_addr; timeout 1h;",
		"type ipv4_addr . ipv4_addr; flags interval;",
		"type ipv4_addr . ipv4_addr; flags dynamic; size 10;",
	} {
		m := newMachine(t, "own")
		ts := m.tables("own")
		m.apply(ts, "", everything())
		m.nft("own", "flush chain inet vpcproxy gre; delete set inet vpcproxy peers4_nokey; add set inet vpcproxy peers4_nokey { "+definition+" }")
		m.apply(ts, "", nft.Change{})
		want := contentsOf(everything(), nft.Peer{Local: other.Local})
		delete(want.Peers, unkeyed)
		m.expect(ts, "", want)
		if out := m.nft("own", "list set inet vpcproxy peers4_nokey"); !strings.Contains(out, "type ipv4_addr . ipv4_addr\n\t}") {
			t.Errorf("%s: the set is now\n%s", definition, out)
		}
	}
}

// A change that only adds does not look at the elements, but at all the rest.
func TestAddingRepairsRules(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	ch := everything()
	m.apply(ts, "", ch)
	want := contentsOf(ch, nft.Peer{Local: other.Local})
	for i, tamper := range []string{"flush chain inet vpcproxy gre", "delete chain inet vpcproxy gre_forward", "flush table inet vpcproxy"} {
		m.nft("own", tamper)
		added := nft.Peer{Local: endpoint.Local, Addr: addr("192.168.81.0"), Keyed: true, Key: uint32(i)}
		m.apply(ts, "", nft.Change{AddPeers: []nft.Peer{added}})
		want.Peers[added] = struct{}{}
		m.expect(ts, "", want)
	}
}

func TestForeignElementsAreListed(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	m.apply(ts, "", everything())
	m.nft("own", "add element inet vpcproxy steer4_32_24 { 10.9.9.9 . 10.9.9.0 : goto mark_00000100_0000ff00 }")
	m.nft("own", "delete element inet vpcproxy steer4_32_24 { 10.244.1.5 . 172.16.101.0 }")
	m.nft("own", "delete element inet vpcproxy peers4_nokey { 192.168.80.9 . 192.168.4.2 }; delete element inet vpcproxy remotes4 { 192.168.80.9 }")
	want := contentsOf(everything(), nft.Peer{Local: other.Local})
	want.Steers[match("10.9.9.9/32", "10.9.9.0/24")] = red
	delete(want.Steers, match("10.244.1.5/32", "172.16.101.0/24"))
	delete(want.Peers, unkeyed)
	m.expect(ts, "", want)
}

func TestWholeRulesetFlushed(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	m.apply(ts, "", everything())
	m.nft("own", "flush ruleset")
	m.expect(ts, "", nft.Contents{Peers: peers()})
	m.apply(ts, "", everything())
	m.expect(ts, "", contentsOf(everything(), nft.Peer{Local: other.Local}))
}

func TestEmptiedTableIsDamage(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddPeers: []nft.Peer{endpoint}})
	m.nft("own", "flush set inet vpcproxy endpoints4")
	if c := m.load(ts, ""); c.Damage == "" {
		t.Fatal("an empty table passes for an absent one")
	}
	m.apply(ts, "", nft.Change{})
	m.expectNoTable("own")
}

func TestForeignTablesAreLeftAlone(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	m.nft("own", "add table ip vpcproxy; add chain ip vpcproxy c; add table inet other; add chain inet other extra; add chain inet other gre { type filter hook prerouting priority -300; }; add rule inet other gre accept")
	before := m.nft("own", "list ruleset")
	m.apply(ts, "", everything())
	m.expect(ts, "", contentsOf(everything(), nft.Peer{Local: other.Local}))
	m.nft("own", "flush chain inet vpcproxy gre")
	m.apply(ts, "", nft.Change{})
	if err := ts.Remove(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
	if after := m.nft("own", "list ruleset"); after != before {
		t.Fatalf("before:\n%s\nafter:\n%s", before, after)
	}
}
