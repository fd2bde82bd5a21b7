package election

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// line is a transport on which a test hears what is sent, and says what is
// received.
type line struct {
	in   chan ha.Datagram
	next *ha.Datagram
	wake chan struct{}

	mu   sync.Mutex
	sent []vrrp.Packet
}

func newLine() *line { return &line{in: make(chan ha.Datagram, 16), wake: make(chan struct{}, 1)} }

func (l *line) Wait(limit time.Duration) error {
	var over <-chan time.Time
	if limit >= 0 {
		over = time.After(limit)
	}
	select {
	case d := <-l.in:
		l.next = &d
	case <-l.wake:
	case <-over:
	}
	return nil
}

func (l *line) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *line) Receive() (ha.Datagram, bool, error) {
	d := l.next
	if l.next = nil; d == nil {
		return ha.Datagram{}, false, nil
	}
	return *d, true, nil
}

func (l *line) Send(dst netip.Addr, payload []byte) error {
	p, err := vrrp.Parse(slices.Clone(payload), local, dst, nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, p)
	return nil
}

func (l *line) Close() error { return nil }

// last returns the priority that was advertised last.
func (l *line) last() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) == 0 {
		return -1
	}
	return int(l.sent[len(l.sent)-1].Priority)
}

type silence struct{}

func (silence) Announce(context.Context, string, kernel.Link, netip.Addr) error { return nil }
func (silence) Ask(context.Context, string, kernel.Link, netip.Addr) (string, error) {
	return "", nil
}
func (silence) Prepare(context.Context, string, kernel.Link) error { return nil }

func (silence) Retain(map[string]bool) {}

var (
	local = netip.MustParseAddr("192.168.4.4")
	peer  = netip.MustParseAddr("192.168.4.5")
	outer = netip.MustParseAddr("192.168.4.100")
	inner = netip.MustParseAddr("172.16.101.100")
)

type rig struct {
	*Manager
	t      *testing.T
	kernel *kerneltest.Fake
	log    *safeBuffer
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	health Health
	lines  []*line
	roles  []string
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newRig is a machine with an underlay and one attachment. start runs it.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, kernel: kerneltest.New(), log: &safeBuffer{}, done: make(chan error, 1), health: Health{Ready: true, InSync: true, Alive: time.Now()}}
	t.Cleanup(func() { _ = r.kernel.Close() })
	r.plug("", "eth0", "02:00:00:00:04:04")
	r.put("", "eth0", netip.PrefixFrom(local, 24), 0)
	if err := r.kernel.CreateNamespace(t.Context(), "vpx-red"); err != nil {
		t.Fatal(err)
	}
	r.plug("vpx-red", "eth1", "02:00:00:00:65:0a")
	r.Manager = New(Options{
		Host: r.kernel, Wire: silence{}, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Health: func() Health {
			r.mu.Lock()
			defer r.mu.Unlock()
			h := r.health
			if h.InSync {
				h.Alive = time.Now()
			}
			return h
		},
		Transport: func(desired.Election) (ha.Transport, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			l := newLine()
			r.lines = append(r.lines, l)
			return l, nil
		},
		Notify: func(_ string, s ha.State, _ uint8) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.roles = append(r.roles, s.String())
		},
	})
	return r
}

func (r *rig) start(list ...desired.Election) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.SetElections(list)
	go func() { r.done <- r.Run(ctx) }()
	r.t.Cleanup(func() { r.stop() })
}

func (r *rig) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	if err := <-r.done; err != nil {
		r.t.Error(err)
	}
}

func (r *rig) handle(netns string) kernel.Handle {
	r.t.Helper()
	h, err := r.kernel.In(netns)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) plug(netns, name, mac string) {
	r.t.Helper()
	r.kernel.Plug(netns, kernel.Link{Name: name, MAC: mac})
	r.set(netns, name, true)
}

func (r *rig) set(netns, name string, up bool) {
	r.t.Helper()
	l, err := r.handle(netns).LinkByName(r.t.Context(), name)
	if err == nil {
		err = r.handle(netns).SetLinkUp(r.t.Context(), l.Index, up)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) put(netns, link string, p netip.Prefix, protocol uint8) {
	r.t.Helper()
	l, err := r.handle(netns).LinkByName(r.t.Context(), link)
	if err == nil {
		err = r.handle(netns).AddAddress(r.t.Context(), kernel.Address{Link: l.Index, Prefix: p, Protocol: protocol})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// held lists the HaVips that the kernel holds.
func (r *rig) held() (out []string) {
	r.t.Helper()
	for _, netns := range []string{"", "vpx-red"} {
		all, err := r.handle(netns).Addresses(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		for _, a := range all {
			if a.Protocol == desired.HaVipProtocol {
				out = append(out, a.Prefix.Addr().String())
			}
		}
	}
	return out
}

func (r *rig) line() *line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines[len(r.lines)-1]
}

func (r *rig) opened() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lines)
}

func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 10 s; holds %v; log:\n%s", what, r.held(), r.log)
		}
	}
}

func (r *rig) active() bool { return len(r.held()) == 2 }
func (r *rig) idle() bool   { return len(r.held()) == 0 }

// election is that of the machine, and of a peer that is silent.
func election() desired.Election {
	return desired.Election{
		Group: "g", VRID: 51, Priority: 100, Interval: 20 * time.Millisecond, Sends: 1, MinTTL: 255, Link: "eth0", Local: local,
		Peers:  []desired.Elector{{Node: "second", Addr: peer, Priority: 100}},
		Tracks: []desired.Track{{Name: "eni", Lower: 253}, {Name: "underlay", Fault: true}, {Name: "sync", Lower: 253}, {Name: "probe", Lower: 253}},
		HaVips: []desired.HaVip{{Link: "eth0", Addr: outer}, {Attachment: "red", Netns: "vpx-red", Link: "eth1", Addr: inner}},
	}
}

func TestElectsAndResigns(t *testing.T) {
	r := newRig(t)
	r.put("", "eth0", netip.PrefixFrom(netip.MustParseAddr("192.168.4.150"), 32), desired.HaVipProtocol) // a dead agent's
	r.start(election())
	r.eventually("active", func() bool { return slices.Equal(r.held(), []string{outer.String(), inner.String()}) })
	r.eventually("advertises", func() bool { return r.line().last() == 100 })
	g := r.Groups()
	if len(g) != 1 || !g[0].Active() || g[0].HaVip != outer || len(g[0].HaVips) != 1 || g[0].HaVips[0].Attachment != "red" {
		t.Errorf("groups %+v", g)
	}
	if s := r.Status(); len(s) != 1 || s[0].ActiveNode("self") != "self" || s[0].Since.IsZero() {
		t.Errorf("status %+v", s)
	}
	r.stop()
	if !r.idle() || r.line().last() != 0 {
		t.Errorf("after the end: holds %v, advertised %d last", r.held(), r.line().last())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.roles, []string{"Fault", "Backup", "Active", "Initialize"}) {
		t.Errorf("told of %v", r.roles)
	}
}

func TestNotElectableBeforeTheKernelIsMade(t *testing.T) {
	r := newRig(t)
	r.health.Ready = false
	r.start(election())
	r.eventually("started", func() bool { return strings.Contains(r.log.String(), "ready is down") })
	time.Sleep(200 * time.Millisecond) // more than twice the down interval
	if !r.idle() {
		t.Errorf("holds %v", r.held())
	}
	r.mu.Lock()
	r.health.Ready = true
	r.mu.Unlock()
	r.eventually("active", r.active)
}

func TestChangesDoNotFlap(t *testing.T) {
	r := newRig(t)
	e := election()
	r.start(e)
	r.eventually("active", r.active)
	for i := range 20 {
		e.Priority, e.Sends = uint8(90+i), 1+i%3
		r.SetElections([]desired.Election{e})
		time.Sleep(5 * time.Millisecond)
	}
	r.eventually("the last priority", func() bool { return r.line().last() == 109 })
	if s := r.Status()[0]; s.Stats.Transitions != 3 || r.opened() != 1 {
		t.Errorf("%d transitions, %d sockets", s.Stats.Transitions, r.opened())
	}
	// An attachment goes, and its HaVip with it.
	e.HaVips = e.HaVips[:1]
	r.SetElections([]desired.Election{e})
	r.eventually("one HaVip", func() bool { return slices.Equal(r.held(), []string{outer.String()}) })
	r.SetElections(nil)
	r.eventually("nothing", r.idle)
	if len(r.Status()) != 0 {
		t.Error("still in the election")
	}
}

func TestTracks(t *testing.T) {
	r := newRig(t)
	e := election()
	r.start(e)
	r.eventually("active", r.active)

	r.set("vpx-red", "eth1", false)
	r.Hint(kernel.HintLinks)
	r.eventually("lowered by its ENI", func() bool { return r.line().last() == 1 })
	r.set("vpx-red", "eth1", true)
	r.Hint(kernel.HintLinks)
	r.eventually("raised", func() bool { return r.line().last() == 100 })

	e.Missing = []string{"blue"} // on its way
	r.SetElections([]desired.Election{e})
	time.Sleep(100 * time.Millisecond)
	if p := r.line().last(); p != 100 {
		t.Errorf("an attachment that has just come lowers the priority to %d", p)
	}

	r.set("", "eth0", false)
	r.Hint(kernel.HintLinks)
	r.eventually("fault of the underlay", r.idle)
	r.set("", "eth0", true)
	r.Hint(kernel.HintLinks)
	r.eventually("active again", r.active)

	e.Cordoned = true
	r.SetElections([]desired.Election{e})
	r.eventually("drained", r.idle)
	e.Cordoned = false
	r.SetElections([]desired.Election{e})
	r.eventually("active after all", r.active)
}

func TestSync(t *testing.T) {
	i := &instance{}
	now := time.Now()
	if !i.inSync(Health{InSync: true, Alive: now}) || !i.inSync(Health{Alive: now}) {
		t.Error("a change that is under way counts")
	}
	i.outSince = now.Add(-outOfSync)
	if i.inSync(Health{Alive: now}) {
		t.Error("a difference that stays does not count")
	}
	if !i.inSync(Health{InSync: true, Alive: now}) || !i.outSince.IsZero() {
		t.Error("in sync again, and not so")
	}
	if i.inSync(Health{InSync: true, Alive: now.Add(-2 * wedged)}) {
		t.Error("a loop that is wedged is in sync")
	}
}

// A link that was made anew needs another socket; one that has lost the
// underlay's address for a while does not.
func TestUnderlayComesAndGoes(t *testing.T) {
	r := newRig(t)
	e := election()
	r.start(e)
	r.eventually("active", r.active)
	r.plug("", "eth9", "02:00:00:00:04:09") // so that the next eth0 has another index
	away := onLink(e, "")
	r.SetElections([]desired.Election{away})
	time.Sleep(50 * time.Millisecond)
	if r.opened() != 1 {
		t.Error("an election whose underlay is unknown was left")
	}
	l, err := r.handle("").LinkByName(t.Context(), "eth0")
	if err == nil {
		err = r.handle("").MoveLink(t.Context(), l.Index, "vpx-red")
	}
	if err != nil {
		t.Fatal(err)
	}
	r.plug("", "eth0", "02:00:00:00:04:04")
	r.put("", "eth0", netip.PrefixFrom(local, 24), 0)
	r.SetElections([]desired.Election{e})
	r.Hint(kernel.HintLinks)
	r.eventually("another socket", func() bool { return r.opened() == 2 })
	r.eventually("active again", r.active)
}

func TestYield(t *testing.T) {
	r := newRig(t)
	r.start(election())
	r.eventually("active", r.active)
	if err := r.Yield(t.Context(), "nope"); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v", err)
	}
	if err := r.Yield(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	if p := r.line().last(); p != 0 {
		t.Errorf("advertised %d, not 0", p)
	}
	if err := r.Yield(t.Context(), "g"); !errors.Is(err, ErrNotActive) {
		t.Errorf("error %v", err)
	}
	r.eventually("active again, nobody else is", r.active)
}

func TestWithoutUnderlay(t *testing.T) {
	r := newRig(t)
	r.start(onLink(election(), ""))
	r.eventually("a reason", func() bool {
		s := r.Status()
		return len(s) == 1 && strings.Contains(s[0].Problem, "no interface has the underlay address")
	})
	r.SetElections([]desired.Election{election()})
	r.eventually("active", r.active)
}
