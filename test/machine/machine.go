// Package machine gives a test a machine of its own, in memory and on the real
// kernel, so that one test body runs on both.
package machine

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// Machine is a fresh machine with one network namespace.
type Machine struct {
	kernel.Host
	// Fake is nil on the real kernel.
	Fake *kerneltest.Fake
	own  string // path of the agent's namespace, on the real kernel
}

// Each runs a test on both sorts of machine: "fake" everywhere, "kernel" in the
// lab.
func Each(t *testing.T, f func(t *testing.T, m *Machine)) {
	t.Helper()
	t.Run("fake", func(t *testing.T) { f(t, Fake(t)) })
	t.Run("kernel", func(t *testing.T) { f(t, Kernel(t)) })
}

// Kernel returns a machine on the real kernel, in the lab.
func Kernel(t *testing.T) *Machine {
	t.Helper()
	lab.Require(t, lab.GRE, lab.Clsact)
	return real(t)
}

// Fake returns a machine in memory.
func Fake(t testing.TB) *Machine {
	fake := kerneltest.New()
	t.Cleanup(func() { _ = fake.Close() })
	return &Machine{Host: fake, Fake: fake}
}

// real returns a machine whose namespace is one of the kernel's, with a directory
// of namespace names of its own.
func real(t *testing.T) *Machine {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // mounts below go with it
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	outside, err := kernel.NewHost(kernel.HostOptions{NetnsDir: filepath.Join(dir, "machines")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Close() })
	if err := outside.CreateNamespace(t.Context(), "machine"); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "machines", "machine")
	names := filepath.Join(dir, "netns")
	if err := os.MkdirAll(names, 0o755); err != nil {
		t.Fatal(err)
	}
	host, err := kernel.NewHost(kernel.HostOptions{NetnsDir: names, Own: own})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return &Machine{Host: host, own: own}
}

// Open opens a namespace.
func (m *Machine) Open(t testing.TB, netns string) kernel.Handle {
	t.Helper()
	h, err := m.In(netns)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Link returns a link that must exist.
func (m *Machine) Link(t testing.TB, netns, name string) kernel.Link {
	t.Helper()
	l, err := m.Open(t, netns).LinkByName(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Plug adds an Ethernet interface to the agent's namespace, and sets it up: a
// physical one in memory, one end of a veth pair on the real kernel.
func (m *Machine) Plug(t testing.TB, name, mac string) {
	t.Helper()
	if m.Fake != nil {
		m.Fake.Plug("", kernel.Link{Name: name, MAC: mac})
	} else {
		m.plugVeth(t, name, mac)
	}
	l := m.Link(t, "", name)
	if err := m.Open(t, "").SetLinkUp(t.Context(), l.Index, true); err != nil {
		t.Fatal(err)
	}
}

func (m *Machine) plugVeth(t testing.TB, name, mac string) {
	t.Helper()
	address, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.GetFromPath(m.own)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, address
	peer := "far" + strings.ReplaceAll(mac[8:], ":", "")
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	l, err := h.LinkByName(peer)
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Engine reconciles one kind of object.
type Engine[K comparable, V any] struct {
	t    testing.TB
	loop *reconcile.Loop[map[K]V]

	mu     sync.Mutex
	passes []reconcile.Pass
}

// ObservePass implements [reconcile.Observer].
func (e *Engine[K, V]) ObservePass(p reconcile.Pass) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.passes = append(e.passes, p)
}

// Reconcile starts an engine, which ends with the test.
func Reconcile[K comparable, V any](t testing.TB, kind reconcile.Kind[K, V]) *Engine[K, V] {
	t.Helper()
	stage := reconcile.NewStage(kind, func(s map[K]V) map[K]V { return s }, nil)
	e := &Engine[K, V]{t: t}
	loop, err := reconcile.New(reconcile.Config[map[K]V]{Stages: []reconcile.Stage[map[K]V]{stage}, Observer: e})
	if err != nil {
		t.Fatal(err)
	}
	e.loop = loop
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := loop.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return e
}

// Try makes want true as far as it goes, and returns the last pass, with what was
// created, repaired, deleted and failed in all passes that it took: what failed
// in one may succeed in the next.
func (e *Engine[K, V]) Try(want map[K]V) reconcile.Pass {
	e.t.Helper()
	e.mu.Lock()
	e.passes = nil
	e.mu.Unlock()
	e.loop.SetDesired(want)
	pass, err := e.loop.Resync(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	total := pass.Kinds[0]
	for _, p := range e.passes {
		if p.Start.Before(pass.Start) {
			total.Created += p.Kinds[0].Created
			total.Repaired += p.Kinds[0].Repaired
			total.Deleted += p.Kinds[0].Deleted
			total.Failed += p.Kinds[0].Failed
		}
	}
	pass.Kinds = []reconcile.KindPass{total}
	return pass
}

// Apply makes want true, and fails unless that works and a second look finds
// nothing to do.
func (e *Engine[K, V]) Apply(want map[K]V) reconcile.Pass {
	e.t.Helper()
	pass := e.Try(want)
	if pass.Err != nil {
		e.t.Fatalf("reconcile: %v", pass.Err)
	}
	if again := e.Try(want); again.Err != nil || again.Writes() > 0 {
		e.t.Fatalf("a second pass made %d writes: %v", again.Writes(), again.Err)
	}
	return pass
}
