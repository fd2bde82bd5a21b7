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

// Transport carries adverts of one instance.
type Transport interface {
	// Receive waits for a packet. The payload is valid until the next call.
	// Close ends it with an error.
	Receive() (Datagram, error)
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

	packets  chan Datagram
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

// maxBehind is how many packets are taken in one go before timers are looked
// at again.
const maxBehind = 64

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
		packets: make(chan Datagram, maxBehind), events: make(chan posted, 16), done: make(chan struct{}),
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
	readCtx, stopReading := context.WithCancel(ctx)
	defer stopReading()
	var readErr error
	received := make(chan struct{})
	go func() {
		defer close(received)
		readErr = n.read(readCtx)
	}()
	go n.mover.run()
	go n.reporter.run()

	n.loop(ctx, received)
	failed := ctx.Err() == nil // only a failure to receive ends the loop otherwise

	n.take(Shutdown{})
	close(n.done)
	stopReading()
	err := n.cfg.Transport.Close()
	<-received
	if failed {
		err = errors.Join(fmt.Errorf("cannot receive adverts: %w", readErr), err)
	}
	n.mover.finish(goodbye)
	n.reporter.finish(goodbye)
	if err != nil {
		return fmt.Errorf("ha: instance %q: %w", n.cfg.Instance.Name, err)
	}
	return nil
}

// loop is the instance's task. Nothing in it waits for anything but events and
// time: what may be slow happens in the mover's and the reporter's goroutines.
func (n *Node) loop(ctx context.Context, received <-chan struct{}) {
	n.take(Startup{})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if at, ok := n.machine.Deadline(); ok {
			timer.Reset(max(at-n.cfg.Clock(), 0))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-received:
			return
		case d := <-n.packets:
			n.packet(d)
		case p := <-n.events:
			n.take(p.event)
			close(p.taken)
		case <-timer.C:
			n.backlog() // what has arrived by now came before the deadline
			n.take(Tick{})
		}
	}
}

func (n *Node) backlog() {
	for range maxBehind {
		select {
		case d := <-n.packets:
			n.packet(d)
		default:
			return
		}
	}
}

// read hands packets to the loop; when that is behind, they wait in the socket.
func (n *Node) read(ctx context.Context) error {
	for {
		d, err := n.cfg.Transport.Receive()
		if err != nil {
			return err
		}
		d.Payload = append([]byte(nil), d.Payload...)
		select {
		case n.packets <- d:
		case <-ctx.Done():
			return ctx.Err()
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
	n.publish()
}

// send sends an advert, unless the process was stopped after the machine
// decided: the machine finds out at its next step, and steps down.
func (n *Node) send(decided time.Duration, s Send) {
	cfg := &n.instance
	if n.cfg.Clock()-decided >= time.Duration(cfg.downAdverts())*cfg.Interval && s.Priority != vrrp.PriorityStop {
		n.stats.stale.Add(1)
		return
	}
	if cfg.multicast() {
		n.sendTo(n.group, s.Priority)
		return
	}
	for _, p := range cfg.Peers {
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
