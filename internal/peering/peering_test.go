package peering

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	subnet    = prefix("172.16.101.0/24")
	proxy1    = addr("192.168.4.4")
	proxy2    = addr("192.168.4.5")
	havip     = addr("192.168.4.100")
	hostAddr  = addr("192.168.80.8")
	reflector = addr("192.168.4.9")
	testCfg   = Config{Mode: Client, BGP: plan.BGP{ASN: 65000}, Reflectors: []netip.Addr{reflector}}
)

// world is a host, two pairs' worth of proxies in two groups (g2 with a HaVip
// and both zones), an attachment of both, and one of somebody else's.
func world() *intent.Set {
	s := &intent.Set{}
	node := func(name string, a netip.Addr, zone string, tunnel string, roles ...intent.Role) {
		n := &intent.Node{Metadata: intent.Metadata{Name: name}, Spec: intent.NodeSpec{Roles: roles, UnderlayAddress: a, Zone: zone}}
		if tunnel != "" {
			n.Spec.TunnelAddress = addr(tunnel)
			n.Spec.UnderlayCIDRs = []netip.Prefix{prefix("192.168.80.0/24")}
		}
		s.Put(n)
	}
	node("host", hostAddr, "a", "100.64.0.80", intent.RoleFunction)
	node("other", addr("192.168.80.9"), "b", "100.64.0.81", intent.RoleFunction)
	node("p1", proxy1, "a", "", intent.RoleProxy)
	node("p2", proxy2, "b", "", intent.RoleProxy)
	node("p3", addr("192.168.4.6"), "a", "", intent.RoleProxy)
	group := func(name, tunnel string, havip netip.Addr, members ...string) {
		g := &intent.ProxyGroup{Metadata: intent.Metadata{Name: name}, Spec: intent.ProxyGroupSpec{TunnelAddress: addr(tunnel), HaVip: havip}}
		for _, m := range members {
			g.Spec.Members = append(g.Spec.Members, intent.Member{Node: m})
		}
		s.Put(g)
	}
	group("g1", "100.64.0.4", netip.Addr{}, "p1")
	group("g2", "100.64.0.5", havip, "p2", "p3")
	key := func(k uint32) *uint32 { return &k }
	s.Put(&intent.Attachment{Metadata: intent.Metadata{Name: "red"}, Spec: intent.AttachmentSpec{
		CIDRs: []netip.Prefix{subnet, prefix("172.16.200.0/24")}, GREKey: key(4097),
		Groups: []intent.Service{{Name: "g1"}, {Name: "g2"}}, Pods: []netip.Prefix{prefix("10.244.1.5/32")}, Nodes: []string{"host"},
	}})
	s.Put(&intent.Attachment{Metadata: intent.Metadata{Name: "blue"}, Spec: intent.AttachmentSpec{
		CIDRs: []netip.Prefix{subnet}, GREKey: key(4098), Group: "g1", Pods: []netip.Prefix{prefix("10.244.2.5/32")}, Nodes: []string{"other"},
	}})
	return s
}

func route(cidr netip.Prefix, hop, originator netip.Addr, key uint32) bgp.Route {
	rd := plan.Distinguisher(hop, key)
	return bgp.Route{
		Path: bgp.Path{
			NLRI:    bgp.NLRI{RD: bgp.RouteDistinguisher(rd), Prefix: cidr},
			NextHop: hop, Encapsulation: bgp.Encapsulation{GRE: true, Keyed: true, Key: key},
			Targets: []bgp.Target{{ASN: 65000, Number: key}}, LocalPref: 100,
		},
		Peer: reflector, Originator: originator, Reflected: true,
	}
}

func hostRoute(tunnel string, hop, originator netip.Addr) bgp.Route {
	return bgp.Route{
		Path: bgp.Path{
			NLRI:    bgp.NLRI{RD: bgp.RouteDistinguisher(plan.Distinguisher(hop, 0)), Prefix: prefix(tunnel + "/32")},
			NextHop: hop, Encapsulation: bgp.Encapsulation{GRE: true}, Targets: []bgp.Target{{Addr: addr("100.64.0.4"), Number: 1}}, LocalPref: 100,
		},
		Peer: reflector, Originator: originator, Reflected: true,
	}
}

// TestHostBelieves is what a function host makes of routes to attachments.
func TestHostBelieves(t *testing.T) {
	good := route(subnet, proxy1, proxy1, 4097)
	with := func(change func(*bgp.Route)) bgp.Route {
		r := good
		r.Targets = slices.Clone(r.Targets)
		change(&r)
		return r
	}
	for name, tt := range map[string]struct {
		route bgp.Route
		want  Verdict
	}{
		"own zone":               {good, Verdict{Attachment: "red", Group: "g1", Preference: 1100}},
		"HaVip, other zone":      {route(subnet, havip, proxy2, 4097), Verdict{Attachment: "red", Group: "g2", Preference: 100}},
		"HaVip, own zone":        {route(subnet, havip, addr("192.168.4.6"), 4097), Verdict{Attachment: "red", Group: "g2", Preference: 1100}},
		"boast":                  {with(func(r *bgp.Route) { r.LocalPref = 1 << 31 }), Verdict{Attachment: "red", Group: "g1", Preference: 1999}},
		"somebody's attachment":  {route(subnet, proxy1, proxy1, 4098), Verdict{Reason: UnknownAttachment}},
		"default route":          {with(func(r *bgp.Route) { r.Prefix = prefix("0.0.0.0/0") }), Verdict{Reason: WrongPrefix}},
		"underlay":               {with(func(r *bgp.Route) { r.Prefix = prefix("192.168.0.0/16") }), Verdict{Reason: WrongPrefix}},
		"more specific":          {with(func(r *bgp.Route) { r.Prefix = prefix("172.16.101.5/32") }), Verdict{Reason: WrongPrefix}},
		"no tunnel":              {with(func(r *bgp.Route) { r.Encapsulation = bgp.Encapsulation{} }), Verdict{Reason: UnknownAttachment}},
		"no key":                 {with(func(r *bgp.Route) { r.Encapsulation.Keyed = false }), Verdict{Reason: UnknownAttachment}},
		"another target":         {with(func(r *bgp.Route) { r.Targets[0].Number = 4098 }), Verdict{Reason: UnknownAttachment}},
		"another distinguisher":  {with(func(r *bgp.Route) { r.RD.Number = 4098 }), Verdict{Reason: UnknownAttachment}},
		"next hop of a host":     {route(subnet, addr("192.168.80.9"), proxy1, 4097), Verdict{Reason: WrongNextHop}},
		"next hop of a member":   {route(subnet, proxy2, proxy2, 4097), Verdict{Reason: WrongNextHop}},
		"a host speaks for it":   {route(subnet, proxy1, addr("192.168.80.9"), 4097), Verdict{Reason: WrongOrigin}},
		"another group's member": {route(subnet, proxy1, proxy2, 4097), Verdict{Reason: WrongOrigin}},
		"a host's address":       {hostRoute("100.64.0.81", addr("192.168.80.9"), addr("192.168.80.9")), Verdict{Reason: UnknownAttachment}},
	} {
		t.Run(name, func(t *testing.T) {
			got := newJudge("host", world(), testCfg).judge(tt.route)
			if got.Reason != Accepted && got.Detail == "" {
				t.Error("refused without a word")
			}
			got.Detail = ""
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	if v := newJudge("stranger", world(), testCfg).judge(good); v.Reason == Accepted {
		t.Error("a node without intent believes")
	}
}

// TestProxyBelieves is what a proxy makes of the addresses of function hosts.
func TestProxyBelieves(t *testing.T) {
	moved, taken := addr("192.168.80.99"), addr("192.168.80.9")
	for name, tt := range map[string]struct {
		route bgp.Route
		want  Reason
	}{
		"where it is":      {hostRoute("100.64.0.80", hostAddr, hostAddr), Accepted},
		"moved":            {hostRoute("100.64.0.80", moved, moved), Accepted},
		"of another node":  {hostRoute("100.64.0.80", taken, taken), WrongNextHop},
		"of a HaVip":       {hostRoute("100.64.0.80", havip, havip), WrongNextHop},
		"out of its range": {hostRoute("100.64.0.80", addr("10.1.1.1"), addr("10.1.1.1")), WrongNextHop},
		"for somebody":     {hostRoute("100.64.0.80", moved, taken), WrongOrigin},
		"of nobody":        {hostRoute("100.64.0.99", hostAddr, hostAddr), WrongPrefix},
		"of many": {func() bgp.Route {
			r := hostRoute("100.64.0.80", hostAddr, hostAddr)
			r.Prefix = prefix("100.64.0.0/16")
			return r
		}(), WrongPrefix},
		"with a key": {func() bgp.Route {
			r := hostRoute("100.64.0.80", hostAddr, hostAddr)
			r.Encapsulation.Keyed = true
			return r
		}(), WrongTunnel},
		"of an attachment's": {route(subnet, proxy1, proxy1, 4097), UnknownAttachment},
	} {
		t.Run(name, func(t *testing.T) {
			if got := newJudge("p1", world(), testCfg).judge(tt.route); got.Reason != tt.want {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

func synced(up, synced bool) []bgp.Session {
	return []bgp.Session{{Address: addr("192.168.4.10")}, {Address: reflector, Established: up, Synced: synced}}
}

// TestTableKeeps follows a table through the loss of all neighbors.
func TestTableKeeps(t *testing.T) {
	now := time.Unix(0, 0)
	far := prefix("172.16.200.0/24")
	table := NewTable("host", testCfg, 10*time.Second)
	table.SetIntent(world())
	seq := uint64(0)
	fresh := func(routes ...bgp.Route) []bgp.Route {
		for i := range routes {
			seq++
			routes[i].Seq = seq
		}
		return routes
	}
	gateways := func(want string, routes []bgp.Route, peers []bgp.Session) time.Time {
		t.Helper()
		live, _, again := table.Update(now, routes, peers)
		if live == nil {
			if want != "nothing known" {
				t.Fatalf("nothing known, want %q", want)
			}
			return again
		}
		if want := !again.IsZero() || !peers[1].Synced; live.Unsure != want {
			t.Errorf("unsure %t, to look again at %v", live.Unsure, again)
		}
		var got []string
		for _, g := range live.Gateways["red"] {
			got = append(got, g.Group)
		}
		if strings.Join(got, " ") != want {
			t.Fatalf("alive: %q, want %q", got, want)
		}
		return again
	}
	gateways("nothing known", nil, synced(false, false))
	one := fresh(route(subnet, proxy1, proxy1, 4097), route(far, proxy1, proxy1, 4097))
	two := fresh(route(subnet, havip, proxy2, 4097), route(far, havip, proxy2, 4097))
	gateways("nothing known", one, synced(true, false))
	gateways("g1", one, synced(true, true))
	gateways("g1", slices.Concat(one, two[:1]), synced(true, true)) // half of g2's subnets only
	gateways("g1 g2", slices.Concat(one, two), synced(true, true))
	gateways("g2", two, synced(true, true))
	both := slices.Concat(one, two)
	gateways("g1 g2", both, synced(true, true))

	// Deaf: the neighbor's routes go, and what was believed stays, however long.
	gateways("g1 g2", nil, synced(false, false))
	now = now.Add(time.Hour)
	gateways("g1 g2", nil, synced(false, false))
	// Who is drained meanwhile says so by the intent alone; routes that the
	// speaker still has from before are no better.
	drained := world()
	drained.Node("p1").Spec.Cordoned, drained.Node("p2").Spec.Cordoned = true, true
	table.SetIntent(drained)
	gateways("g2", nil, synced(false, false)) // p3 is not drained
	gateways("g2", both, synced(false, false))
	table.SetIntent(world())
	gateways("g1 g2", nil, synced(false, false))
	// It comes back and does not know everything yet.
	gateways("g1 g2", nil, synced(true, false))
	one = fresh(one...)
	again := gateways("g1 g2", one, synced(true, true))
	if want := now.Add(10 * time.Second); again != want {
		t.Errorf("look again at %v, want %v", again, want)
	}
	gateways("g2", nil, synced(true, true)) // g1 was heard, and is withdrawn
	gateways("g1 g2", one, synced(true, true))
	now = again
	if again := gateways("g1", one, synced(true, true)); !again.IsZero() {
		t.Errorf("look again at %v for nothing", again)
	}

	// Another process goes on from there, even before it hears anybody.
	file := filepath.Join(t.TempDir(), "bgp.json")
	if m, err := LoadMemory(file); err != nil || m.Boot != "" {
		t.Errorf("%+v, %v", m, err)
	}
	if err := (Memory{"boot", table.Believed()}).Save(file); err != nil {
		t.Fatal(err)
	}
	m, err := LoadMemory(file)
	if err != nil || m.Boot != "boot" || !reflect.DeepEqual(m.Routes, table.Believed()) {
		t.Fatalf("%+v, %v", m, err)
	}
	table = NewTable("host", testCfg, 10*time.Second)
	table.SetIntent(world())
	table.Restore(m.Routes)
	gateways("g1", nil, synced(false, false))
	// What the intent no longer allows is not believed any more.
	table.SetIntent(&intent.Set{})
	gateways("", nil, synced(false, false))
}

func TestMoved(t *testing.T) {
	table := NewTable("p1", testCfg, time.Second)
	table.SetIntent(world())
	moved := addr("192.168.80.99")
	live, judged, _ := table.Update(time.Unix(0, 0), []bgp.Route{hostRoute("100.64.0.80", moved, moved), hostRoute("100.64.0.81", addr("192.168.80.9"), addr("192.168.80.9"))}, synced(true, true))
	if want := map[netip.Addr]netip.Addr{addr("100.64.0.80"): moved}; !reflect.DeepEqual(live.Moved, want) || len(judged) != 2 {
		t.Errorf("%v, %+v", live.Moved, judged)
	}
}

func TestNeighbors(t *testing.T) {
	mesh := Config{Mode: Mesh, BGP: plan.BGP{ASN: 65000}}
	text := func(n bgp.Neighbors) string {
		var out []string
		for _, p := range n.Peers {
			word := p.Address.String()
			if p.Passive {
				word += " waits"
			}
			out = append(out, word)
		}
		for _, r := range n.Ranges {
			out = append(out, r.Prefix.String())
		}
		return strings.Join(out, ", ")
	}
	both := world()
	both.Node("host").Spec.Roles = []intent.Role{intent.RoleFunction, intent.RoleProxy}
	both.Node("p1").Spec.Roles = []intent.Role{intent.RoleFunction, intent.RoleProxy}
	for _, tt := range []struct {
		name string
		cfg  Config
		set  *intent.Set
		want string
	}{
		{"host", mesh, world(), "192.168.4.4, 192.168.4.5, 192.168.4.6"},
		{"p1", mesh, world(), "192.168.80.8 waits, 192.168.80.9 waits"},
		{"p1", mesh, both, "192.168.80.8, 192.168.80.9 waits, 192.168.4.5, 192.168.4.6"},
		{"host", mesh, both, "192.168.80.9 waits, 192.168.4.4 waits, 192.168.4.5, 192.168.4.6"},
		{"stranger", mesh, world(), ""},
		{"host", mesh, nil, ""},
		{"host", testCfg, nil, "192.168.4.9"},
		{"r", Config{Mode: Reflector, Reflectors: []netip.Addr{reflector}, Ranges: []netip.Prefix{prefix("10.0.0.0/8")}}, nil, "192.168.4.9, 10.0.0.0/8"},
	} {
		if got := text(tt.cfg.Neighbors(tt.name, tt.set)); got != tt.want {
			t.Errorf("%s, %s: %q, want %q", tt.name, tt.cfg.Mode, got, tt.want)
		}
	}
}

func TestInterest(t *testing.T) {
	in := func(names ...string) (out []plan.Footprint) {
		for _, n := range names {
			out = append(out, plan.Footprint{Attachment: n, Role: intent.RoleFunction, Key: 4097, InUse: true})
		}
		return out
	}
	idle := plan.Footprint{Attachment: "blue", Role: intent.RoleFunction, Key: 4098}
	if got := testCfg.Interest("host", world(), append(in("red"), idle)); got.All || !slices.Equal(got.Targets, []bgp.Target{{ASN: 65000, Number: 4097}}) {
		t.Errorf("%+v", got)
	}
	served := []plan.Footprint{{Attachment: "red", Role: intent.RoleProxy, InUse: true}, {Attachment: "blue", Role: intent.RoleProxy, InUse: true}}
	if got := testCfg.Interest("p1", world(), served); got.All || !slices.Equal(got.Targets, []bgp.Target{{Addr: addr("100.64.0.4"), Number: 1}}) {
		t.Errorf("%+v", got)
	}
	if got := (Config{Mode: Reflector}).Interest("r", nil, nil); !got.All {
		t.Errorf("%+v", got)
	}
	if got := testCfg.Interest("host", world(), in(slices.Repeat([]string{"red"}, maxTargets+1)...)); !got.All {
		t.Errorf("%d targets are asked for one by one", len(got.Targets))
	}
}

// FuzzLoadMemory feeds what an earlier agent, or a crash, has left: it is refused,
// naming the file, or can be kept and read again as the same.
func FuzzLoadMemory(f *testing.F) {
	f.Add([]byte(`{"boot":"b","routes":[{"RD":{"Admin":1,"Number":2},"Prefix":"172.16.101.0/24","NextHop":"192.168.4.4","Encapsulation":{"GRE":true,"Keyed":true,"Key":7},"Targets":[{"Addr":"100.64.0.2","ASN":0,"Number":1}],"LocalPref":100,"Peer":"192.168.4.1","Originator":"192.168.4.9","Seq":3}]}`))
	f.Add([]byte(`{"routes":[{"Prefix":""}]}`))
	f.Add([]byte(`null`))
	file := filepath.Join(f.TempDir(), "memory.json")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := LoadMemory(file)
		if err != nil {
			if !strings.Contains(err.Error(), file) || len(m.Routes) > 0 {
				t.Errorf("%v, with %d routes", err, len(m.Routes))
			}
			return
		}
		if err := m.Save(file); err != nil {
			t.Fatal(err)
		}
		again, err := LoadMemory(file)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("kept %+v, read %+v, %v", m, again, err)
		}
	})
}

// What is believed is handed over in one order, whatever the map's: that it is
// the same as before is seen by comparing it.
func TestBelievedInOrder(t *testing.T) {
	table := NewTable("host", testCfg, time.Second)
	var want []bgp.Route
	for _, n := range []bgp.NLRI{
		{RD: bgp.RouteDistinguisher{Admin: 1, Number: 7}, Prefix: prefix("10.0.0.0/8")},
		{RD: bgp.RouteDistinguisher{Admin: 1, Number: 70}, Prefix: prefix("9.0.0.0/8")},
		{RD: bgp.RouteDistinguisher{Admin: 1, Number: 70}, Prefix: prefix("10.0.0.0/8")},
		{RD: bgp.RouteDistinguisher{Admin: 1, Number: 70}, Prefix: prefix("10.0.0.0/9")},
		{RD: bgp.RouteDistinguisher{Admin: 1, Number: 70}, Prefix: prefix("fd00::/8")},
		{RD: bgp.RouteDistinguisher{Admin: 2}, Prefix: prefix("9.0.0.0/8")},
	} {
		want = append(want, bgp.Route{Path: bgp.Path{NLRI: n}})
	}
	table.Restore(want)
	if got := table.Believed(); !slices.EqualFunc(got, want, Same) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, change := range []func(*bgp.Route){
		func(r *bgp.Route) { r.NextHop = proxy1 },
		func(r *bgp.Route) { r.Targets = []bgp.Target{{ASN: 1}} },
		func(r *bgp.Route) { r.Peer = proxy1 },
		func(r *bgp.Route) { r.Originator = proxy1 },
		func(r *bgp.Route) { r.Reflected = true },
		func(r *bgp.Route) { r.Seq++ },
	} {
		other := want[0]
		if change(&other); Same(other, want[0]) {
			t.Errorf("%+v is taken for %+v", other, want[0])
		}
	}
}
