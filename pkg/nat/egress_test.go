package nat_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

func TestEgressGuards(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		ctx := t.Context()
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		ok(m.CreateNamespace(ctx, "vpx-a"))
		m.Plug(t, "eth1", "02:00:00:00:00:01")
		m.Plug(t, "eth2", "02:00:00:00:00:02")
		own := m.Open(t, "")
		ok(own.MoveLink(ctx, m.Link(t, "", "eth1").Index, "vpx-a"))
		foreign := m.Link(t, "", "eth2").Index
		ok(own.SetEgressSources(ctx, foreign, []netip.Addr{netip.MustParseAddr("10.0.0.1")})) // outside our namespaces
		h, eth1 := m.Open(t, "vpx-a"), m.Link(t, "vpx-a", "eth1").Index
		key := desired.EgressKey{Netns: "vpx-a", Link: "eth1"}
		sources := func(s ...string) map[desired.EgressKey]desired.Egress {
			var e desired.Egress
			for _, a := range s {
				e.Sources = append(e.Sources, netip.MustParseAddr(a))
			}
			return map[desired.EgressKey]desired.Egress{key: e}
		}
		engine := machine.Reconcile(t, nat.NewEgressGuards(m))
		engine.Apply(sources())
		engine.Apply(sources("172.16.101.10", "172.16.101.100", "fd00::10"))
		engine.Apply(sources("172.16.101.100", "fd00::10"))
		got, err := h.EgressSources(ctx, eth1)
		if err != nil || len(got) != 2 {
			t.Errorf("got %v, %v", got, err)
		}
		ok(h.DeleteEgressGuard(ctx, eth1))
		if p := engine.Apply(sources("172.16.101.10")); p.Kinds[0].Created != 1 {
			t.Errorf("%+v", p.Kinds[0])
		}
		engine.Apply(nil)
		if _, err := h.EgressSources(ctx, eth1); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("the guard is left: %v", err)
		}
		if _, err := own.EgressSources(ctx, foreign); err != nil {
			t.Errorf("a guard outside our namespaces: %v", err)
		}
		kind := nat.NewEgressGuards(m)
		for _, k := range []desired.EgressKey{{Netns: "vpx-a", Link: "eth9"}, {Netns: "vpx-gone", Link: "eth1"}} {
			ok(kind.Delete(ctx, k, desired.Egress{}))
			if err := kind.Upsert(ctx, k, desired.Egress{}); !errors.Is(err, kernel.ErrNotFound) {
				t.Errorf("a guard on no link: %v", err)
			}
		}
	})
}

// broken is a kernel in which every guard has lost a part.
type broken struct{ kernel.Host }

type brokenHandle struct{ kernel.Handle }

func (b broken) In(name string) (kernel.Handle, error) {
	h, err := b.Host.In(name)
	return brokenHandle{h}, err
}

func (b brokenHandle) EgressSources(ctx context.Context, index int) ([]netip.Addr, error) {
	if _, err := b.Handle.EgressSources(ctx, index); err != nil {
		return nil, err
	}
	return nil, kernel.ErrIncomplete
}

// A guard with a part missing differs from every wanted one, and is ours to
// remove.
func TestIncompleteEgressGuardIsSeen(t *testing.T) {
	m := machine.Fake(t)
	if err := m.CreateNamespace(t.Context(), "vpx-a"); err != nil {
		t.Fatal(err)
	}
	index := m.Fake.Plug("vpx-a", kernel.Link{Name: "eth1", MAC: "02:00:00:00:00:01"})
	if err := m.Open(t, "vpx-a").SetEgressSources(t.Context(), index, nil); err != nil {
		t.Fatal(err)
	}
	kind := nat.NewEgressGuards(broken{m})
	got, err := kind.List(t.Context())
	have, seen := got[desired.EgressKey{Netns: "vpx-a", Link: "eth1"}]
	if err != nil || !seen || kind.Diff(desired.Egress{}, have) == "" {
		t.Errorf("got %v, %v", got, err)
	}
}
