package intent_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func node(name, underlay string, role intent.Role, change ...func(*intent.Node)) *intent.Node {
	n := &intent.Node{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode},
		Metadata: intent.Metadata{Name: name},
		Spec:     intent.NodeSpec{Roles: []intent.Role{role}, UnderlayAddress: netip.MustParseAddr(underlay)},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func group(name, member string, change ...func(*intent.ProxyGroup)) *intent.ProxyGroup {
	g := &intent.ProxyGroup{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindProxyGroup},
		Metadata: intent.Metadata{Name: name},
		Spec:     intent.ProxyGroupSpec{Members: []intent.Member{{Node: member}}},
	}
	for _, f := range change {
		f(g)
	}
	return g
}

func attachment(name string, change ...func(*intent.Attachment)) *intent.Attachment {
	a := &intent.Attachment{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
		Metadata: intent.Metadata{Name: name},
		Spec: intent.AttachmentSpec{
			VPC: "acme", CIDRs: prefixes("172.16.101.0/24"), Group: "g", Pods: prefixes("10.244.1.5/32"),
			ENIs: []intent.ENI{{Name: "eth1"}},
		},
	}
	for _, f := range change {
		f(a)
	}
	return a
}

func pods(list ...string) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.Pods = prefixes(list...) }
}

func cidrs(list ...string) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.CIDRs = prefixes(list...) }
}

func eni(e intent.ENI) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.ENIs = []intent.ENI{e} }
}

func in(group string) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.Group = group }
}

func on(nodes ...string) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.Nodes = nodes }
}

func host(a *intent.Attachment) { a.Spec.Scope, a.Spec.Pods = intent.ScopeHost, nil }

func keyed(k uint32) func(*intent.Attachment) {
	return func(a *intent.Attachment) { a.Spec.GREKey = key(k) }
}

func overlapping(a *intent.Attachment) { a.Spec.AllowOverlap = true }

// platform is two function hosts, two proxies with a group each, and an
// attachment.
func platform(more ...intent.Object) *intent.Set {
	s := &intent.Set{Revision: 9, Pool: intent.DefaultPool}
	for _, o := range append([]intent.Object{
		node("f1", "192.168.80.8", intent.RoleFunction, func(n *intent.Node) {
			n.Spec.PodCIDRs, n.Spec.UnderlayCIDRs = prefixes("10.244.1.0/24"), prefixes("192.168.0.0/17")
			n.Status.TunnelAddress = netip.MustParseAddr("100.64.0.1")
		}),
		node("f2", "192.168.200.9", intent.RoleFunction, func(n *intent.Node) { n.Spec.PodCIDRs = prefixes("10.244.2.0/24") }),
		node("p1", "192.168.4.100", intent.RoleProxy),
		node("p2", "192.168.4.101", intent.RoleProxy),
		group("g", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = netip.MustParseAddr("10.0.0.4") }),
		group("h", "p2"),
		attachment("base", eni(intent.ENI{MAC: "02:42:ac:10:65:04"}), func(a *intent.Attachment) { a.Status.GREKey = key(7) }),
	}, more...) {
		s.Put(o)
	}
	return s
}

func TestCheck(t *testing.T) {
	other := pods("10.244.1.6/32")
	for name, c := range map[string]struct {
		object  intent.Object
		field   string // "" is no error
		problem string
		reason  intent.Reason
		warning string
	}{
		"itself again":           {object: attachment("base", eni(intent.ENI{MAC: "02:42:ac:10:65:04"}))},
		"other pods":             {object: attachment("x", other)},
		"other CIDRs":            {object: attachment("x", cidrs("172.16.102.0/24"))},
		"one node of all":        {attachment("x", on("f2")), "spec.cidrs[0]", "overlaps", intent.Conflict, ""},
		"same pods and CIDRs":    {attachment("x"), "spec.cidrs[0]", "overlaps 172.16.101.0/24 of attachment base", intent.Conflict, ""},
		"pods within":            {attachment("x", pods("10.244.0.0/16")), "spec.cidrs[0]", "overlaps", intent.Conflict, ""},
		"host beside pods":       {object: attachment("x", host)},
		"unknown group":          {attachment("x", in("nope")), "spec.group", `no ProxyGroup is named "nope"`, intent.NotFound, ""},
		"unknown node":           {attachment("x", other, on("f9")), "spec.nodes[0]", `no Node is named "f9"`, intent.NotFound, ""},
		"proxy as function host": {attachment("x", other, on("p1")), "spec.nodes[0]", "has not the role function", intent.Invalid, ""},
		"eni of no member": {attachment("x", other, func(a *intent.Attachment) {
			a.Spec.ENIs = []intent.ENI{{Node: "p1", Name: "eth1"}, {Node: "p2", Name: "eth1"}}
		}), "spec.enis[1].node", "is not a member of group g", intent.NotFound, ""},
		"member without eni":        {attachment("x", other, eni(intent.ENI{Node: "p2", Name: "eth1"})), "spec.enis[0].node", "is not a member of group g", intent.NotFound, ""},
		"same eni in capitals":      {attachment("x", other, eni(intent.ENI{MAC: "02:42:AC:10:65:04"})), "spec.enis[0]", "serves attachment base", intent.Conflict, ""},
		"same eni, node named":      {attachment("x", other, eni(intent.ENI{Node: "p1", MAC: "02:42:ac:10:65:04"})), "spec.enis[0]", "serves attachment base", intent.Conflict, ""},
		"same eni on another proxy": {object: attachment("x", other, in("h"), eni(intent.ENI{MAC: "02:42:ac:10:65:04"}))},
		"pool":                      {attachment("x", other, cidrs("100.64.0.0/10")), "spec.cidrs[0]", "overlaps the tunnel address pool", intent.Conflict, ""},
		"tunnel address":            {attachment("x", other, cidrs("10.0.0.0/8")), "spec.cidrs[0]", "contains 10.0.0.4, the tunnel address of ProxyGroup g", intent.Conflict, ""},
		"key of another":            {attachment("x", other, keyed(7)), "spec.greKey", "is the key of attachment base", intent.Conflict, ""},
		"underlay":                  {attachment("x", other, cidrs("192.168.1.0/24")), "spec.cidrs[0]", "overlaps the underlay range 192.168.0.0/17 of node f1", intent.Conflict, ""},
		"underlay, accepted":        {object: attachment("x", other, cidrs("192.168.1.0/24"), overlapping), warning: "overlaps the underlay range 192.168.0.0/17 of node f1: attached sources will no longer reach it"},
		"address alone":             {attachment("x", other, cidrs("192.168.200.0/24")), "spec.cidrs[0]", "overlaps the address 192.168.200.9 of node f2", intent.Conflict, ""},
		"pod range, accepted":       {object: attachment("x", other, cidrs("10.244.2.0/25"), overlapping), warning: "pod range 10.244.2.0/24 of node f2"},
		"invalid in itself":         {attachment("x", cidrs("172.16.101.1/24")), "spec.cidrs[0]", "has host bits set", intent.Invalid, ""},

		"group of a stranger":      {object: group("x", "p9")},
		"group of a function host": {group("x", "f1"), "spec.members[0].node", "has not the role proxy", intent.Invalid, ""},
		"group's taken address":    {group("a", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = netip.MustParseAddr("10.0.0.4") }), "spec.tunnelAddress", "is the tunnel address of ProxyGroup g", intent.Conflict, ""},
		"group's own address":      {object: group("g", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = netip.MustParseAddr("10.0.0.4") })},
		"allocated address":        {group("x", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = netip.MustParseAddr("100.64.0.1") }), "spec.tunnelAddress", "is the tunnel address of Node f1", intent.Conflict, ""},
		"address in a subnet":      {group("x", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = netip.MustParseAddr("172.16.101.9") }), "spec.tunnelAddress", "is in 172.16.101.0/24 of attachment base", intent.Conflict, ""},
		"node's taken address":     {node("a", "192.168.80.8", intent.RoleProxy), "spec.underlayAddress", "is the address of node f1", intent.Conflict, ""},
		"node's own address":       {object: node("f1", "192.168.80.8", intent.RoleFunction)},
		"controller without underlay": {object: &intent.Node{
			Metadata: intent.Metadata{Name: "ctl"}, Spec: intent.NodeSpec{Roles: []intent.Role{intent.RoleController}}}},
	} {
		// The answer must not depend on whether the object is in the set.
		for where, set := range map[string]*intent.Set{"outside": platform(), "inside": platform(c.object)} {
			t.Run(name+"/"+where, func(t *testing.T) {
				warnings, err := set.Check(c.object)
				if c.field == "" {
					if err != nil {
						t.Fatalf("refused: %v", err)
					}
				} else if fe := fieldError(t, err, c.field, c.problem); fe.Reason != c.reason {
					t.Errorf("reason %v; want %v", fe.Reason, c.reason)
				}
				if c.warning == "" && len(warnings) > 0 || c.warning != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], c.warning)) {
					t.Errorf("warnings %q; want %q", warnings, c.warning)
				}
			})
		}
	}
}

// What two attachments of scope host can and cannot share.
func TestCheckScopeHost(t *testing.T) {
	first := attachment("h1", host, on("f1"), in("h"), cidrs("172.20.0.0/16"))
	for name, c := range map[string]struct {
		object *intent.Attachment
		field  string
	}{
		"two keyless":              {attachment("h2", host, on("f2"), cidrs("172.21.0.0/16")), "spec.greKey"},
		"with a key":               {attachment("h2", host, on("f2"), cidrs("172.21.0.0/16"), keyed(5)), ""},
		"same CIDRs, other nodes":  {attachment("h2", host, on("f2"), cidrs("172.20.0.0/16"), keyed(5)), ""},
		"same CIDRs, same node":    {attachment("h2", host, on("f1", "f2"), cidrs("172.20.5.0/24"), keyed(5)), "spec.cidrs[0]"},
		"same CIDRs, every node":   {attachment("h2", host, cidrs("172.20.5.0/24"), keyed(5)), "spec.cidrs[0]"},
		"same CIDRs, scope pods":   {attachment("h2", cidrs("172.20.5.0/24")), ""},
		"keyless beside allocated": {attachment("h3", host, on("f2"), cidrs("172.21.0.0/16"), func(a *intent.Attachment) { a.Status.GREKey = key(9) }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := platform(first).Check(c.object)
			if c.field == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if fe := fieldError(t, err, c.field, "h1"); fe.Reason != intent.Conflict {
				t.Errorf("reason %v; want Conflict", fe.Reason)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	for name, c := range map[string]struct {
		object         intent.Object
		field, problem string
	}{
		"pods of IPv6":          {attachment("x", pods("2001:db8::/64")), "spec.pods[0]", "is IPv6"},
		"destination of IPv6":   {attachment("x", cidrs("2001:db8::/64")), "spec.cidrs[0]", "is IPv6"},
		"snat of IPv6":          {attachment("x", func(a *intent.Attachment) { a.Spec.SNATAddress = v6 }), "spec.snatAddress", "is IPv6"},
		"gateway of IPv6":       {attachment("x", eni(intent.ENI{Name: "eth1", Gateway: v6})), "spec.enis[0].gateway", "is IPv6"},
		"group's tunnel":        {group("x", "p1", func(g *intent.ProxyGroup) { g.Spec.TunnelAddress = v6 }), "spec.tunnelAddress", "is IPv6"},
		"node's tunnel":         {node("x", "192.168.1.1", intent.RoleProxy, func(n *intent.Node) { n.Spec.TunnelAddress = v6 }), "spec.tunnelAddress", "is IPv6"},
		"loopback address":      {attachment("x", eni(intent.ENI{Name: "eth1", Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("127.0.0.1"), 8)}})), "spec.enis[0].addresses[0]", "loopback"},
		"mapped address":        {node("x", "::ffff:192.168.1.1", intent.RoleProxy), "spec.underlayAddress", "is not IPv4"},
		"pods with host bits":   {attachment("x", pods("10.244.1.5/24")), "spec.pods[0]", "did you mean 10.244.1.0/24?"},
		"no prefix":             {attachment("x", func(a *intent.Attachment) { a.Spec.CIDRs = make([]netip.Prefix, 1) }), "spec.cidrs[0]", "is missing"},
		"name of an interface":  {attachment("x", eni(intent.ENI{Name: "eth0:1"})), "spec.enis[0].name", "is not an interface name"},
		"long interface":        {attachment("x", eni(intent.ENI{Name: "a-very-long-name"})), "spec.enis[0].name", "at most 15 characters"},
		"interface with space":  {attachment("x", eni(intent.ENI{Name: "eth\u00a01"})), "spec.enis[0].name", "is not an interface name"},
		"name of a node":        {attachment("x", on("F1")), "spec.nodes[0]", "is not a DNS label"},
		"node of an eni":        {attachment("x", eni(intent.ENI{Node: "P1", Name: "eth1"})), "spec.enis[0].node", "is not a DNS label"},
		"eni twice":             {attachment("x", func(a *intent.Attachment) { a.Spec.ENIs = []intent.ENI{{Name: "eth1"}, {Name: "eth2"}} }), "spec.enis[1].node", "appears twice"},
		"nameless member":       {group("x", ""), "spec.members[0].node", "is missing"},
		"pod range's host bits": {node("x", "192.168.1.1", intent.RoleProxy, func(n *intent.Node) { n.Spec.PodCIDRs = prefixes("10.0.0.1/8") }), "spec.podCIDRs[0]", "did you mean 10.0.0.0/8?"},
		"underlay's host bits":  {node("x", "192.168.1.1", intent.RoleProxy, func(n *intent.Node) { n.Spec.UnderlayCIDRs = prefixes("10.0.0.1/8") }), "spec.underlayCIDRs[0]", "did you mean 10.0.0.0/8?"},
	} {
		t.Run(name, func(t *testing.T) { wantField(t, c.object.Validate(), c.field, c.problem) })
	}
}

func names[O intent.Object](list []O) (out []string) {
	for _, o := range list {
		out = append(out, o.ObjectName())
	}
	return out
}

func TestVisible(t *testing.T) {
	set := platform(
		attachment("far", in("h"), pods("10.244.2.7/32"), keyed(8)),
		attachment("wide", in("h"), pods("10.244.0.0/16"), cidrs("172.30.0.0/16"), keyed(9)),
		attachment("only-f2", host, in("h"), on("f2"), cidrs("172.31.0.0/16"), keyed(10)),
	)
	for name, c := range map[string]struct{ nodes, groups, attachments []string }{
		"f1":      {[]string{"f1", "p1", "p2"}, []string{"g", "h"}, []string{"base", "wide"}},
		"f2":      {[]string{"f2", "p2"}, []string{"h"}, []string{"far", "only-f2", "wide"}},
		"p1":      {[]string{"f1", "p1"}, []string{"g"}, []string{"base"}},
		"p2":      {[]string{"f1", "f2", "p2"}, []string{"h"}, []string{"far", "only-f2", "wide"}},
		"unknown": {nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := set.Visible(name)
			for what, d := range map[string]string{
				"nodes":       cmp.Diff(c.nodes, names(v.Nodes)),
				"groups":      cmp.Diff(c.groups, names(v.Groups)),
				"attachments": cmp.Diff(c.attachments, names(v.Attachments)),
			} {
				if d != "" {
					t.Errorf("%s (-want +got):\n%s", what, d)
				}
			}
			if v.Revision != set.Revision || v.Pool != set.Pool {
				t.Errorf("revision %d and pool %v; want the set's", v.Revision, v.Pool)
			}
		})
	}
	// A group is of its proxy even without attachments; a member that has
	// lost its role serves nothing.
	set.Put(group("empty", "p1"))
	if got := names(set.Visible("p1").Groups); !slices.Equal(got, []string{"empty", "g"}) {
		t.Errorf("groups of p1: %v", got)
	}
	set.Put(node("p1", "192.168.4.100", intent.RoleController))
	if got := set.Visible("p1").Attachments; len(got) > 0 {
		t.Errorf("a member without the role proxy learns %v", names(got))
	}
}

func TestVisibleTellsWhatIsGone(t *testing.T) {
	set := platform(attachment("far", in("h"), pods("10.244.2.7/32"), keyed(8)))
	set.Removed = []*intent.Attachment{attachment("deleted", keyed(99))}
	set.Unreadable = []string{"Attachment/torn"}
	v := set.Visible("p1", "base", "far", "deleted", "torn", "lost")
	if got := names(v.Removed); !slices.Equal(got, []string{"far", "deleted"}) {
		t.Errorf("removed: %v; want what moved away and what was deleted", got)
	}
	for _, a := range v.Removed {
		if _, keyed := a.Key(); keyed || a.Spec.VPC != "" {
			t.Errorf("removed %s carries %+v; want the name alone", a.ObjectName(), a.Spec)
		}
	}
	if !slices.Equal(v.Unreadable, set.Unreadable) {
		t.Errorf("unreadable: %v", v.Unreadable)
	}
	// Without its group nobody can tell whose an attachment is: it has not
	// moved away.
	torn := set.Clone()
	torn.Delete(intent.KindProxyGroup, "g")
	torn.Unreadable = []string{"ProxyGroup/g", "Attachment/base"}
	if got := torn.Visible("p1", "base").Removed; len(got) > 0 {
		t.Errorf("removed: %v; want nothing, the group cannot be read", names(got))
	}
	if got := set.Visible("p1").Removed; len(got) > 0 {
		t.Errorf("a node that knows nothing is told of %v", names(got))
	}
	// The node's own view of it.
	before := &intent.Set{}
	for _, n := range []string{"base", "far", "deleted", "torn", "lost"} {
		before.Put(attachment(n))
	}
	if got := intent.Vanished(before, v); !slices.Equal(got, []string{"lost"}) {
		t.Errorf("vanished: %v; want the one that nobody can explain", got)
	}
}

func TestRetain(t *testing.T) {
	before := platform(attachment("gone"))
	after := platform()
	after.Delete(intent.KindAttachment, "base")
	after.Delete(intent.KindProxyGroup, "g")
	after.Delete(intent.KindNode, "p1")
	after.Delete(intent.KindNode, "f2")
	after.Unreadable = []string{"Attachment/base", "ProxyGroup/g"}
	got := after.Retain(before)
	if !slices.Equal(names(got.Attachments), []string{"base"}) || got.Group("g") == nil {
		t.Errorf("retained attachments %v and groups %v; want base and g", names(got.Attachments), names(got.Groups))
	}
	if got.Node("p1") == nil {
		t.Error("the node that a retained group needs is not retained")
	}
	if got.Node("f2") != nil {
		t.Error("a node that was deleted is retained though nothing needs it")
	}
	after.Delete(intent.KindNode, "f1")
	if after.Retain(before).Node("f1") == nil {
		t.Error("the function host of a retained attachment is not retained")
	}
	if after.Attachment("base") != nil {
		t.Error("Retain changed its receiver")
	}
	if after.Retain(nil) != after || before.Retain(after) != before {
		t.Error("with nothing unreadable, or nothing before, the set is itself")
	}
}

func TestSet(t *testing.T) {
	s := &intent.Set{}
	for _, n := range []string{"b", "c", "a"} {
		s.Put(attachment(n))
	}
	c := s.Clone()
	c.Put(attachment("b", keyed(5)))
	c.Delete(intent.KindAttachment, "a")
	c.Delete(intent.KindAttachment, "never")
	if got := names(s.Attachments); !slices.Equal(got, []string{"a", "b", "c"}) || s.Attachment("b").Spec.GREKey != nil {
		t.Errorf("the original has %v after its clone was changed", got)
	}
	if got := names(c.Attachments); !slices.Equal(got, []string{"b", "c"}) || *c.Attachment("b").Spec.GREKey != 5 {
		t.Errorf("the clone has %v", got)
	}
	p := platform()
	for _, kind := range intent.Kinds {
		for _, o := range p.List(kind) {
			if got, ok := p.Get(kind, o.ObjectName()); !ok || got != o {
				t.Errorf("Get(%s, %s) = %v, %v", kind, o.ObjectName(), got, ok)
			}
			p.Delete(kind, o.ObjectName())
			if _, ok := p.Get(kind, o.ObjectName()); ok {
				t.Errorf("%s %s is there after Delete", kind, o.ObjectName())
			}
		}
	}
	if _, ok := p.Get("Pod", "x"); ok || p.List("Pod") != nil {
		t.Error("a kind that is not known has objects")
	}
}

func TestUses(t *testing.T) {
	f1 := platform().Node("f1")
	for name, c := range map[string]struct {
		a    *intent.Attachment
		want bool
	}{
		"pod here":          {attachment("x"), true},
		"pod elsewhere":     {attachment("x", pods("10.244.2.5/32")), false},
		"range around":      {attachment("x", pods("10.0.0.0/8")), true},
		"named":             {attachment("x", on("f1")), true},
		"another is named":  {attachment("x", on("f2")), false},
		"named, pods not":   {attachment("x", on("f1"), pods("10.244.2.5/32")), false},
		"host":              {attachment("x", host), true},
		"host of another":   {attachment("x", host, on("f2")), false},
		"explicit pods":     {attachment("x", func(a *intent.Attachment) { a.Spec.Scope = intent.ScopePods }), true},
		"second of several": {attachment("x", pods("10.244.2.5/32", "10.244.1.9/32")), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.a.Uses(f1); got != c.want {
				t.Errorf("Uses = %v; want %v", got, c.want)
			}
		})
	}
	if attachment("x").Uses(platform().Node("p1")) {
		t.Error("a proxy uses an attachment")
	}
	if !attachment("x").Uses(node("any", "192.168.1.1", intent.RoleFunction)) {
		t.Error("a function host without pod ranges may have any pod")
	}
}
