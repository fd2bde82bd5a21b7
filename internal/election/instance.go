package election

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// trackReady keeps a node from being active before its kernel has been made as
// planned for the first time.
const trackReady = "ready"

// catchUp is how long a preferred node waits, at most, for the connections of the
// active one before it takes over: a million of them take half of that, at the
// rate of docs/benchmarks.md. A replication that does not work must not keep the node
// from ever taking over.
const catchUp = time.Minute

// freshness is how far the clocks of a group's proxies may be apart when one of
// them starts, if adverts are authenticated.
const freshness = time.Minute

// instance is one election under way.
type instance struct {
	name  string // of the group
	index int    // of the underlay's link
	set   *vip.Set
	node  *ha.Node

	probes probes

	cancel context.CancelFunc
	done   chan struct{} // closed when err is final
	err    error

	mu       sync.Mutex
	election desired.Election // in force
	enis     map[string]sight // by attachment
	outSince time.Time        // of sync; zero: in sync
	tracks   map[string]bool  // as reported
	drained  bool             // as posted
	since    time.Time        // of the state
}

// sight is what has been seen of an attachment's interface.
type sight struct {
	since time.Time // first asked for
	ever  bool      // it was up at some time
}

// identity is what an instance cannot change.
type identity struct {
	vrid         uint8
	local        netip.Addr
	link         string
	multicast    bool
	pseudoHeader bool
}

func identityOf(e desired.Election) identity {
	return identity{e.VRID, e.Local, e.Link, e.Multicast, e.PseudoHeader}
}

func (i *instance) identity() identity { return identityOf(i.current()) }

func (i *instance) current() desired.Election {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.election
}

// configOf translates an election for the machine.
func configOf(e desired.Election) ha.Config {
	c := ha.Config{
		Name: e.Group, VRID: e.VRID, Priority: e.Priority, Interval: e.Interval, Sends: e.Sends,
		Local: e.Local, Unicast: !e.Multicast, NoPreempt: e.NoPreempt, PreemptDelay: e.PreemptDelay, CatchUp: catchUp,
		Tracks: []ha.Track{{Name: trackReady}},
	}
	for _, v := range e.HaVips {
		if v.Attachment == "" {
			c.Addresses = append(c.Addresses, v.Addr)
		}
	}
	if !e.Multicast {
		for _, p := range e.Peers {
			c.Peers = append(c.Peers, ha.Peer{Addr: p.Addr, MinTTL: e.MinTTL, Priority: p.Priority})
		}
	}
	for _, t := range e.Tracks {
		weight := -t.Lower
		if t.Fault {
			weight = 0
		}
		c.Tracks = append(c.Tracks, ha.Track{Name: t.Name, Weight: weight})
	}
	return c
}

// addressesOf translates an election for the set.
func addressesOf(e desired.Election) []vip.Address {
	out := make([]vip.Address, 0, len(e.HaVips))
	for _, v := range e.HaVips {
		out = append(out, vip.Address{Name: v.Attachment, Netns: v.Netns, Link: v.Link, Addr: v.Addr})
	}
	return out
}

// start begins an election.
func (m *Manager) start(ctx context.Context, e desired.Election, index int) (*instance, error) {
	i := &instance{name: e.Group, since: time.Now(), index: index, election: e, done: make(chan struct{}), enis: map[string]sight{}, tracks: map[string]bool{}}
	var driver vip.Driver
	if m.opts.Driver != nil {
		driver = m.opts.Driver(e.Group, func() uint8 { return i.node.Status().Priority })
	}
	i.set = vip.NewSet(vip.Options{Group: e.Group, Host: m.opts.Host, Wire: m.opts.Wire, Driver: driver, Log: m.opts.Log})
	i.set.Replace(ctx, addressesOf(e))
	transport, err := m.opts.Transport(e)
	if err != nil {
		return nil, fmt.Errorf("group %s: %w", e.Group, err)
	}
	form := vrrp.RFC9568
	if e.PseudoHeader {
		form = vrrp.RFC5798
	}
	i.node, err = ha.NewNode(ha.NodeConfig{
		Instance: configOf(e), Checksum: form, Transport: transport, Mover: i.set, Log: m.opts.Log,
		Keys: m.opts.Keys, SendKey: m.opts.SendKey, AuthOptional: m.opts.AuthOptional, Freshness: freshness,
		Observers: []ha.Observer{func(_ context.Context, _ string, c ha.Change) {
			i.mu.Lock()
			i.since = time.Now()
			i.mu.Unlock()
			kick(m.tell)
			if m.opts.Notify != nil {
				m.opts.Notify(e.Group, c.To, i.node.Status().Priority)
			}
		}},
	})
	if err != nil {
		_ = transport.Close() // the reason is err
		return nil, fmt.Errorf("group %s: %w", e.Group, err)
	}
	// Its end is stop's, or its own failure's: not with ctx, because what it
	// has to do at its end needs the set to go on.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	i.cancel = cancel
	go i.run(running, m)
	return i, nil
}

// run ends when the context does, or when adverts cannot be received any more.
// The set outlives the node, which has it let go.
func (i *instance) run(ctx context.Context, m *Manager) {
	defer close(i.done)
	defer i.cancel()
	minding, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var set sync.WaitGroup
	set.Go(func() { _ = i.set.Run(minding) }) // it has no errors but the context's
	set.Go(func() {
		i.probe(minding, func(ctx context.Context, v desired.HaVip) error { return Ping(ctx, m.opts.Host, v) }, func() { kick(m.wake) })
	})
	i.err = i.node.Run(ctx)
	cancel()
	set.Wait()
}

// ended tells whether the instance has stopped by itself.
func (i *instance) ended() bool {
	select {
	case <-i.done:
		return true
	default:
		return false
	}
}

func (i *instance) stop() error {
	i.cancel()
	<-i.done
	return i.err
}

// change makes another election of the same identity the one in force, and tells
// whether it is another one.
func (i *instance) change(ctx context.Context, e desired.Election) (changed bool, err error) {
	before := i.current()
	if reflect.DeepEqual(before, e) {
		return false, nil
	}
	if c := configOf(e); !reflect.DeepEqual(configOf(before), c) {
		if err := i.node.Post(ctx, ha.Reconfigure{Config: c}); err != nil {
			return false, err
		}
	}
	i.set.Replace(ctx, addressesOf(e))
	i.mu.Lock()
	i.election = e
	i.mu.Unlock()
	return true, nil
}

func (i *instance) group() Group {
	e := i.current()
	g := Group{Name: e.Group, State: i.node.Status().State, Local: e.Local, Peers: e.Peers}
	for _, v := range e.HaVips {
		if v.Attachment == "" {
			g.HaVip = v.Addr
		} else {
			g.HaVips = append(g.HaVips, v)
		}
	}
	return g
}
