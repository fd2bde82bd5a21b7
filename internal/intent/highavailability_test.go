package intent_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

var (
	groupVip = netip.MustParseAddr("192.168.4.200")
	vpcVip   = netip.MustParseAddr("172.16.101.200")
)

// pair is a group of p1 and p2 that elects.
func pair(name string, change ...func(*intent.ProxyGroup)) *intent.ProxyGroup {
	return group(name, "p1", append([]func(*intent.ProxyGroup){func(g *intent.ProxyGroup) {
		g.Spec.Members = append(g.Spec.Members, intent.Member{Node: "p2"})
		g.Spec.HaVip, g.Spec.VRID = groupVip, 7
	}}, change...)...)
}

func vip(a *intent.Attachment) { a.Spec.HaVip = vpcVip }

func spec(change func(*intent.ProxyGroupSpec)) func(*intent.ProxyGroup) {
	return func(g *intent.ProxyGroup) { change(&g.Spec) }
}

func TestValidateElection(t *testing.T) {
	if err := pair("x").Validate(); err != nil {
		t.Errorf("a pair: %v", err)
	}
	if err := group("x", "p1", spec(func(s *intent.ProxyGroupSpec) { s.HaVip, s.VRID = groupVip, 1 })).Validate(); err != nil {
		t.Errorf("one proxy with a haVip: %v", err)
	}
	millisecond := intent.Duration(time.Millisecond)
	negative := -millisecond
	for name, c := range map[string]struct {
		object         intent.Object
		field, problem string
	}{
		"two members without haVip": {group("x", "p1", func(g *intent.ProxyGroup) { g.Spec.Members = append(g.Spec.Members, intent.Member{Node: "p2"}) }),
			"spec.haVip", "2 proxies share an address"},
		"member twice":      {pair("x", func(g *intent.ProxyGroup) { g.Spec.Members[1].Node = "p1" }), "spec.members[1].node", "appears twice"},
		"priority 255":      {pair("x", func(g *intent.ProxyGroup) { g.Spec.Members[0].Priority = 255 }), "spec.members[0].priority", "want 1 to 254"},
		"no vrid":           {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.VRID = 0 })), "spec.vrid", "is 0; want 1 to 255"},
		"vrid 256":          {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.VRID = 256 })), "spec.vrid", "is 256"},
		"haVip of IPv6":     {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.HaVip = netip.MustParseAddr("2001:db8::1") })), "spec.haVip", "is IPv6"},
		"haVip of loopback": {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.HaVip = netip.MustParseAddr("127.0.0.1") })), "spec.haVip", "loopback"},
		"interval":          {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.AdvertisementInterval = 15 * millisecond })), "spec.advertisementInterval", "is 15ms; want 10ms to 40.95s in steps of 10ms"},
		"long interval":     {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.AdvertisementInterval = 40960 * millisecond })), "spec.advertisementInterval", "want 10ms to 40.95s"},
		"preempt delay":     {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.PreemptDelay = &negative })), "spec.preemptDelay", "want 0s to 1h"},
		"transport":         {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Transport = "broadcast" })), "spec.transport", "want unicast or multicast"},
		"checksum":          {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Checksum = "none" })), "spec.checksum", "want rfc9568, or rfc5798"},
		"sends":             {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Sends = 11 })), "spec.sends", "want 1 to 10"},
		"TTL":               {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.MinTTL = 256 })), "spec.minTTL", "want 1 to 255"},
		"TTL of multicast": {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.MinTTL, s.Transport = 254, intent.TransportMulticast })),
			"spec.minTTL", "stay on one link"},
		"unknown track": {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Tracks = []intent.Track{{Name: "disk"}} })), "spec.tracks[0].name", "want eni, underlay, sync or probe"},
		"track twice": {pair("x", spec(func(s *intent.ProxyGroupSpec) {
			s.Tracks = []intent.Track{{Name: intent.TrackENI}, {Name: intent.TrackENI, Effect: intent.EffectFault}}
		})), "spec.tracks[1].name", "appears twice"},
		"unknown effect": {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Tracks = []intent.Track{{Name: intent.TrackENI, Effect: "reboot"}} })),
			"spec.tracks[0].effect", "want lower, fault or ignore"},
		"too much": {pair("x", spec(func(s *intent.ProxyGroupSpec) { s.Tracks = []intent.Track{{Name: intent.TrackENI, By: 254}} })),
			"spec.tracks[0].by", "want 1 to 253"},
		"fault by": {pair("x", spec(func(s *intent.ProxyGroupSpec) {
			s.Tracks = []intent.Track{{Name: intent.TrackENI, Effect: intent.EffectFault, By: 3}}
		})), "spec.tracks[0].by", "takes nothing from the priority"},
		"vrid without haVip": {group("x", "p1", spec(func(s *intent.ProxyGroupSpec) { s.VRID = 3 })), "spec.vrid", "without spec.haVip nothing is elected"},
		"haVip beside snat":  {attachment("x", vip, func(a *intent.Attachment) { a.Spec.SNATAddress = vpcVip }), "spec.snatAddress", "is set beside spec.haVip"},
		"haVip on an ENI": {attachment("x", vip, eni(intent.ENI{Name: "eth1", Addresses: []netip.Prefix{netip.PrefixFrom(vpcVip, 24)}})),
			"spec.enis[0].addresses", "which moves between the proxies"},
		"probe without haVip":        {attachment("x", func(a *intent.Attachment) { a.Spec.Probe = vpcVip }), "spec.probe", "without a haVip nothing depends on it"},
		"probe of IPv6":              {attachment("x", vip, func(a *intent.Attachment) { a.Spec.Probe = netip.MustParseAddr("2001:db8::1") }), "spec.probe", "is IPv6"},
		"attachment's haVip of IPv6": {attachment("x", func(a *intent.Attachment) { a.Spec.HaVip = netip.MustParseAddr("2001:db8::1") }), "spec.haVip", "is IPv6"},
	} {
		t.Run(name, func(t *testing.T) { wantField(t, c.object.Validate(), c.field, c.problem) })
	}
}

func TestCheckElection(t *testing.T) {
	enis := func(a *intent.Attachment) {
		a.Spec.ENIs = []intent.ENI{{Node: "p1", Name: "eth8"}, {Node: "p2", Name: "eth8"}}
	}
	served := func(a *intent.Attachment) { in("pair")(a); pods("10.244.1.9/32")(a); enis(a) }
	set := func() *intent.Set { return platform(pair("pair")) }
	second := spec(func(s *intent.ProxyGroupSpec) { s.HaVip, s.VRID = groupVip.Next(), 8 })
	for name, c := range map[string]struct {
		object  intent.Object
		field   string
		problem string
	}{
		"load sharing":          {object: pair("second", second)},
		"served":                {object: attachment("x", served, vip)},
		"without haVip":         {attachment("x", served), "spec.haVip", "is missing; group pair has the haVip 192.168.4.200"},
		"haVip of a lone group": {attachment("x", vip, pods("10.244.1.9/32"), eni(intent.ENI{Name: "eth8"})), "spec.haVip", "group g has none"},
		"ENI of one member": {attachment("x", served, vip, eni(intent.ENI{Node: "p1", Name: "eth8"})), "spec.enis",
			"has the member p2, which no entry names"},
		"haVip of another group": {pair("second", second, spec(func(s *intent.ProxyGroupSpec) { s.HaVip = groupVip })), "spec.haVip", "is the haVip of group pair"},
		"vrid of another group":  {pair("second", second, spec(func(s *intent.ProxyGroupSpec) { s.VRID = 7 })), "spec.vrid", "is the vrid of group pair, which has the member p1"},
		"haVip of a node":        {pair("pair", spec(func(s *intent.ProxyGroupSpec) { s.HaVip = netip.MustParseAddr("192.168.80.8") })), "spec.haVip", "is the underlay address of node f1"},
		"node on a haVip":        {node("p3", groupVip.String(), intent.RoleProxy), "spec.underlayAddress", "is the haVip of group pair"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := set().Check(c.object)
			if c.field == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantField(t, err, c.field, c.problem)
		})
	}
	s := set()
	s.Put(attachment("x", served, vip))
	_, err := s.Check(attachment("y", served, vip, cidrs("172.30.0.0/16"), func(a *intent.Attachment) {
		a.Spec.ENIs = []intent.ENI{{Node: "p1", Name: "eth9"}, {Node: "p2", Name: "eth9"}}
	}))
	wantField(t, err, "spec.haVip", "is the haVip of attachment x in the same VPC")
}

func TestElectionDefaults(t *testing.T) {
	g := pair("x")
	if g.Interval() != 100*time.Millisecond || !g.Preempts() || g.PreemptAfter() != 10*time.Second || g.Sends() != 4 {
		t.Errorf("%v %v %v %d", g.Interval(), g.Preempts(), g.PreemptAfter(), g.Sends())
	}
	if p := g.Spec.Members[0].EffectivePriority(); p != 100 {
		t.Errorf("priority %d", p)
	}
	if got, want := g.Track(intent.TrackENI), (intent.Track{Name: intent.TrackENI, Effect: intent.EffectLower, By: 253}); got != want {
		t.Errorf("track %+v", got)
	}
	o, err := intent.DecodeJSON([]byte(`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"ProxyGroup","metadata":{"name":"g"},"spec":{
		"members":[{"node":"p1","priority":200},{"node":"p2"}],"haVip":"192.168.4.200","vrid":9,"advertisementInterval":"30ms","preempt":false,
		"preemptDelay":"0s","transport":"unicast","checksum":"rfc5798","sends":1,"tracks":[{"name":"eni","effect":"lower","by":50}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	g, _ = o.(*intent.ProxyGroup)
	if g.Interval() != 30*time.Millisecond || g.Preempts() || g.PreemptAfter() != 0 || g.Sends() != 1 ||
		g.Spec.Members[0].EffectivePriority() != 200 || g.Track(intent.TrackENI).By != 50 {
		t.Errorf("%+v", g.Spec)
	}
	_, err = intent.DecodeJSON([]byte(`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"ProxyGroup","metadata":{"name":"g"},"spec":{"advertisementInterval":"1 s"}}`))
	wantField(t, err, "spec.advertisementInterval", "is not a duration with its unit, such as 100ms")
}

// A proxy elects with the other members though the group serves nothing yet.
func TestElectorsSeeEachOther(t *testing.T) {
	if got := names(platform(pair("pair")).Visible("p1").Nodes); !slices.Contains(got, "p2") {
		t.Errorf("p1 sees the nodes %v", got)
	}
}
