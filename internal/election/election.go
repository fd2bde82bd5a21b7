// Package election runs the elections that a plan names: for each group one
// ha.Node, whose role moves a vip.Set. It watches what makes this machine fit to
// be active, and tells those who follow which role it has in which group.
//
// Adverts, and the moves that follow from them, never wait for anything here:
// the ha.Node has tasks of its own, and the sets use kernel handles of their own.
package election

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// ErrUnknown is for a group that this node takes no part in.
var ErrUnknown = errors.New("this node takes no part in the election of that group")

// Host is the part of kernel.Host that elections need.
type Host interface {
	vip.Host
	vip.Runner
}

// Health is what the rest of the agent says of itself.
type Health struct {
	// Ready is set once the kernel has been made as planned for the first
	// time, as far as it could be. Before that the node is not electable.
	Ready bool
	// InSync is set if the kernel holds all that is planned.
	InSync bool
	// Alive is when the reconcile loop was last known to go on.
	Alive time.Time
}

// Options describes a Manager.
type Options struct {
	Host   Host // for elections alone
	Wire   vip.Wire
	Health func() Health // must not block
	// Driver returns what tells the outside of a group's HaVips; nil, or nil
	// returned: the network follows ARP.
	Driver func(group string, priority func() uint8) vip.Driver
	// Notify, if not nil, hears of every change of role. It must not block.
	Notify func(group string, s ha.State, priority uint8)
	// Keys, if any, authenticate adverts; SendKey is the id of the one to send
	// with. With AuthOptional, adverts without authentication are taken, too.
	Keys         vrrp.Keys
	SendKey      uint8
	AuthOptional bool
	// Copied, if not nil, tells whether this node could go on with a group's
	// connections, and be found by BGP, as the active one is. It must not block.
	Copied func(group string) bool
	// Changed, if not nil, hears of all groups whenever the role in one of
	// them, or what belongs to it, has changed. It is called from one
	// goroutine at a time, and must not block.
	Changed func([]Group)
	Log     *slog.Logger
	// Transport opens what carries adverts; nil is a raw socket.
	Transport func(e desired.Election) (ha.Transport, error)
}

// Group is what a group is to this node at one moment.
type Group struct {
	Name   string
	State  ha.State
	HaVip  netip.Addr        // on the underlay
	Local  netip.Addr        // this node's underlay address
	Peers  []desired.Elector // the other members
	HaVips []desired.HaVip   // inside the attachments' namespaces
}

// Active tells whether this node holds the group's HaVips, or is about to.
func (g Group) Active() bool { return g.State == ha.Active }

// Manager runs the elections of one node. Its methods are safe for concurrent
// use.
type Manager struct {
	opts Options
	wake chan struct{} // buffered, 1: look at everything
	// health, buffered, 1: look at what the agent says of itself.
	health chan struct{}
	tell   chan struct{} // buffered, 1: a role has changed

	spaces map[string]bool // Run's: namespaces of the elections

	mu        sync.Mutex
	wanted    []desired.Election
	instances map[string]*instance
	problems  map[string]string // by group: why there is no instance
}

// New returns a Manager that Run starts.
func New(o Options) *Manager {
	if o.Transport == nil {
		o.Transport = func(e desired.Election) (ha.Transport, error) {
			return ha.OpenSocket(e.Link, e.Local, e.Multicast)
		}
	}
	return &Manager{opts: o, wake: make(chan struct{}, 1), health: make(chan struct{}, 1), tell: make(chan struct{}, 1), instances: map[string]*instance{}, problems: map[string]string{}}
}

// SetElections replaces what this node takes part in. It does not wait.
func (m *Manager) SetElections(list []desired.Election) {
	m.mu.Lock()
	same := reflect.DeepEqual(m.wanted, list)
	m.wanted = list
	m.mu.Unlock()
	if !same {
		kick(m.wake)
	}
}

// Hint says that something in the kernel may have changed. It does not wait.
func (m *Manager) Hint(h kernel.Hint) {
	switch h {
	case kernel.HintLinks, kernel.HintAddresses, kernel.HintAll:
		kick(m.wake)
	}
}

// Look says that Options.Health may have changed. It does not wait.
func (m *Manager) Look() { kick(m.health) }

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	// lookEvery is how often health is looked at while something is amiss, and
	// restEvery while nothing is: with all else that changes comes a word.
	lookEvery, restEvery = time.Second, 4 * time.Second
	// linksEvery is how often links and addresses are looked at without a hint.
	linksEvery = 4 * time.Second
	// tidyEvery is how often HaVips are looked for that no election knows.
	tidyEvery = time.Minute
)

// Run takes part in the elections until the context ends. Then it resigns, and
// lets go of all HaVips. First of all it removes those that a predecessor left
// behind: by now another node may be active.
func (m *Manager) Run(ctx context.Context) error {
	m.sweep(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer m.stopAll()
	telling.Go(func() { m.tellAll(ctx) })
	look := time.NewTimer(0)
	defer look.Stop()
	tidied, linksSeen := time.Now(), time.Now()
	for hinted := true; ; {
		links := hinted || time.Since(linksSeen) > linksEvery-lookEvery/2
		if links {
			linksSeen = time.Now()
		}
		if links || m.unwell() {
			m.converge(ctx)
		}
		calm := m.judge(ctx, links)
		if time.Since(tidied) >= tidyEvery {
			m.sweep(ctx)
			tidied = time.Now()
		}
		every := lookEvery
		if calm {
			every = restEvery
		}
		look.Reset(rhythm.Until(every))
		select {
		case <-ctx.Done():
			return nil
		case <-m.health:
			hinted = false
		case <-m.wake:
			hinted = true
			for _, i := range m.all() {
				i.set.Look()
			}
		case <-look.C:
			hinted = false
		}
	}
}

// unwell tells whether an instance has ended by itself, or could not be started.
func (m *Manager) unwell() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.instances {
		if i.ended() {
			return true
		}
	}
	return len(m.problems) > 0
}

// tellAll passes changes on to who follows.
func (m *Manager) tellAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.tell:
			if m.opts.Changed != nil {
				m.opts.Changed(m.Groups())
			}
		}
	}
}

// sweep removes HaVips that belong to no instance.
func (m *Manager) sweep(ctx context.Context) {
	known := map[string]map[netip.Addr]bool{}
	for _, i := range m.all() {
		for _, a := range i.set.Addresses() {
			if known[a.Netns] == nil {
				known[a.Netns] = map[netip.Addr]bool{}
			}
			known[a.Netns][a.Addr] = true
		}
	}
	removed, err := vip.Sweep(ctx, m.opts.Host, func(netns string, a kernel.Address) bool { return known[netns][a.Prefix.Addr()] })
	if removed > 0 {
		m.opts.Log.Warn("HaVips removed that a former agent had left behind", "count", removed)
	}
	if err != nil && ctx.Err() == nil {
		m.opts.Log.Error("cannot remove HaVips that were left behind", "err", err)
	}
}

// all returns the instances, by group.
func (m *Manager) all() []*instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.instances), func(a, b *instance) int { return cmp.Compare(a.name, b.name) })
}

// converge starts, changes and stops instances as wanted.
func (m *Manager) converge(ctx context.Context) {
	m.mu.Lock()
	wanted := slices.Clone(m.wanted)
	m.mu.Unlock()
	spaces := map[string]bool{"": true}
	keep := map[string]bool{}
	for _, e := range wanted {
		keep[e.Group] = true
		for _, v := range e.HaVips {
			spaces[v.Netns] = true
		}
		m.ensure(ctx, e)
	}
	for _, i := range m.all() {
		if !keep[i.name] {
			m.stop(i, "no longer wanted")
		}
	}
	if maps.Equal(spaces, m.spaces) {
		return
	}
	m.spaces = spaces
	m.opts.Wire.Retain(spaces)
	// Listing has the host let go of namespaces that are gone.
	if _, err := m.opts.Host.Namespaces(ctx); err != nil && ctx.Err() == nil {
		m.opts.Log.Error("cannot list namespaces", "err", err)
	}
}

// ensure brings one election about.
func (m *Manager) ensure(ctx context.Context, e desired.Election) {
	m.mu.Lock()
	i := m.instances[e.Group]
	m.mu.Unlock()
	index := 0
	if l, ok := m.link(ctx, "", e.Link); ok {
		index = l.Index
	}
	if i != nil && i.ended() {
		m.stop(i, "it ended by itself")
		i = nil
	}
	if i != nil && e.Link != "" && index != 0 && (i.identity() != identityOf(e) || i.index != index) {
		m.stop(i, "it is another one now")
		i = nil
	}
	if i != nil {
		if e.Link == "" { // the track says so; where the HaVip was it may come back
			e = onLink(e, i.current().Link)
		}
		changed, err := i.change(ctx, e)
		if err != nil && ctx.Err() == nil {
			m.opts.Log.Error("election not changed", "group", e.Group, "err", err)
		}
		if changed {
			kick(m.tell)
		}
		return
	}
	if index == 0 {
		m.problem(e.Group, fmt.Errorf("no interface has the underlay address %s", e.Local))
		return
	}
	i, err := m.start(ctx, e, index)
	if ctx.Err() != nil {
		return
	}
	m.problem(e.Group, err)
	if err == nil {
		m.mu.Lock()
		m.instances[e.Group] = i
		m.mu.Unlock()
		kick(m.tell)
	}
}

// problem notes why there is no instance, and logs it when it is new.
func (m *Manager) problem(group string, err error) {
	m.mu.Lock()
	before, now := m.problems[group], ""
	if err != nil {
		now = err.Error()
	}
	m.problems[group] = now
	if err == nil {
		delete(m.problems, group)
	}
	m.mu.Unlock()
	switch {
	case now == before:
	case err != nil:
		m.opts.Log.Error("election not started", "group", group, "err", err)
	default:
		m.opts.Log.Info("election started after failures", "group", group)
	}
}

func (m *Manager) link(ctx context.Context, netns, name string) (kernel.Link, bool) {
	if name == "" {
		return kernel.Link{}, false
	}
	h, err := m.opts.Host.In(netns)
	if err != nil {
		return kernel.Link{}, false
	}
	l, err := h.LinkByName(ctx, name)
	return l, err == nil
}

// onLink returns an election whose underlay is a given link.
func onLink(e desired.Election, link string) desired.Election {
	e.Link = link
	e.HaVips = slices.Clone(e.HaVips)
	for i := range e.HaVips {
		if e.HaVips[i].Attachment == "" {
			e.HaVips[i].Link = link
		}
	}
	return e
}

// stop ends an instance, which resigns, and forgets it.
func (m *Manager) stop(i *instance, why string) {
	err := i.stop()
	m.opts.Log.Info("election left", "group", i.name, "why", why)
	if err != nil {
		m.opts.Log.Error("election ended", "group", i.name, "err", err)
	}
	m.mu.Lock()
	delete(m.instances, i.name)
	m.mu.Unlock()
	kick(m.tell)
}

// stopAll ends all instances at the same time.
func (m *Manager) stopAll() {
	var stopping sync.WaitGroup
	for _, i := range m.all() {
		stopping.Go(func() { m.stop(i, "the agent stops") })
	}
	stopping.Wait()
}

// Groups returns what each group is to this node, by name.
func (m *Manager) Groups() []Group {
	var out []Group
	for _, i := range m.all() {
		out = append(out, i.group())
	}
	return out
}
