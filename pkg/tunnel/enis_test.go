package tunnel_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

const (
	mac1 = "02:00:00:00:00:01"
	mac2 = "02:00:00:00:00:02"
)

type enis = map[desired.ENIKey]desired.ENI

var wantedENI = enis{{Netns: "vpx-a", Name: "eth1"}: {MAC: mac1}}

// bench is a machine with an ENI that has addresses and routes.
type bench struct {
	*machine.Machine
	t   *testing.T
	dir string
	log *strings.Builder
	had []string // what the ENI had at first
}

func newBench(t *testing.T, m *machine.Machine) *bench {
	b := &bench{Machine: m, t: t, dir: filepath.Join(t.TempDir(), "eni"), log: &strings.Builder{}}
	ok(t, m.CreateNamespace(t.Context(), "vpx-a"), m.CreateNamespace(t.Context(), "vpx-b"))
	m.Plug(t, "eth1", mac1)
	h, l := m.Open(t, ""), m.Link(t, "", "eth1")
	for _, a := range []string{"172.16.101.10/24", "172.16.101.11/24", "fd00:101::10/64"} {
		ok(t, h.AddAddress(t.Context(), kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix(a)}))
	}
	gw, gw6 := netip.MustParseAddr("172.16.101.1"), netip.MustParseAddr("fd00:101::1")
	ok(t, h.ReplaceRoutes(t.Context(), []kernel.Route{
		{Table: 254, Dst: netip.MustParsePrefix("172.16.101.1/32"), Link: l.Index, Protocol: 3},
		{Table: 254, Dst: netip.MustParsePrefix("0.0.0.0/0"), Metric: 100, Link: l.Index, Via: gw, Source: netip.MustParseAddr("172.16.101.11"), Protocol: 16},
		{Table: 100, Dst: netip.MustParsePrefix("10.0.0.0/8"), Link: l.Index, Via: gw, Protocol: 4},
		{Table: 254, Dst: netip.MustParsePrefix("fd00:200::/64"), Metric: 1024, Link: l.Index, Via: gw6, Protocol: 4},
	})...)
	b.had = b.has("", "eth1")
	if len(b.had) != 7 {
		t.Fatalf("the interface has %q", b.had)
	}
	return b
}

// kind returns the Kind as an agent that has just started would.
func (b *bench) kind() *tunnel.ENIs {
	return tunnel.NewENIs(b, b.dir, slog.New(slog.NewTextHandler(b.log, nil)))
}

func (b *bench) engine() *machine.Engine[desired.ENIKey, desired.ENI] {
	return machine.Reconcile(b.t, b.kind())
}

// has lists an interface's addresses and routes, but for what the kernel adds.
func (b *bench) has(netns, name string) []string {
	b.t.Helper()
	h, l := b.Open(b.t, netns), b.Link(b.t, netns, name)
	var out []string
	addresses, err := h.Addresses(b.t.Context())
	ok(b.t, err)
	for _, a := range addresses {
		if a.Link == l.Index && !a.LinkLocal {
			out = append(out, fmt.Sprint(a.Prefix))
		}
	}
	routes, err := h.Routes(b.t.Context(), kernel.RouteFilter{Link: l.Index})
	ok(b.t, err)
	for _, r := range routes {
		if r.Protocol != 2 {
			out = append(out, fmt.Sprintf("%s via %s src %s table %d metric %d proto %d scope %d", r.Dst, r.Via, r.Source, r.Table, r.Metric, r.Protocol, r.Scope))
		}
	}
	slices.Sort(out)
	return out
}

// at checks that the interface is in a namespace, up, and has all it had.
func (b *bench) at(netns, name string) {
	b.t.Helper()
	if l := b.Link(b.t, netns, name); l.MAC != mac1 || !l.Up {
		b.t.Errorf("%s in %q: %+v", name, netns, l)
	}
	if has := b.has(netns, name); !slices.Equal(has, b.had) {
		b.t.Errorf("%s in %q has\n%q, want\n%q", name, netns, has, b.had)
	}
}

func (b *bench) files() []string {
	entries, err := os.ReadDir(b.dir)
	ok(b.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func eachBench(t *testing.T, f func(b *bench)) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) { f(newBench(t, m)) })
}

func TestENIMovesInAndBack(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		b.at("vpx-a", "eth1")
		info, err := os.Stat(filepath.Join(b.dir, "02-00-00-00-00-01.json"))
		if err != nil || info.Mode() != 0o600 {
			b.t.Errorf("state file: %v, %v", info, err)
		}
		engine.Apply(enis{})
		b.at("", "eth1")
		if f := b.files(); len(f) > 0 {
			b.t.Errorf("files left: %q", f)
		}
	})
}

func TestNewNamespaceHoldsNoENI(t *testing.T) {
	eachBench(t, func(b *bench) {
		if got, err := b.kind().List(b.t.Context()); err != nil || len(got) > 0 {
			b.t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestENIIsRepaired(t *testing.T) {
	for name, drift := range map[string]func(b *bench, h kernel.Handle, l kernel.Link){
		"down": func(b *bench, h kernel.Handle, l kernel.Link) {
			ok(b.t, h.SetLinkUp(b.t.Context(), l.Index, false))
		},
		"down and up": func(b *bench, h kernel.Handle, l kernel.Link) {
			ok(b.t, h.SetLinkUp(b.t.Context(), l.Index, false), h.SetLinkUp(b.t.Context(), l.Index, true))
		},
		"flushed": func(b *bench, h kernel.Handle, l kernel.Link) {
			all, err := h.Addresses(b.t.Context())
			ok(b.t, err)
			for _, a := range all {
				if a.Link == l.Index {
					ok(b.t, h.DeleteAddress(b.t.Context(), a))
				}
			}
		},
		"renamed": func(b *bench, h kernel.Handle, l kernel.Link) {
			ok(b.t, h.SetLinkUp(b.t.Context(), l.Index, false), h.SetLinkName(b.t.Context(), l.Index, "wan0"))
		},
		"moved out": func(b *bench, h kernel.Handle, l kernel.Link) {
			ok(b.t, h.MoveLink(b.t.Context(), l.Index, ""))
		},
		"moved elsewhere": func(b *bench, h kernel.Handle, l kernel.Link) {
			ok(b.t, h.MoveLink(b.t.Context(), l.Index, "vpx-b"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachBench(t, func(b *bench) {
				b.engine().Apply(wantedENI)
				drift(b, b.Open(b.t, "vpx-a"), b.Link(b.t, "vpx-a", "eth1"))
				engine := b.engine()
				if name == "moved elsewhere" {
					engine.Try(wantedENI) // gives it back; it comes after a pause
				}
				engine.Apply(wantedENI)
				b.at("vpx-a", "eth1")
				engine.Apply(enis{})
				b.at("", "eth1")
			})
		})
	}
}

// Whoever replaces an address inside means it.
func TestENIAddressMayBeReplaced(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		h, l := b.Open(b.t, "vpx-a"), b.Link(b.t, "vpx-a", "eth1")
		for _, p := range []string{"172.16.101.10/24", "172.16.101.11/24"} {
			ok(b.t, h.AddAddress(b.t.Context(), kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix("172.16.101.20/24")}))
			ok(b.t, h.DeleteAddress(b.t.Context(), kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix(p)}))
		}
		engine.Apply(wantedENI)
		// Even when there is something to put back.
		ok(b.t, h.SetLinkUp(b.t.Context(), l.Index, false), h.SetLinkUp(b.t.Context(), l.Index, true))
		engine.Apply(wantedENI)
		engine.Apply(enis{})
		has := b.has("", "eth1")
		if !slices.Contains(has, "172.16.101.20/24") || slices.Contains(has, "172.16.101.10/24") || !slices.Contains(has, "fd00:101::10/64") {
			b.t.Errorf("has %q", has)
		}
	})
}

// The kernel gives a physical interface back by itself when its namespace ends,
// but without its addresses.
func TestENIOutlivesItsNamespace(t *testing.T) {
	for _, want := range []enis{wantedENI, {}} {
		b := newBench(t, machine.Fake(t))
		b.engine().Apply(wantedENI)
		ok(t, b.DeleteNamespace(t.Context(), "vpx-a"))
		if len(want) > 0 {
			ok(t, b.CreateNamespace(t.Context(), "vpx-a"))
			b.engine().Apply(want)
			b.at("vpx-a", "eth1")
		}
		b.engine().Apply(enis{})
		b.at("", "eth1")
		if f := b.files(); len(f) > 0 {
			t.Errorf("files left: %q", f)
		}
	}
}

// The agent dies at any write on the way in or out; the next one finishes the
// way, or turns back.
func TestENIUnderEveryCrash(t *testing.T) {
	died := errors.New("died")
	for _, out := range []bool{false, true} {
		for _, turn := range []bool{false, true} {
			for n := 1; ; n++ {
				b := newBench(t, machine.Fake(t))
				if out {
					b.engine().Apply(wantedENI)
				}
				b.Fake.Fail("", n, died)
				var err error
				for k, v := range wantedENI {
					if out {
						err = b.kind().Delete(t.Context(), k, v)
					} else {
						err = b.kind().Upsert(t.Context(), k, v)
					}
				}
				if err == nil {
					if n < 6 {
						t.Fatalf("only %d writes", n-1)
					}
					break
				}
				if !errors.Is(err, died) {
					t.Fatal(err)
				}
				if out == turn {
					b.engine().Apply(wantedENI)
					b.at("vpx-a", "eth1")
				}
				b.engine().Apply(enis{})
				b.at("", "eth1")
				if f := b.files(); len(f) > 0 {
					t.Fatalf("files left: %q", f)
				}
			}
		}
	}
}

func TestENIIsWantedUnderAnotherName(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		engine.Apply(enis{{Netns: "vpx-a", Name: "wan0"}: {MAC: mac1}})
		b.at("vpx-a", "wan0")
		engine.Apply(enis{})
		b.at("", "eth1")
	})
}

func TestBareENIIsKeptUp(t *testing.T) {
	eachBench(t, func(b *bench) {
		b.Plug(b.t, "eth2", mac2)
		want := enis{{Netns: "vpx-a", Name: "eth2"}: {MAC: mac2}}
		engine := b.engine()
		engine.Apply(want)
		ok(b.t, b.Open(b.t, "vpx-a").SetLinkUp(b.t.Context(), b.Link(b.t, "vpx-a", "eth2").Index, false))
		engine.Apply(want)
		if !b.Link(b.t, "vpx-a", "eth2").Up {
			b.t.Error("the interface is down")
		}
	})
}

// What is ours on an interface is its own Kind's, and does not go out with it.
func TestENILeavesWhatIsOurs(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		h, l := b.Open(b.t, "vpx-a"), b.Link(b.t, "vpx-a", "eth1")
		ok(b.t, h.AddAddress(b.t.Context(), kernel.Address{Link: l.Index, Prefix: prefix("172.16.101.100/32"), Protocol: desired.Protocol}))
		ok(b.t, h.ReplaceRoutes(b.t.Context(), []kernel.Route{{Table: 254, Dst: prefix("172.16.200.0/24"), Link: l.Index, Protocol: desired.Protocol}})...)
		engine.Apply(enis{})
		b.at("", "eth1")
	})
}

func TestENIThatWasDownComesBackDown(t *testing.T) {
	eachBench(t, func(b *bench) {
		ok(b.t, b.Open(b.t, "").SetLinkUp(b.t.Context(), b.Link(b.t, "", "eth1").Index, false))
		had := b.has("", "eth1") // neither routes nor IPv6 addresses
		engine := b.engine()
		engine.Apply(wantedENI)
		if !b.Link(b.t, "vpx-a", "eth1").Up {
			b.t.Error("the interface is down inside")
		}
		engine.Apply(enis{})
		if has := b.has("", "eth1"); b.Link(b.t, "", "eth1").Up || !slices.Equal(has, had) {
			b.t.Errorf("has %q, had %q", has, had)
		}
	})
}

// Whoever takes an interface out by hand, when nobody wants it, and furnishes it
// anew, means it.
func TestENITakenOutByHand(t *testing.T) {
	eachBench(t, func(b *bench) {
		b.engine().Apply(wantedENI)
		ok(b.t, b.Open(b.t, "vpx-a").MoveLink(b.t.Context(), b.Link(b.t, "vpx-a", "eth1").Index, ""))
		h, l := b.Open(b.t, ""), b.Link(b.t, "", "eth1")
		ok(b.t, h.AddAddress(b.t.Context(), kernel.Address{Link: l.Index, Prefix: prefix("192.0.2.50/24")}))
		b.engine().Apply(enis{})
		if has := b.has("", "eth1"); !slices.Equal(has, []string{"192.0.2.50/24"}) {
			b.t.Errorf("has %q", has)
		}
		if f := b.files(); len(f) > 0 {
			b.t.Errorf("files left: %q", f)
		}
	})
}

func TestENIServesElsewhere(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		engine.Apply(enis{{Netns: "vpx-b", Name: "wan"}: {MAC: mac1}})
		b.at("vpx-b", "wan")
		engine.Apply(enis{})
		b.at("", "eth1")
	})
}

// A second interface may have been given the first one's name meanwhile.
func TestENIWhoseNameIsTaken(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := b.engine()
		engine.Apply(wantedENI)
		b.Plug(b.t, "eth1", mac2)
		engine.Apply(enis{{Netns: "vpx-a", Name: "eth1"}: {MAC: mac2}}) // evicts
		if l := b.Link(b.t, "vpx-a", "eth1"); l.MAC != mac2 {
			b.t.Errorf("%+v serves", l)
		}
		b.at("", "eni020000000001")
		engine.Apply(enis{})
		if l := b.Link(b.t, "", "eth1"); l.MAC != mac2 {
			b.t.Errorf("%+v came back", l)
		}
		b.at("", "eni020000000001")
	})
}

func TestENIThatIsNotThere(t *testing.T) {
	eachBench(t, func(b *bench) {
		p := b.engine().Try(enis{{Netns: "vpx-a", Name: "eth7"}: {MAC: mac2}})
		if p.Err == nil || !strings.Contains(p.Err.Error(), mac2) || !errors.Is(p.Err, kernel.ErrNotFound) {
			b.t.Errorf("got %v", p.Err)
		}
		b.at("", "eth1")
		// One that was detached while it served is forgotten when nobody
		// wants it any more.
		ok(b.t, os.MkdirAll(b.dir, 0o700), os.WriteFile(filepath.Join(b.dir, "02-00-00-00-00-09.json"),
			[]byte(`{"mac": "02:00:00:00:00:09", "netns": "vpx-a", "name": "eth9", "ownName": "eth9", "ownUp": true, "phase": "inside"}`), 0o600))
		b.engine().Apply(enis{})
		if f := b.files(); len(f) > 0 {
			b.t.Errorf("files left: %q", f)
		}
	})
}

func TestENIWithoutItsFileIsGivenBack(t *testing.T) {
	eachBench(t, func(b *bench) {
		b.engine().Apply(wantedENI)
		ok(b.t, os.RemoveAll(b.dir))
		b.engine().Apply(wantedENI)
		b.engine().Apply(enis{})
		b.at("", "eth1")
	})
}

func TestDamagedENIFileIsSetAside(t *testing.T) {
	b := newBench(t, machine.Fake(t))
	b.engine().Apply(wantedENI)
	file := filepath.Join(b.dir, "02-00-00-00-00-01.json")
	ok(t, os.Truncate(file, 20))
	b.engine().Apply(wantedENI)
	if f := b.files(); !slices.Equal(f, []string{"02-00-00-00-00-01.json.damaged"}) || !strings.Contains(b.log.String(), file) {
		t.Errorf("files %q, log %q", f, b.log)
	}
	b.engine().Apply(enis{})
	b.at("", "eth1")
}

func TestNoMoveWithoutAFile(t *testing.T) {
	b := newBench(t, machine.Fake(t))
	ok(t, os.WriteFile(b.dir, nil, 0o600)) // no directory can be made here
	p := b.engine().Try(wantedENI)
	if p.Err == nil {
		t.Error("moved without a note of what it has")
	}
	b.at("", "eth1")
}

func TestNamespaceWithAnENIIsNotDeleted(t *testing.T) {
	eachBench(t, func(b *bench) {
		engine := machine.Reconcile(b.t, tunnel.NewNamespaces(b))
		engine.Apply(map[string]desired.Namespace{"vpx-a": {}, "vpx-c": {}})
		b.engine().Apply(wantedENI)
		p := engine.Try(map[string]desired.Namespace{})
		if p.Err == nil || !strings.Contains(p.Err.Error(), "still holds interface eth1") {
			b.t.Errorf("got %v", p.Err)
		}
		b.at("vpx-a", "eth1")
		b.engine().Apply(enis{})
		ok(b.t, b.CreateNamespace(b.t.Context(), "foreign"))
		engine.Apply(map[string]desired.Namespace{})
		if names, err := b.Namespaces(b.t.Context()); err != nil || !slices.Equal(names, []string{"foreign"}) {
			b.t.Errorf("left: %q, %v", names, err)
		}
	})
}
