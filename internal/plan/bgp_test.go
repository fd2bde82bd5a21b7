package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func speaking(c *Config) { c.BGP, c.IdleSeconds = &BGP{ASN: 65000}, 30 }

// shared is an attachment that two groups serve.
func shared() *intent.Set {
	s := overlap()
	s.Delete(intent.KindAttachment, "a-rather-long-attachment-name")
	s.Put(node("second", "192.168.4.5", "", intent.RoleProxy))
	s.Put(group("g2", "second", "100.64.0.5"))
	s.Put(attachment("red", func(a *intent.Attachment) {
		a.Spec.Group, a.Spec.Groups = "", []intent.Service{{Name: "g1"}, {Name: "g2"}}
		a.Spec.ENIs = []intent.ENI{{Node: "proxy", MAC: "02:00:00:00:65:0a"}, {Node: "second", Name: "eth1"}}
	}))
	return s
}

func alive(f Facts, h Hashing, gateways ...Gateway) Facts {
	f.Live, f.Hashing = &Live{Gateways: map[string][]Gateway{"red": gateways}}, h
	return f
}

// TestPathsAreAnnounced has a proxy announce what it can serve now, and nothing
// else.
func TestPathsAreAnnounced(t *testing.T) {
	cordoned := shared()
	cordoned.Node("proxy").Spec.Cordoned = true
	elects := pair()
	for _, tc := range []struct {
		name  string
		set   *intent.Set
		facts func(*Facts)
		want  int
	}{
		{"all in place", shared(), func(*Facts) {}, 1},
		{"no interface", shared(), func(f *Facts) { f.Interfaces = f.Interfaces[:1] }, 0},
		{"no carrier", shared(), func(f *Facts) { f.Interfaces[1].NoCarrier = true }, 0},
		{"something is broken", shared(), func(f *Facts) { f.Broken = map[string]bool{"vpx-red": true} }, 0},
		{"something else is broken", shared(), func(f *Facts) { f.Broken = map[string]bool{"vpx-blue": true} }, 1},
		{"cordoned", cordoned, func(*Facts) {}, 0},
		{"standby", elects, func(*Facts) {}, 0},
		{"active", elects, func(f *Facts) { f.Active = map[string]bool{"g1": true} }, 1},
		{"active elsewhere", elects, func(f *Facts) { f.Active = map[string]bool{"g2": true} }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			facts, cfg := proxyFacts(), testConfig
			tc.facts(&facts)
			if got := len(Build("proxy", tc.set, facts, cfg).State.Paths); got != 0 {
				t.Errorf("%d paths in static mode", got)
			}
			speaking(&cfg)
			paths := Build("proxy", tc.set, facts, cfg).State.Paths
			if len(paths) != tc.want {
				t.Errorf("%d paths, want %d: %v", len(paths), tc.want, paths)
			}
			for k, p := range paths {
				if k.RD != Distinguisher(p.NextHop, p.Key) || len(p.Targets) != 1 || p.Targets[0].Number != p.Key {
					t.Errorf("%v %+v", k, p)
				}
			}
		})
	}
}

// TestNobodyIsAlive leaves the pods of an attachment that nobody announces with
// the route that refuses, and what it takes to go by either proxy the moment that
// it announces.
func TestNobodyIsAlive(t *testing.T) {
	cfg := testConfig
	speaking(&cfg)
	p := Build("host", shared(), alive(Facts{UnderlayLink: "eth0", UnderlayMTU: 1500}, HashResilient), cfg)
	if len(p.State.Routes) != 1 || len(p.State.Neighbors) != 2 || len(p.State.Nexthops) != 0 {
		t.Errorf("routes %v, neighbors %v, nexthops %v", p.State.Routes, p.State.Neighbors, p.State.Nexthops)
	}
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Message, "no proxy that serves it is alive") {
		t.Error(p.Problems)
	}
}

// TestDrainedWithoutNews has a host that has heard nobody go by the intent, and
// not by a group that is drained.
func TestDrainedWithoutNews(t *testing.T) {
	for _, tc := range []struct {
		name    string
		drained []string
		want    string
	}{
		{"nobody", nil, "100.64.0.4"},
		{"the first", []string{"proxy"}, "100.64.0.5"},
		{"all", []string{"proxy", "second"}, "100.64.0.4"},
	} {
		set := shared()
		for _, n := range tc.drained {
			set.Node(n).Spec.Cordoned = true
		}
		for _, live := range []*Live{nil, {Unsure: true}} {
			facts := Facts{UnderlayLink: "eth0", UnderlayMTU: 1500, Hashing: HashResilient, Live: live}
			ways := 0
			for _, n := range Build("host", set, facts, testConfig).State.Nexthops {
				if !n.Via.IsValid() {
					continue // a group of them
				}
				if ways++; n.Via != addr(tc.want) {
					t.Errorf("%s drained, live %v: by %s, want %s", tc.name, live, n.Via, tc.want)
				}
			}
			if ways == 0 {
				t.Errorf("%s drained, live %v: by nobody", tc.name, live)
			}
		}
	}
}

// TestHostThatMoved is admitted, and answered, where it says that it is.
func TestHostThatMoved(t *testing.T) {
	facts, moved := proxyFacts(), addr("192.168.80.99")
	facts.Live = &Live{Moved: map[netip.Addr]netip.Addr{addr("100.64.0.3"): moved}}
	state := Build("proxy", shared(), facts, testConfig).State
	for k, n := range state.Neighbors {
		if n.NBMA != moved {
			t.Errorf("%v: %+v", k, n)
		}
	}
	admitted := false
	for k := range state.Peers {
		admitted = admitted || k.Addr == moved
		if k.Addr == addr("192.168.80.8") {
			t.Error("its old address may still speak")
		}
	}
	if !admitted || len(state.Neighbors) != 1 {
		t.Errorf("%v, %v", state.Peers, state.Neighbors)
	}
}

// TestNextHopsThatLookAlike tells of two groups whose routes a reflector would
// take for one.
func TestNextHopsThatLookAlike(t *testing.T) {
	set := shared()
	set.Node("second").Spec.UnderlayAddress = addr("10.1.4.4")
	cfg := testConfig
	speaking(&cfg)
	p := Build("proxy", set, proxyFacts(), cfg)
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Message, "end in the same 16 bits") {
		t.Error(p.Problems)
	}
}

func TestTargets(t *testing.T) {
	if got := (BGP{ASN: 4200000000}).AttachmentTarget(7).String(); got != "23456:7" {
		t.Error(got)
	}
	if got := Distinguisher(addr("192.168.4.100"), 4097).String(); got != "1124:4097" {
		t.Error(got)
	}
}
