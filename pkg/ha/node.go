package ha

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// Mover holds the addresses of an instance. Each call is idempotent and brings
// the whole state about. Calls never overlap; the context of one that a newer
// wish has overtaken is canceled. Errors are retried.
type Mover interface {
	// Activate takes the addresses and announces them once address and link
	// are ready.
	Activate(ctx context.Context) error
	// Deactivate silences the addresses, which must take milliseconds and ask
	// nobody, and then lets go of them. It is also called at the start, when
	// a predecessor may have left them behind.
	Deactivate(ctx context.Context) error
	// Announce announces addresses that are held: another had claimed them.
	Announce(ctx context.Context) error
}

// Transport carries adverts of one instance. All methods but Wake are called from
// one goroutine.
type Transport interface {
	// Wait returns when a packet may have arrived, when the time is over, or
	// after Wake; sooner does no harm. Below 0 there is no limit.
	Wait(limit time.Duration) error
	// Wake ends the Wait that is under way, or else the next one. It may be
	// called from any goroutine, and after Close.
	Wake()
	// Receive returns the first of the packets that have arrived; ok is false
	// if there is none. It does not wait. The payload is valid until the next
	// call.
	Receive() (d Datagram, ok bool, err error)
	// Send sends without waiting: a full buffer is an error.
	Send(dst netip.Addr, payload []byte) error
	Close() error
}

// Observer is told of every change of state, in order, from one goroutine. It
// must return when its context ends. Changes are dropped, and counted, when it
// falls behind by more than 64.
type Observer func(ctx context.Context, instance string, c Change)

// NodeConfig describes a Node.
type NodeConfig struct {
	Instance Config
	// Checksum is the form that is sent; either is received.
	Checksum vrrp.Form
	// Keys, if any, authenticate adverts; SendKey is the id of the one used to
	// send. With AuthOptional, adverts without a trailer are accepted, too.
	Keys         vrrp.Keys
	SendKey      uint8
	AuthOptional bool
	// Freshness: see vrrp.VerifierConfig.
	Freshness time.Duration

	Transport Transport // closed by Run
	Mover     Mover
	Observers []Observer
	Log       *slog.Logger // nil discards
	// Clock is the time since any fixed moment; nil is the kernel's
	// CLOCK_BOOTTIME, which goes on during suspend and is never stepped.
	Clock func() time.Duration
}

// Node runs one instance: a machine, its sockets and its timers. All methods
// are safe for concurrent use.
type Node struct {
	cfg      NodeConfig
	machine  *Machine // Run's goroutine only
	instance Config   // Run's goroutine only
	sealer   *vrrp.Sealer
	verifier *vrrp.Verifier
	group    netip.Addr
	buf      []byte

	events   chan posted
	mover    *movement
	reporter *reporter
	stats    counters
	status   atomic.Pointer[Status]
	running  atomic.Bool
	done     chan struct{}
}

type posted struct {
	event Event
	taken chan struct{}
}

// ErrStopped is returned by calls that need a Node whose Run has ended.
var ErrStopped = errors.New("ha: the instance has stopped")

// How long Run waits for the mover to let go, and for observers, at its end.
const goodbye = 5 * time.Second

// goodbyes is how many times the advert of one who stops is sent: the RFC has
// one (RFC9568-6.4.3-8), but no other follows it, and without it the others wait for
// the down interval.
const goodbyes = 3

// maxBehind is how many packets are taken in one go before timers are looked
// at again: more than receiveBuffer holds, so that none which had arrived in time is
// overlooked, and a flood does not keep a backup from taking over.
const maxBehind = 4096

// NewNode returns a Node that Run starts.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Transport == nil || cfg.Mover == nil {
		return nil, fmt.Errorf("ha: instance %q: transport and mover are required", cfg.Instance.Name)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = boottime
	}
	m, err := NewMachine(cfg.Instance)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, machine: m, instance: cfg.Instance, group: vrrp.GroupIPv6,
		events: make(chan posted, 16), done: make(chan struct{}),
	}
	if cfg.Instance.Local.Is4() {
		n.group = vrrp.GroupIPv4
	}
	if len(cfg.Keys) > 0 {
		if n.sealer, err = vrrp.NewSealer(cfg.Keys, cfg.SendKey, nil); err != nil {
			return nil, fmt.Errorf("ha: instance %q: %w", cfg.Instance.Name, err)
		}
		n.verifier, err = vrrp.NewVerifier(vrrp.VerifierConfig{Keys: cfg.Keys, Optional: cfg.AuthOptional, Freshness: cfg.Freshness})
		if err != nil {
			return nil, fmt.Errorf("ha: instance %q: %w", cfg.Instance.Name, err)
		}
	}
	n.stats.init()
	log := cfg.Log.With("instance", cfg.Instance.Name, "vrid", cfg.Instance.VRID)
	n.reporter = newReporter(cfg.Instance.Name, log, cfg.Observers, &n.stats)
	n.mover = newMovement(cfg.Mover, log, &n.stats)
	n.publish()
	return n, nil
}

// boottime is CLOCK_BOOTTIME.
func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// It has been there since Linux 2.6.39.
		return time.Since(processStart)
	}
	return time.Duration(ts.Nano())
}

var processStart = time.Now()

// String names the instance.
func (n *Node) String() string { return "ha " + n.cfg.Instance.Name }

// Run takes part in the election until ctx ends. Then an active node tells its
// peers, the mover lets go of the addresses, and Run returns nil. Run may be
// called once.
func (n *Node) Run(ctx context.Context) error {
	if !n.running.CompareAndSwap(false, true) {
		return fmt.Errorf("ha: instance %q: Run was called twice", n.cfg.Instance.Name)
	}
	go n.mover.run()
	go n.reporter.run()

	err := n.loop(ctx)
	if err != nil {
		err = fmt.Errorf("cannot receive adverts: %w", err)
	}

	n.take(Shutdown{})
	close(n.done)
	err = errors.Join(err, n.cfg.Transport.Close())
	n.mover.finish(goodbye)
	n.reporter.finish(goodbye)
	if err != nil {
		return fmt.Errorf("ha: instance %q: %w", n.cfg.Instance.Name, err)
	}
	return nil
}

// loop is the instance's task. Nothing in it waits for anything but packets,
// events and time: what may be slow happens in the mover's and the reporter's
// goroutines.
func (n *Node) loop(ctx context.Context) error {
	defer context.AfterFunc(ctx, n.cfg.Transport.Wake)()
	n.take(Startup{})
	for {
		if err := n.cfg.Transport.Wait(n.left()); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		// What has arrived by now came before a deadline that is over.
		if err := n.receive(); err != nil {
			return err
		}
		n.posted()
		if n.left() == 0 {
			n.take(Tick{})
		}
	}
}

// left returns the time to the deadline, or less than 0 if there is none.
func (n *Node) left() time.Duration {
	at, ok := n.machine.Deadline()
	if !ok {
		return -1
	}
	return max(at-n.cfg.Clock(), 0)
}

// receive takes the packets that have arrived.
func (n *Node) receive() error {
	for range maxBehind {
		d, ok, err := n.cfg.Transport.Receive()
		if err != nil || !ok {
			return err
		}
		n.packet(d)
	}
	return nil
}

// posted takes the events that have been posted.
func (n *Node) posted() {
	for {
		select {
		case p := <-n.events:
			n.take(p.event)
			close(p.taken)
		default:
			return
		}
	}
}

func (n *Node) packet(d Datagram) {
	a, p, err := receive(&n.instance, n.verifier, d)
	if err != nil {
		var reason vrrp.Reason
		if errors.As(err, &reason) {
			n.stats.discard(reason)
		}
		return
	}
	n.stats.accept(d.Src, p)
	n.take(a)
}

// take lets the machine step and does what it says.
func (n *Node) take(e Event) {
	now := n.cfg.Clock()
	actions := n.machine.Step(now, e)
	n.instance = n.machine.cfg // Reconfigure may have changed it
	n.publish()                // before observers are told, who ask for it
	for _, a := range actions {
		switch a := a.(type) {
		case Send:
			n.send(now, a)
		case Activate:
			n.mover.want(true)
		case Deactivate:
			n.mover.want(false)
		case Announce:
			n.mover.again()
		case Change:
			n.stats.transitions.Add(1)
			n.reporter.tell(a)
		case Note:
			n.reporter.tell(a)
		}
	}
}

// send sends an advert, unless the process was stopped after the machine
// decided: the machine finds out at its next step, and steps down.
func (n *Node) send(decided time.Duration, s Send) {
	cfg := &n.instance
	if n.cfg.Clock()-decided >= time.Duration(cfg.downAdverts())*cfg.Interval && s.Priority != vrrp.PriorityStop {
		n.stats.stale.Add(1)
		return
	}
	times := cfg.copies()
	if s.Priority == vrrp.PriorityStop {
		times = goodbyes
	}
	for range times {
		n.sendToAll(s)
	}
}

func (n *Node) sendToAll(s Send) {
	if n.instance.multicast() {
		n.sendTo(n.group, s.Priority)
		return
	}
	for _, p := range n.instance.Peers {
		if !s.To.IsValid() || s.To == p.Addr {
			n.sendTo(p.Addr, s.Priority)
		}
	}
}

func (n *Node) sendTo(dst netip.Addr, priority uint8) {
	a := vrrp.Advertisement{VRID: n.instance.VRID, Priority: priority, Interval: n.instance.Interval, Addresses: n.instance.Addresses}
	b, err := a.Append(n.buf[:0], n.instance.Local, dst, n.cfg.Checksum, n.sealer)
	n.buf = b
	if err == nil {
		err = n.cfg.Transport.Send(dst, b)
	}
	n.stats.send(err)
	if err != nil {
		n.reporter.tell(sendFailed{dst, err})
		return
	}
	n.reporter.sent(dst)
}

// Post gives an event to the instance and waits until it has acted on it.
// Startup, Shutdown, Tick and Advert are the node's own and are refused.
func (n *Node) Post(ctx context.Context, e Event) error {
	switch e := e.(type) {
	case Startup, Shutdown, Tick, Advert:
		return fmt.Errorf("ha: instance %q: %T is no event to post", n.cfg.Instance.Name, e)
	case Reconfigure:
		if err := e.Config.Validate(); err != nil {
			return err
		}
		if old := n.cfg.Instance; e.Config.VRID != old.VRID || e.Config.Local != old.Local || e.Config.multicast() != old.multicast() {
			return fmt.Errorf("ha: instance %q: VRID, local address and the choice of unicast or multicast cannot change: stop it and start another", old.Name)
		}
	}
	p := posted{e, make(chan struct{})}
	select {
	case n.events <- p:
		n.cfg.Transport.Wake()
	case <-n.done:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.taken:
		return nil
	case <-n.done:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) publish() {
	s := n.machine.Status()
	n.status.Store(&s)
}

// Status returns the state after the last event. Times are on NodeConfig.Clock.
func (n *Node) Status() Status { return *n.status.Load() }

// Stats returns the counters so far.
func (n *Node) Stats() Stats { return n.stats.snapshot() }
