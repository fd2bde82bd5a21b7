package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Credentials are what members prove to each other who they are with.
type Credentials struct {
	// Server is the listener's. It must demand a certificate of the client.
	Server *tls.Config
	// Client is for one connection to a member, which it must verify.
	Client func(node string) *tls.Config
	// Peer returns the name of the node at the other end of a connection that
	// Server accepted.
	Peer func(tls.ConnectionState) (string, error)
}

// Options describes a Manager.
type Options struct {
	// Listen is where the others connect to: HOST:PORT or :PORT.
	Listen      string
	Credentials Credentials
	// NetnsDir holds namespaces by name; "" is /run/netns.
	NetnsDir string
	// ChooseEvents makes a namespace tell of assured flows and of nothing else
	// (nft.Tables.AssuredEventsOnly); nil leaves it as it is.
	ChooseEvents func(ctx context.Context, netns string) error
	// Age is how old a flow is at least, from when it is assured, before it
	// is replicated.
	Age time.Duration
	// Refresh is the least time between two listings of a namespace's table, and
	// how often the entries of one at rest are counted; 0 is DefaultRefresh.
	Refresh time.Duration
	// Grace is how long a member on standby keeps flows in its kernel that the
	// active one does not know; 0 is DefaultGrace.
	Grace time.Duration
	Log   *slog.Logger
}

// DefaultRefresh is a listing's default interval: the kernel's default time-out
// of a UDP flow that goes on is 120 s, of which half must not pass unnoticed.
const DefaultRefresh = 15 * time.Second

// DefaultGrace outlasts a pair that changes roles to and fro: a member that took
// over with half a copy must not make the other, which has been asked to stand
// back for a moment, forget the other half. Flows that are no more do no harm for
// that long; one that is in the way of another goes at once.
const DefaultGrace = 30 * time.Second

// Member is a proxy of a group.
type Member struct {
	Node    string
	Address netip.AddrPort // of its listener
}

// Group is what one proxy group wants of this node.
type Group struct {
	Name string
	// Others are the group's other members.
	Others []Member
	// Namespaces are the attachments', which have the same names on all members.
	Namespaces []string
}

func (g *Group) equal(h *Group) bool {
	return slices.Equal(g.Others, h.Others) && slices.Equal(g.Namespaces, h.Namespaces)
}

// Manager replicates the sessions of all groups of a node. Its methods are safe
// for concurrent use.
type Manager struct {
	opts     Options
	listener net.Listener
	pace     *pacer
	ready    chan struct{}

	mu     sync.Mutex
	groups map[string]*group
	active map[string]bool // also of groups that are not known yet
	wake   chan struct{}   // closed and replaced when groups or active change
}

// Listen returns a Manager whose listener is open. Run must be called, which
// closes it.
func Listen(ctx context.Context, opts Options) (*Manager, error) {
	if opts.NetnsDir == "" {
		opts.NetnsDir = "/run/netns" // ip-netns(8)
	}
	if opts.Refresh == 0 {
		opts.Refresh = DefaultRefresh
	}
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", opts.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for session replication: %w", err)
	}
	return &Manager{
		opts: opts, listener: l, pace: &pacer{}, ready: make(chan struct{}), wake: make(chan struct{}),
		groups: map[string]*group{}, active: map[string]bool{},
	}, nil
}

// Address returns where the listener listens.
func (m *Manager) Address() netip.AddrPort {
	a, _ := netip.ParseAddrPort(m.listener.Addr().String())
	return a
}

// Close closes the listener of a Manager that was never run; after Run it does
// nothing.
func (m *Manager) Close() error {
	if err := m.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// String names the task.
func (*Manager) String() string { return "session replication" }

// Ready is closed once Run accepts connections.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Set says which groups there are. It does not wait.
func (m *Manager) Set(groups []Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]bool{}
	for i := range groups {
		want := groups[i]
		names[want.Name] = true
		g, ok := m.groups[want.Name]
		if !ok {
			m.groups[want.Name] = newGroup(want, m.active[want.Name], &m.opts, m.pace)
			continue
		}
		g.set(want)
	}
	for name, g := range m.groups {
		if !names[name] {
			g.stop()
			delete(m.groups, name)
		}
	}
	m.kick()
}

// SetActive says whether this node is the active one of a group, which need not
// be known yet. A node is on standby until it is told otherwise. It does not wait.
func (m *Manager) SetActive(name string, active bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if active {
		m.active[name] = true
	} else {
		delete(m.active, name)
	}
	if g, ok := m.groups[name]; ok {
		g.setActive(active)
	}
}

// Copied tells whether this node is on standby in a group and its kernel has all
// that a member which is connected has sent it, whole: it could go on with that
// one's connections. It does not wait.
func (m *Manager) Copied(name string) bool {
	g := m.group(name)
	return g != nil && g.copied()
}

func (m *Manager) kick() {
	close(m.wake)
	m.wake = make(chan struct{})
}

func (m *Manager) group(name string) *group {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.groups[name]
}

// Run replicates until the context ends. Entries stay in the kernel.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	stop := context.AfterFunc(ctx, func() { _ = m.listener.Close() })
	defer stop()
	tasks.Go(func() { m.runGroups(ctx) })
	close(m.ready)
	for {
		c, err := m.listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			cancel()
			return fmt.Errorf("session replication: %w", err)
		case err != nil: // out of descriptors, for instance
			m.opts.Log.Warn("cannot accept a connection for session replication", "err", err)
			pause(ctx, retry)
			continue
		}
		tasks.Go(func() { m.accept(ctx, c) })
	}
}

// runGroups runs every group that there is, or comes to be.
func (m *Manager) runGroups(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	started := map[*group]bool{}
	for {
		m.mu.Lock()
		wake := m.wake
		present := map[*group]bool{}
		for _, g := range m.groups {
			present[g] = true
			if !started[g] {
				tasks.Go(func() { g.run(ctx) })
			}
		}
		started = present
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
	}
}

// GroupStatus is where a group's replication stands.
type GroupStatus struct {
	Group  string
	Active bool
	// Standbys are the members that have a whole copy, if this one is active;
	// or, on standby, the member that this one has a whole copy of.
	Standbys []string
	Entries  int // replicated, or to be
	// Pending are the entries that not every standby is known to have; those
	// that are too young are among them.
	Pending int
	// Lag is how long the oldest change has waited for a standby's answer.
	Lag time.Duration
	// Counters since the start.
	Sent, Applied, Resyncs, LostEvents, Listings, Failures uint64
}

// Status returns every group's, ordered by name.
func (m *Manager) Status() []GroupStatus {
	m.mu.Lock()
	groups := make([]*group, 0, len(m.groups))
	for _, g := range m.groups {
		groups = append(groups, g)
	}
	m.mu.Unlock()
	out := make([]GroupStatus, 0, len(groups))
	for _, g := range groups {
		out = append(out, g.status())
	}
	slices.SortFunc(out, func(a, b GroupStatus) int { return strings.Compare(a.Group, b.Group) })
	return out
}
