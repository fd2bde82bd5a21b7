package intent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func several(change ...func(*Attachment)) (*Set, *Attachment) {
	s := &Set{}
	for name, underlay := range map[string]string{"p1": "192.168.4.4", "p2": "192.168.4.5", "host": "192.168.80.8"} {
		roles := []Role{RoleProxy}
		if name == "host" {
			roles = []Role{RoleFunction}
		}
		s.Put(&Node{TypeMeta: TypeMeta{APIVersion, KindNode}, Metadata: Metadata{Name: name}, Spec: NodeSpec{Roles: roles, UnderlayAddress: netip.MustParseAddr(underlay), Zone: "zone-" + name}})
	}
	for group, member := range map[string]string{"g1": "p1", "g2": "p2"} {
		s.Put(&ProxyGroup{TypeMeta: TypeMeta{APIVersion, KindProxyGroup}, Metadata: Metadata{Name: group}, Spec: ProxyGroupSpec{Members: []Member{{Node: member}}}})
	}
	a := &Attachment{TypeMeta: TypeMeta{APIVersion, KindAttachment}, Metadata: Metadata{Name: "red"}, Spec: AttachmentSpec{
		VPC: "red", CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.101.0/24")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.244.1.5/32")},
		Groups: []Service{{Name: "g1"}, {Name: "g2"}}, ENIs: []ENI{{Node: "p1", Name: "eth1"}, {Node: "p2", Name: "eth1"}},
	}}
	for _, c := range change {
		c(a)
	}
	return s, a
}

func TestSeveralGroups(t *testing.T) {
	havip := netip.MustParseAddr("172.16.101.100")
	for name, tt := range map[string]struct {
		change func(*Attachment)
		want   string
	}{
		"as it should be":    {func(*Attachment) {}, ""},
		"both forms":         {func(a *Attachment) { a.Spec.Group = "g1" }, "spec.group: is set beside spec.groups"},
		"one haVip for all":  {func(a *Attachment) { a.Spec.HaVip = havip }, "spec.haVip: is set beside spec.groups"},
		"one source for all": {func(a *Attachment) { a.Spec.SNATAddress = havip }, "spec.snatAddress: is one address"},
		"twice":              {func(a *Attachment) { a.Spec.Groups[1].Name = "g1" }, `spec.groups[1].name: "g1" appears twice`},
		"unknown":            {func(a *Attachment) { a.Spec.Groups[1].Name = "g3" }, `spec.groups[1].name: no ProxyGroup is named "g3"`},
		"no election":        {func(a *Attachment) { a.Spec.Groups[0].HaVip = havip }, "spec.groups[0].haVip: is set, but group g1 has none"},
		"shared haVip": {func(a *Attachment) { a.Spec.Groups[0].HaVip, a.Spec.Groups[1].HaVip = havip, havip },
			"spec.groups[1].haVip: 172.16.101.100 is another group's"},
		"ENI missing":    {func(a *Attachment) { a.Spec.ENIs = a.Spec.ENIs[:1] }, "group g2 has the member p2, which no entry names"},
		"ENI of nobody":  {func(a *Attachment) { a.Spec.ENIs[1].Node = "p3" }, `"p3" is not a member of the groups g1, g2`},
		"ENI without it": {func(a *Attachment) { a.Spec.ENIs[1].Node = "" }, "the groups g1, g2 have 2 members"},
	} {
		t.Run(name, func(t *testing.T) {
			s, a := several(tt.change)
			_, err := s.Check(a)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	s, a := several()
	s.Put(&ProxyGroup{TypeMeta: TypeMeta{APIVersion, KindProxyGroup}, Metadata: Metadata{Name: "g2"}, Spec: ProxyGroupSpec{Members: []Member{{Node: "p1"}}}})
	if _, err := s.Check(a); err == nil || !strings.Contains(err.Error(), "p1 is a member of group g1, too") {
		t.Error(err)
	}
}

func TestSeveralGroupsAreVisible(t *testing.T) {
	s, a := several()
	s.Put(a)
	names := func(list []Object) (out []string) {
		for _, o := range list {
			out = append(out, o.ObjectName())
		}
		return out
	}
	for node, nodes := range map[string][]string{"host": {"host", "p1", "p2"}, "p1": {"host", "p1", "p2"}} {
		v := s.Visible(node)
		if !slices.Equal(names(v.List(KindNode)), nodes) || !slices.Equal(names(v.List(KindProxyGroup)), []string{"g1", "g2"}) || len(v.Attachments) != 1 {
			t.Errorf("%s sees %v, %v", node, names(v.List(KindNode)), names(v.List(KindProxyGroup)))
		}
	}
	if g := s.GroupOn(a, "p2"); g == nil || g.ObjectName() != "g2" || s.GroupOn(a, "host") != nil {
		t.Error(g)
	}
}
