package ha

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// reporter logs and tells observers from a goroutine of its own: a full pipe at
// the other end of a log must not keep an advert from being sent.
type reporter struct {
	instance  string
	log       *slog.Logger
	observers []Observer
	stats     *counters
	queue     chan any // Change, Note, sendFailed, sendWorks
	stop      chan struct{}
	done      chan struct{}
	ctx       context.Context // bounds observers, which outlive Run's context to hear of the end
	abort     context.CancelFunc
	failing   map[netip.Addr]bool // the loop's
}

type (
	sendFailed struct {
		to  netip.Addr
		err error
	}
	sendWorks struct{ to netip.Addr }
)

func newReporter(instance string, log *slog.Logger, observers []Observer, stats *counters) *reporter {
	ctx, abort := context.WithCancel(context.Background())
	return &reporter{
		instance: instance, log: log, observers: observers, stats: stats, ctx: ctx, abort: abort, failing: map[netip.Addr]bool{},
		queue: make(chan any, 64), stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// tell does not wait. Of failures to send to one address only the first is told.
func (r *reporter) tell(what any) {
	if f, ok := what.(sendFailed); ok {
		if r.failing[f.to] {
			return
		}
		r.failing[f.to] = true
	}
	select {
	case r.queue <- what:
	default:
		r.stats.unreported.Add(1)
	}
}

// sent tells of the recovery of sending.
func (r *reporter) sent(to netip.Addr) {
	if r.failing[to] {
		delete(r.failing, to)
		r.tell(sendWorks{to})
	}
}

func (r *reporter) run() {
	defer close(r.done)
	for {
		select {
		case what := <-r.queue:
			r.report(what)
		case <-r.stop:
			for {
				select {
				case what := <-r.queue:
					r.report(what)
				default:
					return
				}
			}
		}
	}
}

func (r *reporter) report(what any) {
	switch w := what.(type) {
	case Change:
		r.log.Info("role changed", "from", w.From.String(), "to", w.To.String(), "why", w.Why)
		for _, o := range r.observers {
			o(r.ctx, r.instance, w)
		}
	case Note:
		r.log.Warn(w.Text)
	case sendFailed:
		r.log.Error("cannot send adverts: check the interface and the route to the peer", "to", w.to, "err", w.err)
	case sendWorks:
		r.log.Info("adverts are sent again", "to", w.to)
	}
}

// finish lets what is queued be told, for at most d, and ends run.
func (r *reporter) finish(d time.Duration) {
	close(r.stop)
	timer := time.AfterFunc(d, r.abort)
	<-r.done
	timer.Stop()
	r.abort()
}

// Stats counts what an instance did since its start.
type Stats struct {
	Sent, SendErrors uint64
	// StaleSends were not sent because the process had been stopped meanwhile.
	StaleSends    uint64
	Received      uint64            // accepted
	Authenticated uint64            // of them
	Checksums     map[string]uint64 // accepted over IPv4, by form
	Discarded     map[string]uint64 // by vrrp.Reason
	Transitions   uint64
	MoverFailures uint64
	Unreported    uint64 // log lines and changes that were dropped
}

type counters struct {
	sent, sendErrors, stale, received, authenticated atomic.Uint64
	transitions, moverFailures, unreported           atomic.Uint64
	forms                                            [2]atomic.Uint64
	discarded                                        map[vrrp.Reason]*atomic.Uint64 // fixed after init
}

func (c *counters) init() {
	c.discarded = map[vrrp.Reason]*atomic.Uint64{}
	for _, r := range vrrp.Reasons() {
		c.discarded[r] = new(atomic.Uint64)
	}
}

func (c *counters) send(err error) {
	if err != nil {
		c.sendErrors.Add(1)
		return
	}
	c.sent.Add(1)
}

func (c *counters) accept(src netip.Addr, p vrrp.Packet) {
	c.received.Add(1)
	if p.Authenticated {
		c.authenticated.Add(1)
	}
	if src.Is4() {
		c.forms[p.Form].Add(1)
	}
}

func (c *counters) discard(r vrrp.Reason) { c.discarded[r].Add(1) }

func (c *counters) snapshot() Stats {
	s := Stats{
		Sent: c.sent.Load(), SendErrors: c.sendErrors.Load(), StaleSends: c.stale.Load(),
		Received: c.received.Load(), Authenticated: c.authenticated.Load(),
		Transitions: c.transitions.Load(), MoverFailures: c.moverFailures.Load(), Unreported: c.unreported.Load(),
		Checksums: map[string]uint64{}, Discarded: map[string]uint64{},
	}
	for _, f := range []vrrp.Form{vrrp.RFC9568, vrrp.RFC5798} {
		s.Checksums[f.String()] = c.forms[f].Load()
	}
	for r, n := range c.discarded {
		s.Discarded[r.Counter()] = n.Load()
	}
	return s
}
