package nattest

import (
	"context"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Fault is something that another program may do to our rules.
type Fault struct {
	Name   string
	Script string // of the shell, run in the namespace of the machine under test
}

// Harness is a backend to be tested.
type Harness struct {
	Host Host
	// Shell runs a script of the shell in a namespace and returns what it
	// prints. It fails the test if a command of it fails.
	Shell  func(t testing.TB, netns, script string) string
	New    func(t *testing.T) nat.Backend // on Host
	Faults []Fault
	// Foreign puts rules of other programs beside ours; Dump prints all
	// rules but ours. Both are scripts.
	Foreign, Dump string
}

// Samples are the sorts of NAT that nodes have.
func Samples() map[string]desired.NAT {
	tunnel := peer1.gate4
	return map[string]desired.NAT{
		"function host": {
			SNAT:    []desired.SNAT{{Out: "vpx-+", To: tunnel, Except: []netip.Addr{tunnel, pod.gate4}}},
			Clamp:   []desired.Clamp{{Link: "vpx-+", MTU: 1472}},
			Forward: []desired.Forward{{Out: "vpx-+"}},
			Guarded: []string{"vpx-+"},
		},
		"proxy with HaVip": {
			SNAT:    []desired.SNAT{{Out: "eth1", To: vpc.gate4}, {Out: "eth1", To: vpc.gate6}},
			Clamp:   []desired.Clamp{{Link: "vpx-c1", MTU: 1472}},
			Forward: []desired.Forward{{In: "vpx-c1", Out: "eth1"}},
			Guarded: []string{"vpx-c1", "eth1"},
		},
		"lone proxy": {
			SNAT:    []desired.SNAT{{Out: "eth1"}, {Out: "eth1", IPv6: true}},
			Forward: []desired.Forward{{In: "vpx-c1", Out: "eth1"}},
			Guarded: []string{"vpx-c1", "eth1"},
		},
		"proxy without ENI": {Guarded: []string{"vpx-c1"}},
		"translation only":  {SNAT: []desired.SNAT{{Out: "eth1", To: vpc.gate4}}},
		"masquerade only":   {Masquerade: keeping(pods4, pods6, everything6)},
		"function host that masquerades": {
			SNAT:       []desired.SNAT{{Out: "vpx-+", To: tunnel, Except: []netip.Addr{tunnel}}},
			Masquerade: keeping(pods4, pods6),
			Forward:    []desired.Forward{{Out: "vpx-+"}},
			Guarded:    []string{"vpx-+"},
		},
	}
}

// Ranges that are not masqueraded toward.
var (
	pods4       = netip.MustParsePrefix("10.244.0.0/16")
	pods6       = netip.MustParsePrefix("fd00:1::/64")
	vpc4        = netip.MustParsePrefix("172.16.101.0/24")
	everything6 = netip.MustParsePrefix("::/0")
)

// keeping masquerades but toward some ranges.
func keeping(keep ...netip.Prefix) []desired.Masquerade {
	m := []desired.Masquerade{{}, {IPv6: true}}
	for _, p := range keep {
		i := map[bool]int{true: 1}[p.Addr().Is6()]
		m[i].Keep = append(m[i].Keep, p)
	}
	return m
}

// Run checks a backend. It needs the right to make network namespaces and to
// change /run.
func Run(t *testing.T, h Harness) {
	type check struct {
		name string
		test func(*testing.T, Harness, nat.Backend)
	}
	for _, world := range []struct {
		name   string
		checks []check
	}{
		{"alone", []check{
			{"reads back what it wrote", readsBack},
			{"changes nothing twice", changesNothingTwice},
			{"is a kind", isKind},
			{"refuses what it cannot write", refuses},
			{"function host", functionHost},
			{"masquerades", masquerades},
			{"proxy", proxy},
			{"clamps segment sizes", clamps},
			{"replaces rules under traffic", replacesUnderTraffic},
			{"forwards errors about known connections", pathMTU},
		}},
		{"beside others", []check{ // in this order: faults leave rules behind
			{"leaves foreign rules alone", leavesForeign},
			{"finds and repairs faults", repairs},
		}},
	} {
		t.Run(world.name, func(t *testing.T) {
			build(t, h)
			b := h.New(t)
			for _, c := range world.checks {
				t.Run(c.name, func(t *testing.T) {
					c.test(t, h, b)
					remove(t, b)
				})
			}
		})
	}
}

func write(t *testing.T, b nat.Backend, n desired.NAT) nat.RuleSet {
	t.Helper()
	want := nat.Render(n)
	if err := b.Write(t.Context(), Netns, want); err != nil {
		t.Fatalf("Write: %v", err)
	}
	wantDiff(t, b, want, "")
	return want
}

// wantDiff reads the rules and compares; "*" stands for any difference.
func wantDiff(t *testing.T, b nat.Backend, want nat.RuleSet, diff string) string {
	t.Helper()
	have, err := b.Read(t.Context(), Netns)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	got := nat.Diff(want, have)
	if diff != got && (diff != "*" || got == "") {
		t.Fatalf("Diff = %q, want %q", got, diff)
	}
	return got
}

// remove takes all rules away, twice.
func remove(t *testing.T, b nat.Backend) {
	t.Helper()
	for range 2 {
		if err := b.Write(t.Context(), Netns, nat.RuleSet{}); err != nil {
			t.Fatalf("Write of nothing: %v", err)
		}
		have, err := b.Read(t.Context(), Netns)
		if err != nil || !have.Empty() {
			t.Fatalf("after removal: Read = %v, %v; want nothing", have, err)
		}
	}
}

// readsBack goes from one sample to another, so that chains come, change and go.
func readsBack(t *testing.T, _ Harness, b nat.Backend) {
	samples := Samples()
	order := []string{"function host", "proxy with HaVip", "lone proxy", "proxy without ENI", "translation only", "proxy with HaVip", "masquerade only",
		"translation only", "function host that masquerades", "function host"}
	for i, name := range order {
		write(t, b, samples[name])
		if i > 0 {
			wantDiff(t, b, nat.Render(samples[order[i-1]]), "*")
		}
	}
}

// isKind goes through the life of an object as the engine would.
func isKind(t *testing.T, h Harness, b nat.Backend) {
	ctx := t.Context()
	k := nat.NewKind(b, func(context.Context) ([]string, error) { return []string{pod.name, Netns}, nil })
	want := nat.RenderAll(map[desired.NATKey]desired.NAT{{Netns: Netns}: Samples()["function host"]})
	list := func() map[desired.NATKey]nat.RuleSet {
		t.Helper()
		have, err := k.List(ctx)
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		return have
	}
	if have := list(); len(have) != 0 {
		t.Fatalf("List = %v before anything was written", have)
	}
	for key, w := range want {
		if err := k.Upsert(ctx, key, w); err != nil {
			t.Fatalf("Upsert: %v", err)
		}
		have := list()
		if d := k.Diff(w, have[key]); d != "" || len(have) != 1 {
			t.Errorf("List = %v, Diff = %q after Upsert", have, d)
		}
		for range 2 {
			if err := k.Delete(ctx, key, have[key]); err != nil {
				t.Fatalf("Delete: %v", err)
			}
		}
	}
	if have := list(); len(have) != 0 {
		t.Errorf("List = %v after Delete", have)
	}
	if err := k.Delete(ctx, desired.NATKey{Netns: "vpx-none"}, nat.RuleSet{}); err != nil {
		t.Errorf("Delete in a namespace that does not exist: %v; its rules are gone with it", err)
	}
}

// changesNothingTwice relies on counters: a rule that is written anew starts
// from zero.
func changesNothingTwice(t *testing.T, h Harness, b nat.Backend) {
	sample := Samples()["proxy with HaVip"]
	write(t, b, sample)
	wantRefused(t, h.Host, vpc, serve(t, h.Host, Netns, vpc.gate4))
	before := counts(t, b)
	key := nat.Counter{Key: nat.Key{Family: nat.IPv4, Chain: nat.Input}, Reason: nat.InboundUserVPC, In: "eth1"}
	if before[key] == 0 {
		t.Fatalf("counters %v: nothing for %v", before, key)
	}
	write(t, b, sample)
	if after := counts(t, b); after[key] < before[key] {
		t.Errorf("counter fell from %d to %d: the second write replaced rules", before[key], after[key])
	}
}

func counts(t *testing.T, b nat.Backend) map[nat.Counter]uint64 {
	t.Helper()
	cs, err := b.Counters(t.Context(), Netns)
	if err != nil {
		t.Fatalf("Counters: %v", err)
	}
	m := map[nat.Counter]uint64{}
	for _, c := range cs {
		n := c.Packets
		c.Packets = 0
		m[c] = n
	}
	return m
}

func refuses(t *testing.T, h Harness, b nat.Backend) {
	want := write(t, b, Samples()["lone proxy"])
	bad := nat.Render(desired.NAT{Guarded: []string{"eth1\n-F"}})
	if err := b.Write(t.Context(), Netns, bad); err == nil {
		t.Error("Write of a link with a line break succeeded")
	}
	wantDiff(t, b, want, "")
	if err := b.Write(t.Context(), "vpx-none", want); err == nil {
		t.Error("Write to a namespace that does not exist succeeded")
	}
	if _, err := b.Read(t.Context(), "vpx-none"); err == nil {
		t.Error("Read of a namespace that does not exist succeeded: unknown is not none")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Read(ctx, Netns); err == nil {
		t.Error("Read succeeded after its context ended")
	}
}

func leavesForeign(t *testing.T, h Harness, b nat.Backend) {
	h.Shell(t, Netns, h.Foreign)
	before := h.Shell(t, Netns, h.Dump)
	for _, name := range []string{"function host that masquerades", "proxy with HaVip", ""} {
		write(t, b, Samples()[name])
		if got := h.Shell(t, Netns, h.Dump); got != before {
			t.Fatalf("foreign rules changed from\n%s\nto\n%s", before, got)
		}
	}
}

func repairs(t *testing.T, h Harness, b nat.Backend) {
	all := Samples()["proxy with HaVip"]
	all.Masquerade = keeping(pods4, pods6)
	want := write(t, b, all)
	for _, f := range h.Faults {
		t.Run(f.Name, func(t *testing.T) {
			h.Shell(t, Netns, f.Script)
			t.Log(wantDiff(t, b, want, "*"))
			if err := b.Write(t.Context(), Netns, want); err != nil {
				t.Fatalf("Write: %v", err)
			}
			wantDiff(t, b, want, "")
		})
	}
}
