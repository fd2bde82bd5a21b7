package kerneltest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// space is a network namespace.
type space struct {
	name      string
	gone      bool
	links     map[int]*link
	nextIndex int
	addresses []kernel.Address
	neighbors map[neighborKey]kernel.Neighbor
	nexthops  map[uint32]kernel.Nexthop
	routes    []kernel.Route
	rules     []kernel.Rule
	sysctls   map[string]string
	flows     map[netip.Addr]struct{}
}

type neighborKey struct {
	link int
	addr netip.Addr
}

// The kernel's own rules (net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c).
const protocolKernel = unix.RTPROT_KERNEL

func newSpace(name string) *space {
	s := &space{
		name:      name,
		links:     map[int]*link{},
		nextIndex: 1,
		neighbors: map[neighborKey]kernel.Neighbor{},
		nexthops:  map[uint32]kernel.Nexthop{},
		sysctls:   newSysctls(),
		rules: []kernel.Rule{
			{Priority: 0, Table: unix.RT_TABLE_LOCAL, Protocol: protocolKernel},
			{Priority: 32766, Table: unix.RT_TABLE_MAIN, Protocol: protocolKernel},
			{Priority: 32767, Table: unix.RT_TABLE_DEFAULT, Protocol: protocolKernel},
			{IPv6: true, Priority: 0, Table: unix.RT_TABLE_LOCAL, Protocol: protocolKernel},
			{IPv6: true, Priority: 32766, Table: unix.RT_TABLE_MAIN, Protocol: protocolKernel},
		},
	}
	lo := s.plug(&link{Link: kernel.Link{Name: "lo", MTU: 65536, Up: true, Lower: true}})
	s.addresses = []kernel.Address{
		{Link: lo.Index, Prefix: netip.MustParsePrefix("127.0.0.1/8"), Scope: unix.RT_SCOPE_HOST},
		{Link: lo.Index, Prefix: netip.MustParsePrefix("::1/128"), Scope: unix.RT_SCOPE_HOST},
	}
	return s
}

func noNamespace(name string) error {
	return fmt.Errorf("network namespace %q: %w", name, kernel.ErrNotFound)
}

// Namespaces implements kernel.Host.
func (f *Fake) Namespaces(ctx context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(ctx, "Namespaces"); err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(f.spaces))
	return names[1:], nil // without ""
}

// CreateNamespace implements kernel.Host.
func (f *Fake) CreateNamespace(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.write(ctx, "CreateNamespace", name, ""); err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("network namespace %q: not a name", name)
	}
	if f.spaces[name] == nil {
		f.spaces[name] = newSpace(name)
		f.hint("", kernel.HintNamespaces)
	}
	return nil
}

// DeleteNamespace implements kernel.Host.
func (f *Fake) DeleteNamespace(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.write(ctx, "DeleteNamespace", name, ""); err != nil {
		return err
	}
	s := f.spaces[name]
	if s == nil || name == "" {
		return nil
	}
	own := f.spaces[""]
	for _, l := range s.sorted() {
		if l.Type == "" && l.Name != "lo" {
			if err := f.move(s, l, own); err != nil {
				return fmt.Errorf("delete network namespace %s: %w", name, err)
			}
		}
	}
	s.gone = true
	delete(f.spaces, name)
	// A tunnel ends with the namespace that its outer packets live in.
	for _, other := range f.spaces {
		for _, l := range other.sorted() {
			if l.underlay == s {
				f.unplug(other, l)
			}
		}
	}
	f.endWatches(name)
	f.hint("", kernel.HintNamespaces)
	return nil
}

// In implements kernel.Host.
func (f *Fake) In(name string) (kernel.Handle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("network namespace %q: the host is closed: %w", name, os.ErrClosed)
	}
	s := f.spaces[name]
	if s == nil {
		return nil, noNamespace(name)
	}
	return &handle{fake: f, space: s}, nil
}

// Run implements kernel.Host. There are no threads to change: programs that f starts
// run where the test runs.
func (f *Fake) Run(ctx context.Context, name string, fn func() error) error {
	if err := f.begin(ctx, "Run", name); err != nil {
		return err
	}
	return fn()
}

func (f *Fake) begin(ctx context.Context, op, netns string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(ctx, op); err != nil {
		return err
	}
	if f.spaces[netns] == nil {
		return noNamespace(netns)
	}
	return nil
}

// handle is a kernel.Handle. It stays with its namespace when another one gets the name.
type handle struct {
	fake  *Fake
	space *space
}

// list calls f with the namespace, locked, for an operation that reads.
func (h *handle) list(ctx context.Context, op string, f func(*space) error) error {
	h.fake.mu.Lock()
	defer h.fake.mu.Unlock()
	if err := h.fake.read(ctx, op); err != nil {
		return err
	}
	if h.space.gone {
		return noNamespace(h.space.name)
	}
	return f(h.space)
}

// change calls f with the namespace, locked, for an operation that writes.
func (h *handle) change(ctx context.Context, op, object string, f func(*space) error) error {
	h.fake.mu.Lock()
	defer h.fake.mu.Unlock()
	if err := h.fake.write(ctx, op, h.space.name, object); err != nil {
		return err
	}
	if h.space.gone {
		return noNamespace(h.space.name)
	}
	return f(h.space)
}

// changeEach is change for each item of a batch.
func changeEach[T any](ctx context.Context, h *handle, op string, items []T, name func(T) string, f func(*space, T) error) []error {
	errs := make([]error, len(items))
	for i, item := range items {
		err := h.change(ctx, op, name(item), func(s *space) error { return f(s, item) })
		if err != nil {
			errs[i] = fmt.Errorf("%s %s: %w", op, name(item), err)
		}
	}
	return errs
}
