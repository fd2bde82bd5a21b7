package plan

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func key(k uint32) *uint32         { return &k }

var testConfig = Config{MarkMask: 0x3fff, RulePriority: 17600, TableBase: 17600000, ZoneBase: 17600}

func node(name, underlay, tunnel string, roles ...intent.Role) *intent.Node {
	n := &intent.Node{Metadata: intent.Metadata{Name: name}, Spec: intent.NodeSpec{Roles: roles, UnderlayAddress: addr(underlay)}}
	if tunnel != "" {
		n.Spec.TunnelAddress = addr(tunnel)
	}
	return n
}

func group(name, member, tunnel string) *intent.ProxyGroup {
	g := &intent.ProxyGroup{Metadata: intent.Metadata{Name: name}, Spec: intent.ProxyGroupSpec{Members: []intent.Member{{Node: member}}}}
	if tunnel != "" {
		g.Spec.TunnelAddress = addr(tunnel)
	}
	return g
}

func attachment(name string, edit ...func(*intent.Attachment)) *intent.Attachment {
	a := &intent.Attachment{Metadata: intent.Metadata{Name: name}, Spec: intent.AttachmentSpec{
		VPC: "vpc-" + name, Group: "g1",
		CIDRs:  []netip.Prefix{prefix("172.16.101.0/24")},
		Pods:   []netip.Prefix{prefix("10.244.1.5/32")},
		GREKey: key(101),
		ENIs:   []intent.ENI{{MAC: "02:00:00:00:65:0a"}},
	}}
	for _, e := range edit {
		e(a)
	}
	return a
}

// plain is the recipe that the product automates.
func plain() *intent.Set {
	s := &intent.Set{Pool: prefix("10.0.0.0/24")}
	s.Put(node("host", "192.168.80.8", "10.0.0.3", intent.RoleFunction))
	s.Put(node("proxy", "192.168.4.4", "", intent.RoleProxy))
	s.Put(group("g1", "proxy", "10.0.0.4"))
	s.Put(attachment("plain", func(a *intent.Attachment) {
		a.Spec.Scope, a.Spec.Pods, a.Spec.GREKey = intent.ScopeHost, nil, nil
	}))
	return s
}

// overlap is two tenants that own the same subnet.
func overlap() *intent.Set {
	s := &intent.Set{}
	s.Put(node("host", "192.168.80.8", "100.64.0.3", intent.RoleFunction))
	s.Put(node("proxy", "192.168.4.4", "", intent.RoleProxy))
	s.Put(group("g1", "proxy", "100.64.0.4"))
	s.Put(attachment("red"))
	s.Put(attachment("a-rather-long-attachment-name", func(a *intent.Attachment) {
		a.Spec.GREKey = key(102)
		a.Spec.Pods = []netip.Prefix{prefix("10.244.1.6/32"), prefix("10.244.9.0/24")}
		a.Spec.ENIs = []intent.ENI{{Name: "eth2", Gateway: addr("172.16.101.1")}}
		a.Spec.CIDRs = append(a.Spec.CIDRs, prefix("172.16.200.0/24"))
		a.Spec.SNATAddress = addr("172.16.101.99")
	}))
	return s
}

// pair is a group of two proxies with one attachment; the second is cordoned.
func pair() *intent.Set {
	s := &intent.Set{}
	s.Put(node("host", "192.168.80.8", "100.64.0.3", intent.RoleFunction))
	s.Put(node("proxy", "192.168.4.4", "", intent.RoleProxy))
	s.Put(node("second", "192.168.4.5", "", intent.RoleProxy))
	s.Node("second").Spec.Cordoned = true
	g := group("g1", "proxy", "100.64.0.4")
	g.Spec.Members[0].Priority = 200
	g.Spec.Members = append(g.Spec.Members, intent.Member{Node: "second"}, intent.Member{Node: "third"})
	g.Spec.HaVip, g.Spec.VRID = addr("192.168.4.100"), 51
	g.Spec.Tracks = []intent.Track{{Name: intent.TrackENI, Effect: intent.EffectFault}, {Name: intent.TrackProbe, Effect: intent.EffectIgnore}}
	s.Put(g)
	s.Put(attachment("red", func(a *intent.Attachment) {
		a.Spec.HaVip, a.Spec.Probe = addr("172.16.101.100"), addr("172.16.101.1")
		a.Spec.ENIs = []intent.ENI{{Node: "proxy", MAC: "02:00:00:00:65:0a"}, {Node: "second", Name: "eth1"}, {Node: "third", Name: "eth1"}}
	}))
	return s
}

func proxyFacts() Facts {
	return Facts{UnderlayLink: "eth0", UnderlayMTU: 1500, Interfaces: []Interface{
		{Name: "eth0", MAC: "02:00:00:00:04:04", Addresses: []netip.Prefix{prefix("192.168.4.4/24")}},
		{Name: "eth1", MAC: "02:00:00:00:65:0a", Addresses: []netip.Prefix{prefix("172.16.101.10/24")}},
		{Netns: "vpx-a-rat-gpkr4", Name: "eth2", MAC: "02:00:00:00:66:0a", Addresses: []netip.Prefix{prefix("172.16.101.10/24")}},
	}}
}

func TestBuildGolden(t *testing.T) {
	hostFacts := Facts{UnderlayLink: "eth0", UnderlayMTU: 1500}
	longID := proxyFacts()
	longID.Interfaces[2].Netns = desired.LinkPrefix + ID("a-rather-long-attachment-name")
	secondFacts := Facts{UnderlayLink: "ens5", UnderlayMTU: 1500, Interfaces: []Interface{
		{Name: "eth1", MAC: "02:00:00:00:65:0b", Addresses: []netip.Prefix{prefix("172.16.101.11/24")}},
	}}
	for _, tc := range []struct {
		name  string
		node  string
		set   *intent.Set
		facts Facts
		edit  func(*Config)
	}{
		{"plain-host", "host", plain(), hostFacts, nil},
		{"plain-proxy", "proxy", plain(), proxyFacts(), nil},
		{"overlap-host", "host", overlap(), Facts{UnderlayLink: "eth0", UnderlayMTU: 9000, StrictRPFilter: true}, nil},
		{"overlap-proxy", "proxy", overlap(), longID, nil},
		{"stranger", "stranger", overlap(), hostFacts, nil},
		{"pair-host", "host", pair(), hostFacts, nil},
		{"pair-proxy", "proxy", pair(), proxyFacts(), nil},
		{"pair-second", "second", pair(), secondFacts, nil},
		{"bgp-proxy", "proxy", shared(), proxyFacts(), speaking},
		{"bgp-host", "host", shared(), alive(hostFacts, HashResilient, Gateway{"g1", 1100}, Gateway{"g2", 1100}), speaking},
		{"bgp-host-zone", "host", shared(), alive(hostFacts, HashPlain, Gateway{"g1", 100}, Gateway{"g2", 1100}), speaking},
		{"bgp-host-old-kernel", "host", shared(), alive(hostFacts, HashNone, Gateway{"g1", 100}, Gateway{"g2", 1100}), speaking},
		{"bgp-host-static", "host", shared(), hostFacts, nil},
		{"on-demand-proxy", "proxy", overlap(), longID, func(c *Config) { c.Neighbors = NeighborsOnDemand }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig
			if tc.edit != nil {
				tc.edit(&cfg)
			}
			p := Build(tc.node, tc.set, tc.facts, cfg)
			state, problems := p.State, p.Problems
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			var b bytes.Buffer
			if err := state.Dump(&b); err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Elections {
				if err := e.Dump(&b); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, tc.name, b.Bytes())
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; -update rewrites it. got:\n%s", file, got)
	}
}

func TestBuildProblems(t *testing.T) {
	hostFacts := Facts{UnderlayLink: "eth0", UnderlayMTU: 1500}
	for _, tc := range []struct {
		name  string
		node  string
		edit  func(*intent.Set)
		facts Facts
		want  string // in one of the problems
		check func(*testing.T, desired.State)
	}{
		{
			name: "a pod whose proxy is unknown is refused, not let through", node: "host", facts: hostFacts,
			edit: func(s *intent.Set) { s.Nodes = s.Nodes[:1] },
			want: "its proxy proxy has not registered yet",
			check: func(t *testing.T, s desired.State) {
				if len(s.Steers) != 7 || len(s.Rules) != 2 || len(s.Links) != 0 {
					t.Errorf("want steers, rules and no link, got %d, %d, %d", len(s.Steers), len(s.Rules), len(s.Links))
				}
			},
		},
		{
			name: "no tunnel address", node: "host", facts: hostFacts,
			edit: func(s *intent.Set) { s.Node("host").Spec.TunnelAddress = netip.Addr{} },
			want: "node host has no tunnel address yet",
			check: func(t *testing.T, s desired.State) {
				if len(s.Links) != 0 || len(s.NAT) != 0 || len(s.Rules) != 2 {
					t.Errorf("want rules alone, got %d links, %d NAT, %d rules", len(s.Links), len(s.NAT), len(s.Rules))
				}
			},
		},
		{
			name: "no key", node: "host", facts: hostFacts,
			edit: func(s *intent.Set) { s.Attachment("red").Spec.GREKey = nil },
			want: "attachment red: has no GRE key yet",
		},
		{
			name: "ENI absent", node: "proxy", facts: Facts{UnderlayLink: "eth0", UnderlayMTU: 1500},
			want: "no interface with MAC address 02:00:00:00:65:0a",
			check: func(t *testing.T, s desired.State) {
				for k, n := range s.NAT {
					if len(n.Forward) != 0 || len(n.Guarded) != 1 {
						t.Errorf("%v: without its ENI a namespace must forward nothing: %+v", k, n)
					}
				}
			},
		},
		{
			name: "two interfaces with the MAC", node: "proxy",
			facts: Facts{UnderlayLink: "eth0", UnderlayMTU: 1500, Interfaces: []Interface{
				{Name: "eth1", MAC: "02:00:00:00:65:0a"}, {Name: "br0", MAC: "02:00:00:00:65:0a"}}},
			want: "2 interfaces have MAC address 02:00:00:00:65:0a (eth1, br0)",
		},
		{
			name: "the ENI is the underlay interface", node: "proxy",
			facts: Facts{UnderlayLink: "eth1", UnderlayMTU: 1500, Interfaces: []Interface{{Name: "eth1", MAC: "02:00:00:00:65:0a"}}},
			want:  "eth1 with MAC address 02:00:00:00:65:0a carries the underlay address",
			check: func(t *testing.T, s desired.State) {
				if len(s.ENIs) != 0 {
					t.Errorf("the node would cut itself off: %v", s.ENIs)
				}
			},
		},
		{
			name: "underlay address gone", node: "host", facts: Facts{},
			want: "no interface of this node has its underlay address 192.168.80.8",
		},
		{
			name: "group unknown", node: "host", facts: hostFacts,
			edit: func(s *intent.Set) { s.Groups = nil },
			want: "its group g1 is not known",
		},
		{
			name: "names that shorten to the same", node: "host", facts: hostFacts,
			edit: func(s *intent.Set) {
				s.Put(attachment(ID("a-rather-long-attachment-name"), func(a *intent.Attachment) { a.Spec.GREKey = key(7) }))
			},
			want: "has the short name",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := overlap()
			if tc.edit != nil {
				tc.edit(set)
			}
			p := Build(tc.node, set, tc.facts, testConfig)
			state, problems := p.State, p.Problems
			var all []string
			for _, p := range problems {
				all = append(all, p.String())
			}
			if !strings.Contains(strings.Join(all, "\n"), tc.want) {
				t.Errorf("problems %q, want one with %q", all, tc.want)
			}
			if tc.check != nil {
				tc.check(t, state)
			}
		})
	}
}

// A proxy without the attachment's interface elects, and says what it lacks.
func TestElectionWithoutInterface(t *testing.T) {
	p := Build("second", pair(), Facts{UnderlayLink: "eth0", UnderlayMTU: 1500}, testConfig)
	if len(p.Elections) != 1 || len(p.Elections[0].HaVips) != 1 || !slices.Equal(p.Elections[0].Missing, []string{"red"}) {
		t.Errorf("elections %+v", p.Elections)
	}
	set := pair()
	set.Delete(intent.KindAttachment, "red")
	if p := Build("proxy", set, proxyFacts(), testConfig); len(p.Elections) != 1 {
		t.Errorf("without attachments: elections %+v", p.Elections)
	}
	set.Node("proxy").Spec.Roles = nil
	if p := Build("proxy", set, proxyFacts(), testConfig); len(p.Elections) != 0 {
		t.Errorf("without the role: elections %+v", p.Elections)
	}
}

func TestForeignTunnelPeersStayAdmitted(t *testing.T) {
	facts := Facts{UnderlayLink: "eth0", UnderlayMTU: 1500, ForeignTunnels: []Tunnel{
		{Local: addr("192.168.80.8"), Remote: addr("203.0.113.7"), Keyed: true, Key: 9},
		{Local: addr("192.168.80.9"), Remote: addr("203.0.113.8")},
	}}
	state := Build("host", overlap(), facts, testConfig).State
	if _, ok := state.Peers[desired.PeerKey{Local: addr("192.168.80.8"), Addr: addr("203.0.113.7"), Keyed: true, Key: 9}]; !ok {
		t.Error("the peer of a foreign tunnel on our address is shut out")
	}
	for k := range state.Peers {
		if k.Addr == addr("203.0.113.8") {
			t.Error("a tunnel on another address is none of our business")
		}
	}
}

func TestNeighborModes(t *testing.T) {
	many := func(n int) *intent.Set {
		s := overlap()
		s.Attachment("red").Spec.Scope = intent.ScopeHost
		for i := range n - 1 {
			s.Put(node(fmt.Sprintf("host-%d", i), fmt.Sprintf("192.168.%d.%d", 81+i/250, 1+i%250), fmt.Sprintf("100.64.%d.%d", 1+i/250, 1+i%250), intent.RoleFunction))
		}
		return s
	}
	blue := desired.LinkPrefix + ID("a-rather-long-attachment-name")
	for _, tc := range []struct {
		mode          Neighbors
		hosts         int
		arp, onDemand bool
	}{
		{"", 5, false, false}, {NeighborsEager, AutoNeighbors + 1, false, false}, {NeighborsOnDemand, 1, true, true},
		{NeighborsAuto, AutoNeighbors, true, false}, {NeighborsAuto, AutoNeighbors + 1, true, true},
	} {
		cfg := testConfig
		cfg.Neighbors = tc.mode
		state := Build("proxy", many(tc.hosts), proxyFacts(), cfg).State
		for k, l := range state.Links {
			if want := tc.arp && k.Name == blue; l.ARP != want {
				t.Errorf("%q with %d hosts: ARP of %s is %t", tc.mode, tc.hosts, k.Name, l.ARP)
			}
		}
		n := 0
		for k, v := range state.Neighbors {
			if want := tc.onDemand && k.Link == blue; v.OnDemand != want {
				t.Fatalf("%q with %d hosts: %+v is %+v", tc.mode, tc.hosts, k, v)
			}
			n++
		}
		if n != 2*tc.hosts {
			t.Errorf("%q: %d neighbors for %d hosts", tc.mode, n, tc.hosts)
		}
	}
}

func TestSlotsAreStable(t *testing.T) {
	var list []*intent.Attachment
	before := map[string]uint32{}
	moved := 0
	for i := range 300 {
		list = append(list, attachment("tenant-"+strings.Repeat("x", i%7)+string(rune('a'+i%26))+strings.Repeat("y", i/26)))
		after := slots(list, 0x3fff)
		seen := map[uint32]string{}
		for name, s := range after {
			if o, dup := seen[s]; dup {
				t.Fatalf("%s and %s share slot %d", name, o, s)
			}
			seen[s] = name
		}
		for name, s := range before {
			if after[name] != s {
				moved++
			}
		}
		before = after
	}
	// About 300²/2/16383 ≈ 3 collisions are to be expected; each moves one
	// name once.
	if moved > 10 {
		t.Errorf("%d slots moved while attachments were added one by one", moved)
	}
	if got := len(slots(list, 5)); got != 5 {
		t.Errorf("5 slots for 300 attachments gave %d", got)
	}
}

func TestSpread(t *testing.T) {
	for _, tc := range []struct{ v, mask, want uint32 }{
		{1, 0x3fff, 1}, {5, 0xff0000, 0x50000}, {3, 0x101, 0x101}, {2, 0x101, 0x100}, {1, 0x80000000, 0x80000000},
	} {
		if got := spread(tc.v, tc.mask); got != tc.want {
			t.Errorf("spread(%#x, %#x) = %#x, want %#x", tc.v, tc.mask, got, tc.want)
		}
	}
}

func TestID(t *testing.T) {
	for name, want := range map[string]string{"red": "red", "exactly-11c": "exactly-11c"} {
		if got := ID(name); got != want {
			t.Errorf("ID(%q) = %q", name, got)
		}
	}
	long := ID("a-rather-long-attachment-name")
	if len(long) > idLength || long == ID("a-rather-long-attachment-nome") {
		t.Errorf("ID of a long name: %q", long)
	}
}

func TestFootprintsCoverThePlan(t *testing.T) {
	for _, name := range []string{"host", "proxy"} {
		facts := proxyFacts()
		facts.Interfaces[2].Netns = desired.LinkPrefix + ID("a-rather-long-attachment-name")
		p := Build(name, overlap(), facts, testConfig)
		if len(p.Footprints) != 2 || p.Footprints[1].Attachment != "red" {
			t.Fatalf("%s: footprints %+v", name, p.Footprints)
		}
		for _, k := range keys(p.State) {
			owners := 0
			for _, f := range p.Footprints {
				if f.Owns(k) {
					owners++
				}
			}
			peer, _ := k.(desired.PeerKey)
			shared := peer.Local.IsValid() && !peer.Addr.IsValid() || k == desired.NATKey{} || k == desired.SysctlKey{Name: "net/ipv4/ip_forward"}
			if want := map[bool]int{true: 2, false: 1}[shared]; owners != want {
				t.Errorf("%s: %T %+v has %d owners, want %d", name, k, k, owners, want)
			}
		}
	}
}

func keys(s desired.State) (out []any) {
	return slices.Concat(anyKeys(s.Namespaces), anyKeys(s.NAT), anyKeys(s.Peers), anyKeys(s.Links), anyKeys(s.ENIs), anyKeys(s.Egress),
		anyKeys(s.Addresses), anyKeys(s.Neighbors), anyKeys(s.Sysctls), anyKeys(s.Routes), anyKeys(s.Rules), anyKeys(s.Steers))
}

func anyKeys[K comparable, V any](m map[K]V) (out []any) {
	for k := range m {
		out = append(out, k)
	}
	return out
}
