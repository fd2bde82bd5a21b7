package ha

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// wire is a link between transports in memory.
type wire struct {
	mu    sync.Mutex
	ports map[netip.Addr]*port
	log   []sentAdvert
	begin time.Time
}

type sentAdvert struct {
	at       time.Duration
	from     netip.Addr
	priority uint8
}

type port struct {
	wire   *wire
	addr   netip.Addr
	in     chan Datagram
	next   *Datagram
	wake   chan struct{}
	fail   chan error
	unplug bool
}

func newWire() *wire { return &wire{ports: map[netip.Addr]*port{}, begin: time.Now()} }

func (w *wire) port(a netip.Addr) *port {
	p := &port{wire: w, addr: a, in: make(chan Datagram, 100), wake: make(chan struct{}, 1), fail: make(chan error, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[a] = p
	return p
}

func (p *port) plug(in bool) {
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	p.unplug = !in
}

func (p *port) Send(dst netip.Addr, payload []byte) error {
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	p.wire.log = append(p.wire.log, sentAdvert{time.Since(p.wire.begin), p.addr, payload[2]})
	if to, ok := p.wire.ports[dst]; ok && !p.unplug && !to.unplug {
		to.in <- Datagram{Src: p.addr, Dst: dst, TTL: 255, Payload: slices.Clone(payload)}
	}
	return nil
}

func (p *port) Wait(limit time.Duration) error {
	var over <-chan time.Time
	if limit >= 0 {
		over = time.After(limit)
	}
	if p.next != nil {
		return nil
	}
	select {
	case d := <-p.in:
		p.next = &d
	case <-p.wake:
	case <-over:
	case err := <-p.fail:
		return err
	}
	return nil
}

func (p *port) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *port) Receive() (d Datagram, ok bool, err error) {
	if p.next != nil {
		d, p.next = *p.next, nil
		return d, true, nil
	}
	select {
	case d := <-p.in:
		return d, true, nil
	default:
		return Datagram{}, false, nil
	}
}

func (p *port) Close() error { return nil }

// sends returns when a node sent adverts of a priority since a moment.
func (w *wire) sends(from netip.Addr, priority uint8, since time.Duration) (at []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.log {
		if s.from == from && s.priority == priority && s.at >= since {
			at = append(at, s.at)
		}
	}
	return at
}

// recorder is a Mover that notes calls and does as hook says.
type recorder struct {
	mu    sync.Mutex
	calls []string
	hook  func(ctx context.Context, call string) error
}

func (r *recorder) note(ctx context.Context, call string) error {
	r.mu.Lock()
	r.calls = append(r.calls, call)
	hook := r.hook
	r.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, call)
}

func (r *recorder) Activate(ctx context.Context) error   { return r.note(ctx, "activate") }
func (r *recorder) Deactivate(ctx context.Context) error { return r.note(ctx, "deactivate") }
func (r *recorder) Announce(ctx context.Context) error   { return r.note(ctx, "announce") }

func (r *recorder) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.calls, " ")
}

type testNode struct {
	*Node
	port  *port
	mover *recorder
	stop  context.CancelFunc
	ended chan error
}

func startNode(t *testing.T, w *wire, local, peer netip.Addr, priority uint8, change func(*NodeConfig)) *testNode {
	t.Helper()
	n := &testNode{port: w.port(local), mover: &recorder{}, ended: make(chan error, 1)}
	cfg := NodeConfig{Instance: testConfig(), Transport: n.port, Mover: n.mover, Clock: func() time.Duration { return time.Since(w.begin) }}
	cfg.Instance.Local, cfg.Instance.Priority, cfg.Instance.Peers = local, priority, []Peer{{Addr: peer}}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Node, err = NewNode(cfg); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, n.stop = context.WithCancel(t.Context())
	go func() { n.ended <- n.Run(ctx) }()
	return n
}

func (n *testNode) end(t *testing.T) {
	t.Helper()
	n.stop()
	if err := <-n.ended; err != nil {
		t.Error(err)
	}
}

func (n *testNode) is(t *testing.T, want State) {
	t.Helper()
	if got := n.Status(); got.State != want {
		t.Errorf("%v is %v (%s), want %v", n.cfg.Instance.Local, got.State, got.Why, want)
	}
}

func TestNodesElectAndFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b := startNode(t, w, lower, higher, 200, nil), startNode(t, w, higher, lower, 100, nil)
		time.Sleep(time.Second)
		a.is(t, Active)
		b.is(t, Backup)
		if got := b.Status(); got.Active != lower || got.ActivePriority != 200 {
			t.Errorf("the backup believes that %v with %d is active", got.Active, got.ActivePriority)
		}
		if got := a.mover.said() + "; " + b.mover.said(); got != "deactivate activate; deactivate" {
			t.Errorf("moves %q", got)
		}
		a.port.plug(false)
		time.Sleep(361 * ms)
		b.is(t, Active)
		a.port.plug(true)
		time.Sleep(500 * ms)
		a.is(t, Active)
		b.is(t, Backup)
		if got := a.mover.said(); got != "deactivate activate announce announce" {
			t.Errorf("after the split the survivor did %q", got)
		}
		if got := b.mover.said(); got != "deactivate activate deactivate" {
			t.Errorf("after the split the other did %q", got)
		}
		stopped := time.Since(w.begin)
		a.end(t)
		time.Sleep(62 * ms)
		b.is(t, Active)
		if n := len(w.sends(lower, 0, stopped)); n != goodbyes {
			t.Errorf("%d adverts of priority 0, want %d", n, goodbyes)
		}
		if got := a.mover.said(); !strings.HasSuffix(got, "announce deactivate") {
			t.Errorf("at its end the active did %q", got)
		}
		b.end(t)
		if s := b.Stats(); s.Transitions != 5 || s.Received == 0 || s.Checksums["rfc9568"] != s.Received || s.SendErrors != 0 {
			t.Errorf("counters %+v", s)
		}
	})
}

// starved is a transport whose node wakes up late, always.
type starved struct{ *port }

func (s starved) Wait(limit time.Duration) error {
	time.Sleep(max(limit, 0) + 150*ms)
	return nil
}

func TestLateBackupReadsWhatHasArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a := startNode(t, w, lower, higher, 200, nil)
		time.Sleep(time.Second)
		b := startNode(t, w, higher, lower, 100, func(c *NodeConfig) { c.Transport = starved{w.ports[higher]} })
		time.Sleep(10 * time.Second)
		a.is(t, Active)
		b.is(t, Backup)
		if s := b.Stats(); s.Transitions != 1 || s.Received < 90 {
			t.Errorf("%d changes of role, %d adverts received", s.Transitions, s.Received)
		}
		a.end(t)
		b.end(t)
	})
}

// An advert must never wait for a mover, an observer or a log.
func TestAdvertsWaitForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		n := startNode(t, w, lower, higher, 200, func(c *NodeConfig) {
			c.Observers = []Observer{func(ctx context.Context, _ string, _ Change) { <-ctx.Done() }}
		})
		n.mover.mu.Lock()
		n.mover.hook = func(ctx context.Context, call string) error {
			if call == "activate" {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		n.mover.mu.Unlock()
		time.Sleep(5 * time.Second)
		at := w.sends(lower, 200, 0)
		if len(at) < 46 {
			t.Fatalf("%d adverts in 5 s", len(at))
		}
		for i := range at[1:] {
			if d := at[i+1] - at[i]; d != 100*ms {
				t.Errorf("%v between adverts %d and %d", d, i, i+1)
			}
		}
		// A new wish interrupts the old one.
		if err := n.Post(t.Context(), Drain{On: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := n.mover.said(); got != "deactivate activate deactivate" {
			t.Errorf("moves %q", got)
		}
		n.end(t)
	})
}

func TestMoverIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		n := startNode(t, w, lower, higher, 200, nil)
		fails := 3
		n.mover.mu.Lock()
		n.mover.hook = func(_ context.Context, call string) error {
			if call == "activate" && fails > 0 {
				fails--
				return errors.New("the cloud says no")
			}
			return nil
		}
		n.mover.mu.Unlock()
		time.Sleep(5 * time.Second)
		if got := n.mover.said(); got != "deactivate activate activate activate activate" {
			t.Errorf("moves %q", got)
		}
		if s := n.Stats(); s.MoverFailures != 3 {
			t.Errorf("%d failures counted", s.MoverFailures)
		}
		n.end(t)
	})
}

func TestReceiveFailureEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, newWire(), lower, higher, 200, nil)
		time.Sleep(time.Second)
		broken := errors.New("broken")
		n.port.fail <- broken
		if err := <-n.ended; !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		if got := n.mover.said(); got != "deactivate activate deactivate" {
			t.Errorf("moves %q", got)
		}
		if err := n.Post(t.Context(), Resume{}); !errors.Is(err, ErrStopped) {
			t.Errorf("Post after the end: %v", err)
		}
	})
}

func TestStaleAdvertIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		var mu sync.Mutex
		var asked int
		var freeze bool
		var extra time.Duration
		n := startNode(t, w, lower, higher, 200, func(c *NodeConfig) {
			c.Clock = func() time.Duration {
				mu.Lock()
				defer mu.Unlock()
				// Stopped for 10 s between the machine's step and the send.
				if asked++; freeze && asked == 2 {
					extra = 10 * time.Second
				}
				return time.Since(w.begin) + extra
			}
		})
		time.Sleep(time.Second)
		n.is(t, Active)
		mu.Lock()
		freeze, asked = true, 0
		mu.Unlock()
		// The next Clock call but one is send's: Post, take, Step, send.
		frozen := time.Since(w.begin)
		if err := n.Post(t.Context(), Reconfigure{func() Config { c := n.cfg.Instance; c.Priority = 150; return c }()}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.is(t, Backup)
		if at := append(w.sends(lower, 150, frozen), w.sends(lower, 200, frozen)...); len(at) > 0 {
			t.Errorf("adverts at %v", at)
		}
		if s := n.Stats(); s.StaleSends != 1 {
			t.Errorf("%d stale adverts counted", s.StaleSends)
		}
		n.end(t)
	})
}

func TestAuthenticatedPairDropsForgeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		keyed := func(form vrrp.Form) func(c *NodeConfig) {
			return func(c *NodeConfig) {
				c.Keys, c.SendKey, c.Checksum = vrrp.Keys{1: []byte("0123456789abcdef")}, 1, form
			}
		}
		a, b := startNode(t, w, lower, higher, 200, keyed(vrrp.RFC5798)), startNode(t, w, higher, lower, 100, keyed(vrrp.RFC9568))
		time.Sleep(time.Second)
		a.is(t, Active)
		b.is(t, Backup)
		forged, err := vrrp.Advertisement{VRID: 51, Priority: 0, Interval: 100 * ms, Addresses: testConfig().Addresses}.Append(nil, lower, higher, vrrp.RFC9568, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []Datagram{
			{lower, higher, 255, forged, 0}, {lower, higher, 254, forged, 0}, {netip.MustParseAddr("192.0.2.66"), higher, 255, forged, 0},
			{lower, higher, 255, forged[:9], 0}, {lower, vrrp.GroupIPv4, 255, forged, 0},
		} {
			b.port.in <- d
		}
		time.Sleep(90 * ms) // more than the skew
		b.is(t, Backup)
		s := b.Stats()
		for _, counter := range []string{"auth_missing", "ttl", "unknown_peer", "truncated", "multicast"} {
			if s.Discarded[counter] != 1 {
				t.Errorf("counter %s is %d, want 1", counter, s.Discarded[counter])
			}
		}
		if s.Authenticated == 0 || s.Authenticated != s.Received || s.Checksums["rfc5798"] != s.Received {
			t.Errorf("counters %+v", s)
		}
		a.end(t)
		b.end(t)
	})
}

// An even number of sends comes in pairs, an odd one apart from each other.
func TestNodeSendsPairs(t *testing.T) {
	for _, want := range []struct {
		interval                 time.Duration
		sends, instants, adverts int
	}{
		{100 * ms, 1, 1, 1}, {100 * ms, 3, 3, 3}, {100 * ms, 4, 2, 4}, {100 * ms, 6, 3, 6},
		{990 * ms, 4, 2, 4}, {time.Second, 4, 1, 4}, {time.Second, 3, 1, 3}, {time.Second, 0, 1, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			n := startNode(t, w, lower, higher, 200, func(c *NodeConfig) {
				c.Instance.Sends, c.Instance.Interval = want.sends, want.interval
			})
			time.Sleep(10 * want.interval)
			n.is(t, Active)
			from := n.Status().Since + want.interval/2
			time.Sleep(want.interval)
			var at []time.Duration
			for _, a := range w.sends(lower, 200, from) {
				if a < from+want.interval {
					at = append(at, a)
				}
			}
			if len(at) != want.adverts || len(slices.Compact(at)) != want.instants {
				t.Errorf("%d sends: in an interval of %v adverts at %v, want %d at %d times", want.sends, want.interval, at, want.adverts, want.instants)
			}
			n.end(t)
		})
	}
}

// In a multicast group everything goes to the group, the parting advert too.
func TestMulticastNodeSendsToTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		group := w.port(vrrp.GroupIPv4)
		n := startNode(t, w, lower, higher, 200, func(c *NodeConfig) { c.Instance.Peers = nil })
		time.Sleep(time.Second)
		n.is(t, Active)
		b, err := vrrp.Advertisement{VRID: 51, Priority: 250, Interval: 100 * ms, Addresses: testConfig().Addresses}.Append(nil, higher, vrrp.GroupIPv4, vrrp.RFC9568, nil)
		if err != nil {
			t.Fatal(err)
		}
		n.port.in <- Datagram{Src: higher, Dst: vrrp.GroupIPv4, TTL: 255, Payload: b}
		synctest.Wait()
		n.is(t, Backup)
		if sent, got := len(w.sends(lower, 200, 0)), len(group.in); sent != got || sent < 8 {
			t.Errorf("%d adverts sent, %d came to the group", sent, got)
		}
		n.end(t)
	})
}

func TestConfigRefuses(t *testing.T) {
	zoned := netip.MustParseAddr("fe80::1%eth0")
	for says, change := range map[string]func(*Config){
		"VRID 0":            func(c *Config) { c.VRID = 0 },
		"interval 15ms":     func(c *Config) { c.Interval = 15 * ms },
		"without a zone":    func(c *Config) { c.Local = zoned },
		"0 addresses":       func(c *Config) { c.Addresses = nil },
		"one instance per":  func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1")} },
		"the node itself":   func(c *Config) { c.Peers = []Peer{{Addr: c.Local}} },
		"there twice":       func(c *Config) { c.Peers = []Peer{{Addr: lower}, {Addr: lower}} },
		"is empty":          func(c *Config) { c.Peers = []Peer{{Addr: lower, MinTTL: 9, MaxTTL: 8}} },
		"unicast address":   func(c *Config) { c.Peers = []Peer{{Addr: vrrp.GroupIPv4}} },
		"name of its own":   func(c *Config) { c.Tracks = []Track{{Name: "a"}, {Name: "a"}} },
		"weight 254":        func(c *Config) { c.Tracks = []Track{{Name: "a", Weight: 254}} },
		"at most 10 sends":  func(c *Config) { c.Sends = 11 },
		"missing adverts -": func(c *Config) { c.DownAdverts = -1 },
	} {
		cfg := testConfig()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if _, err := NewMachine(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one that says %q", err, says)
		}
	}
}

func TestPostRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, newWire(), lower, higher, 200, nil)
		multicast, other, invalid := n.cfg.Instance, n.cfg.Instance, n.cfg.Instance
		multicast.Peers, other.VRID, invalid.Interval = nil, 52, 0
		for _, e := range []Event{Startup{}, Shutdown{}, Tick{}, Advert{}, Reconfigure{multicast}, Reconfigure{other}, Reconfigure{invalid}} {
			if err := n.Post(t.Context(), e); err == nil {
				t.Errorf("%#v was taken", e)
			}
		}
		time.Sleep(time.Second)
		n.is(t, Active)
		n.end(t)
		if err := n.Run(t.Context()); err == nil {
			t.Error("Run ran twice")
		}
	})
}

func TestDatagram4(t *testing.T) {
	good := append([]byte{
		0x46, 0, 0, 26, 0, 0, 0, 0, 254, 112, 0, 0, 192, 0, 2, 9, 224, 0, 0, 18, 1, 1, 1, 1, // with an option
	}, 0x31, 0x33, 0xff) // the last byte is beyond the packet
	d, ok := datagram4(good)
	if !ok || d.Src != lower || d.Dst != vrrp.GroupIPv4 || d.TTL != 254 || string(d.Payload) != "\x31\x33" {
		t.Errorf("%+v %v", d, ok)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"version 6":        func(b []byte) []byte { b[0] = 0x66; return b },
		"header too long":  func(b []byte) []byte { b[0] = 0x4f; return b },
		"header too short": func(b []byte) []byte { b[0] = 0x44; return b },
		"cut short":        func(b []byte) []byte { return b[:25] },
		"no header":        func(b []byte) []byte { return b[:19] },
	} {
		if _, ok := datagram4(change(slices.Clone(good))); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}
