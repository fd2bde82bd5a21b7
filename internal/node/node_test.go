package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

// table is a kind whose objects are entries of a map: what iptables and
// nftables would hold is not this package's business.
type table[K comparable, V any] struct {
	name string
	same func(a, b V) bool
	mu   sync.Mutex
	have map[K]V
}

func newTable[K comparable, V any](name string, same func(a, b V) bool) *table[K, V] {
	return &table[K, V]{name: name, same: same, have: map[K]V{}}
}

func (t *table[K, V]) Name() string { return t.name }

func (t *table[K, V]) List(context.Context) (map[K]V, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.have), nil
}

func (t *table[K, V]) Diff(want, have V) string {
	if t.same(want, have) {
		return ""
	}
	return "differs"
}

func (t *table[K, V]) Upsert(_ context.Context, k K, want V) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have[k] = want
	return nil
}

func (t *table[K, V]) Delete(_ context.Context, k K, _ V) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.have, k)
	return nil
}

func equal[V comparable](a, b V) bool { return a == b }

// machine is a fake machine with an agent on it.
type machine struct {
	t    *testing.T
	fake *kerneltest.Fake
	node *Node
}

func newMachine(t *testing.T, name string, fake *kerneltest.Fake, change ...func(*Options)) *machine {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	rules := newTable[desired.NATKey, nat.RuleSet]("nat", func(a, b nat.RuleSet) bool { return nat.Diff(a, b) == "" })
	hosts := &tunnel.Table{}
	options := Options{
		Name: name, Host: fake, Log: log, Refresh: time.Hour,
		Plan: plan.Config{MarkMask: 0x3fff, RulePriority: 17600, TableBase: 17600000},
		Kinds: Kinds{
			Namespaces: tunnel.NewNamespaces(fake),
			NAT:        rules,
			Peers:      newTable[desired.PeerKey]("peers", equal[desired.Peer]),
			Links:      tunnel.NewLinks(fake),
			ENIs:       tunnel.NewENIs(fake, t.TempDir(), log),
			Egress:     nat.NewEgressGuards(fake),
			Addresses:  tunnel.NewAddresses(fake),
			Neighbors:  tunnel.NewNeighbors(fake, hosts),
			Sysctls:    route.NewSysctls(fake),
			Nexthops:   route.NewNexthops(fake),
			Routes:     route.NewRoutes(fake),
			Rules:      route.NewRules(fake),
			Steers:     newTable[desired.SteerKey]("steers", equal[desired.Steer]),
			hosts:      hosts,
			responder:  tunnel.NewResponder(tunnel.ResponderOptions{Host: fake, Resolver: hosts, Age: time.Hour, Log: log}),
		},
	}
	for _, c := range change {
		c(&options)
	}
	n, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &machine{t: t, fake: fake, node: n}
}

// until polls: the loop's timers are real here.
func (m *machine) until(what string, cond func(Status) bool) {
	m.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for ; time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if cond(m.node.Status()) {
			return
		}
	}
	s := m.node.Status()
	m.t.Fatalf("never: %s\nattachments %+v\nproblems %v %s\nkinds %+v", what, s.Attachments, s.Problems, s.Problem, s.Loop.Kinds)
}

func proxyMachine(t *testing.T) *kerneltest.Fake {
	t.Helper()
	fake := kerneltest.New()
	t.Cleanup(func() { _ = fake.Close() })
	for i, l := range []struct{ name, mac, addr string }{
		{"eth0", "02:00:00:00:04:04", "192.168.4.4/24"},
		{"eth1", "02:00:00:00:65:0a", "172.16.101.10/24"},
		{"eth2", "02:00:00:00:66:0a", "172.16.101.10/24"},
	} {
		index := fake.Plug("", kernel.Link{Name: l.name, MAC: l.mac, MTU: 1500, Up: true, Lower: true})
		h, err := fake.In("")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.AddAddress(t.Context(), kernel.Address{Link: index, Prefix: netip.MustParsePrefix(l.addr)}); err != nil {
			t.Fatal(i, err)
		}
	}
	return fake
}

// tenants is an intent with two tenants of one subnet, and a revision.
func tenants(revision int64, names ...string) *intent.Set {
	s := &intent.Set{Revision: revision, Pool: intent.DefaultPool}
	s.Put(&intent.Node{Metadata: intent.Metadata{Name: "host"}, Spec: intent.NodeSpec{
		Roles: []intent.Role{intent.RoleFunction}, UnderlayAddress: netip.MustParseAddr("192.168.80.8"), TunnelAddress: netip.MustParseAddr("100.64.0.3")}})
	s.Put(&intent.Node{Metadata: intent.Metadata{Name: "proxy"}, Spec: intent.NodeSpec{
		Roles: []intent.Role{intent.RoleProxy}, UnderlayAddress: netip.MustParseAddr("192.168.4.4")}})
	s.Put(&intent.ProxyGroup{Metadata: intent.Metadata{Name: "g"}, Spec: intent.ProxyGroupSpec{
		Members: []intent.Member{{Node: "proxy"}}, TunnelAddress: netip.MustParseAddr("100.64.0.4")}})
	for i, name := range []string{"red", "blue"} {
		for _, wanted := range names {
			if wanted != name {
				continue
			}
			key := uint32(101 + i)
			s.Put(&intent.Attachment{Metadata: intent.Metadata{Name: name}, Spec: intent.AttachmentSpec{
				VPC: name, Group: "g", GREKey: &key,
				CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.101.0/24")},
				Pods:  []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.1.%d/32", 5+i))},
				ENIs:  []intent.ENI{{Name: fmt.Sprintf("eth%d", 1+i)}},
			}})
		}
	}
	return s
}

func applied(revision int64) func(Status) bool {
	return func(s Status) bool { return s.InSync && s.Revision == revision }
}

func TestProxyAttachDetach(t *testing.T) {
	fake := proxyMachine(t)
	m := newMachine(t, "proxy", fake)
	m.node.SetIntent(tenants(1, "red", "blue"))
	// An ENI is without its addresses for the moment of its move, and planned so.
	m.until("both attachments in place", func(s Status) bool {
		return applied(1)(s) && len(s.Attachments) == 2 && s.Attachments[0].Ready && s.Attachments[1].Ready
	})
	if s := m.node.Status(); s.Attachments[0].Role != intent.RoleProxy {
		t.Errorf("attachments: %+v", s.Attachments)
	}
	for ns, eni := range map[string]string{"vpx-red": "eth1", "vpx-blue": "eth2"} {
		if got := links(t, fake, ns); !strings.Contains(got, eni) || !strings.Contains(got, ns) {
			t.Errorf("namespace %s holds %s", ns, got)
		}
	}

	writes := fake.Writes()
	if pass, err := m.node.Resync(t.Context()); err != nil || pass.Writes() != 0 {
		t.Errorf("a second look wrote %d objects: %v", pass.Writes(), err)
	}
	if got := fake.Writes(); got != writes {
		t.Errorf("a second look wrote to the kernel %d times", got-writes)
	}

	m.node.SetIntent(tenants(2, "blue"))
	m.until("red is gone", func(s Status) bool { return applied(2)(s) && len(s.Attachments) == 1 })
	if got := links(t, fake, ""); !strings.Contains(got, "eth1") {
		t.Errorf("the ENI was not given back: %s", got)
	}
	if names, _ := fake.Namespaces(t.Context()); strings.Join(names, " ") != "vpx-blue" {
		t.Errorf("namespaces: %v", names)
	}
}

func links(t *testing.T, fake *kerneltest.Fake, netns string) string {
	t.Helper()
	h, err := fake.In(netns)
	if err != nil {
		return err.Error()
	}
	list, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	return strings.Join(names, " ")
}

func TestENIThatComesLater(t *testing.T) {
	fake := kerneltest.New()
	t.Cleanup(func() { _ = fake.Close() })
	m := newMachine(t, "proxy", fake)
	m.node.SetIntent(tenants(1, "red"))
	m.until("the missing ENI is reported", func(s Status) bool {
		return len(s.Attachments) == 1 && !s.Attachments[0].Ready && strings.Contains(fmt.Sprint(s.Problems), "no interface with name eth1")
	})
	fake.Plug("", kernel.Link{Name: "eth0", MAC: "02:00:00:00:04:04", MTU: 1500, Up: true})
	// It is taken away as soon as it has its name.
	index := fake.Plug("", kernel.Link{Name: "eth9", MAC: "02:00:00:00:65:0a", MTU: 1500})
	h, _ := fake.In("")
	for i, p := range []string{"192.168.4.4/24", "172.16.101.10/24"} {
		if err := h.AddAddress(t.Context(), kernel.Address{Link: index - 1 + i, Prefix: netip.MustParsePrefix(p)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.SetLinkName(t.Context(), index, "eth1"); err != nil {
		t.Fatal(err)
	}
	m.until("the ENI is taken", func(s Status) bool { return s.InSync && len(s.Problems) == 0 && s.Attachments[0].Ready })
	if got := links(t, fake, "vpx-red"); !strings.Contains(got, "eth1") {
		t.Errorf("namespace vpx-red holds %s", got)
	}
}

// Every write of attach and detach fails once, each in a run of its own, and
// the node ends where it should.
func TestEveryFailureIsRecoveredFrom(t *testing.T) {
	probe := proxyMachine(t)
	m := newMachine(t, "proxy", probe)
	start := probe.Writes()
	m.node.SetIntent(tenants(1, "red", "blue"))
	m.until("attached", applied(1))
	writes := probe.Writes() - start
	if writes < 10 {
		t.Fatalf("attaching took only %d writes", writes)
	}
	for nth := 1; nth <= writes; nth++ {
		t.Run(fmt.Sprint("write ", nth), func(t *testing.T) {
			t.Parallel()
			fake := proxyMachine(t)
			m := newMachine(t, "proxy", fake)
			fake.Fail("", nth, errors.New("injected"))
			m.node.SetIntent(tenants(1, "red", "blue"))
			m.until("attached", applied(1))
			fake.Fail("", nth/2+1, errors.New("injected"))
			m.node.SetIntent(tenants(2, "blue"))
			m.until("red is gone", func(s Status) bool { return applied(2)(s) && len(s.Attachments) == 1 })
			if got := links(t, fake, ""); !strings.Contains(got, "eth1") {
				t.Errorf("the ENI was not given back: %s", got)
			}
		})
	}
}

func TestFunctionHostAndDrift(t *testing.T) {
	fake := kerneltest.New()
	t.Cleanup(func() { _ = fake.Close() })
	index := fake.Plug("", kernel.Link{Name: "eth0", MAC: "02:00:00:00:80:08", MTU: 1500, Up: true})
	h, _ := fake.In("")
	if err := h.AddAddress(t.Context(), kernel.Address{Link: index, Prefix: netip.MustParsePrefix("192.168.80.8/24")}); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, "host", fake)
	m.node.SetIntent(tenants(1, "red", "blue"))
	m.until("attached", applied(1))
	l, err := h.LinkByName(t.Context(), "vpx-red")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteLink(t.Context(), l.Index); err != nil {
		t.Fatal(err)
	}
	m.until("the link and what was on it are back", func(s Status) bool {
		l, err := h.LinkByName(t.Context(), "vpx-red")
		if err != nil || !l.Up || !s.InSync {
			return false
		}
		neighbors, err := h.Neighbors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range neighbors {
			if n.Link == l.Index {
				return true
			}
		}
		return false
	})
	m.until("the drift is counted", func(Status) bool { return m.node.Totals()["links"].Repaired > 0 })
}
