package plan

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func TestSteersOfABinding(t *testing.T) {
	red, blue, refuse := desired.Steer{Mark: 1, Mask: 0xff, Zone: 11}, desired.Steer{Mark: 2, Mask: 0xff, Zone: 12}, desired.Steer{Refuse: true}
	way := func(s desired.Steer, cidrs ...string) desired.Way {
		w := desired.Way{Steer: s}
		for _, c := range cidrs {
			w.CIDRs = append(w.CIDRs, prefix(c))
		}
		return w
	}
	ways := map[string]desired.Way{
		"red": way(red, "172.16.101.0/24", "172.16.102.0/24"), "blue": way(blue, "172.16.103.0/24"), "wide": way(blue, "172.16.0.0/16"),
		"same": way(blue, "172.16.101.0/24"), "idle": way(refuse, "172.16.104.0/24"), "six": way(red, "fd00::/64", "172.16.105.0/24"),
	}
	for name, c := range map[string]struct {
		pod  string
		uses []string
		want map[string]desired.Steer
	}{
		"one":             {"10.244.1.5", []string{"red"}, map[string]desired.Steer{"172.16.101.0/24": red, "172.16.102.0/24": red}},
		"two":             {"10.244.1.5", []string{"blue", "red"}, map[string]desired.Steer{"172.16.101.0/24": red, "172.16.102.0/24": red, "172.16.103.0/24": blue}},
		"gone":            {"10.244.1.5", []string{"gone"}, map[string]desired.Steer{"172.16.9.0/24": refuse}},
		"not prepared":    {"10.244.1.5", []string{"idle"}, map[string]desired.Steer{"172.16.104.0/24": refuse}},
		"claimed twice":   {"10.244.1.5", []string{"red", "same"}, map[string]desired.Steer{"172.16.101.0/24": refuse, "172.16.102.0/24": red}},
		"claimed within":  {"10.244.1.5", []string{"wide", "red"}, map[string]desired.Steer{"172.16.0.0/16": blue, "172.16.101.0/24": refuse, "172.16.102.0/24": refuse}},
		"claimed around":  {"10.244.1.5", []string{"red", "wide"}, map[string]desired.Steer{"172.16.0.0/16": blue, "172.16.101.0/24": refuse, "172.16.102.0/24": refuse}},
		"IPv4 of two":     {"10.244.1.5", []string{"six"}, map[string]desired.Steer{"172.16.105.0/24": red}},
		"IPv6 of two":     {"fd01::5", []string{"six"}, map[string]desired.Steer{"fd00::/64": red}},
		"not known, IPv6": {"fd01::5", nil, map[string]desired.Steer{"fd00::/64": refuse}},
		"not known at all": {"10.244.1.5", nil, map[string]desired.Steer{
			"172.16.101.0/24": refuse, "172.16.102.0/24": refuse, "172.16.103.0/24": refuse, "172.16.0.0/16": refuse, "172.16.104.0/24": refuse, "172.16.105.0/24": refuse}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &intent.Binding{Pod: addr(c.pod)}
			for _, a := range c.uses {
				b.Attachments = append(b.Attachments, intent.BoundAttachment{Name: a, CIDRs: []netip.Prefix{prefix("172.16.9.0/24")}})
			}
			want := map[desired.SteerKey]desired.Steer{}
			for dst, s := range c.want {
				want[desired.SteerKey{Src: host(b.Pod), Dst: prefix(dst)}] = s
			}
			if got := Steers(ways, b); !maps.Equal(got, want) {
				t.Errorf("%v\nwant %v", got, want)
			}
		})
	}
}

// An attachment whose pods are bound when they start costs nothing before.
func TestPathIsPreparedOnFirstUse(t *testing.T) {
	unlisted := func(a *intent.Attachment) { a.Spec.Pods = nil }
	for name, c := range map[string]struct {
		edit     func(*intent.Attachment)
		used     bool
		prepared bool
	}{
		"unused":   {unlisted, false, false},
		"used":     {unlisted, true, true},
		"prewarm":  {func(a *intent.Attachment) { unlisted(a); a.Spec.Prewarm = true }, false, true},
		"has pods": {func(*intent.Attachment) {}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := overlap()
			s.Put(attachment("red", c.edit))
			p := Build("host", s, Facts{UnderlayLink: "eth0", UnderlayMTU: 1500, Used: map[string]bool{"red": c.used}}, testConfig)
			_, link := p.State.Links[desired.LinkKey{Name: "vpx-red"}]
			way := p.State.Ways["red"]
			if link != c.prepared || way.Steer.Refuse == c.prepared || len(way.CIDRs) != 1 {
				t.Errorf("link %v, way %+v", link, way)
			}
			if _, zone := p.State.Steers[desired.SteerKey{Link: "vpx-red"}]; zone != c.prepared {
				t.Errorf("zone %v", zone)
			}
			found := false
			for _, f := range p.Footprints { // it is reported as in place
				found = found || f.Attachment == "red"
			}
			if !found || len(p.Problems) != 0 {
				t.Errorf("footprints %+v, problems %v", p.Footprints, p.Problems)
			}
		})
	}
}

func TestSlotsFitZones(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want uint32
	}{
		{testConfig, 0x3fff}, {Config{MarkMask: 0xffffffff, ZoneBase: 1}, 0xffff}, {Config{MarkMask: 0xff, ZoneBase: 65535}, 1},
		{Config{MarkMask: 0xff, ZoneBase: 65000}, 0xff},
	} {
		if got := c.cfg.slots(); got != c.want {
			t.Errorf("%+v: %d slots, want %d", c.cfg, got, c.want)
		}
	}
}
