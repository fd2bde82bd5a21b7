package main

import (
	"context"
	"fmt"
	"time"
)

// fault is a row of the table: something that goes wrong, and what must hold.
type fault struct {
	area, name string
	// on is the machine where typed and mend are typed, as shell lines.
	on    string
	typed []string
	mend  []string
	// do and undo are for what a shell cannot do.
	do, undo func(context.Context, *platform) error
	// lasts is the time between the injection and its end; 0 is usual.
	lasts time.Duration
	holds promise
}

// usual is how long a fault lasts that says nothing else: longer than what is
// repaired by itself may take.
const usual = 1500 * time.Millisecond

// promise is what must hold beside the invariants, which always must: no
// answer from another tenant's server, no packet on an ENI with a source that
// is not its own, no HaVip with two holders for long, and everything in place
// again soon after the fault is over.
type promise struct {
	// stall is the longest time for which pods may go unanswered; 0 means
	// that nobody notices.
	stall time.Duration
	// refused is set if pods may go unanswered for as long as the fault lasts.
	refused bool
	// spared are tenants that notice nothing even so.
	spared []string
	// broken is set if established connections may break.
	broken bool
	// split is set if both proxies may hold the HaVips while the fault lasts.
	split bool
	// within is how soon after the fault all must be in place again; 0 means
	// soundLimit.
	within time.Duration
	// logged are parts of the only lines of level ERROR that agents may write.
	logged []string
	// stays is set if the role may stay where it has gone, until an operator
	// takes it back: what has been ordered, and adverts that were lost one way
	// (docs/rfc9568.md, "One that does not hear").
	stays bool
	// check is asked after the fault has been injected, until it agrees.
	check func(context.Context, *platform) error
	// after must hold, too, when all is in place again.
	after func(context.Context, *platform) error
}

const (
	// unnoticed is the longest pause that is nobody's fault: what the kernel
	// takes to send a lost packet again, on a busy machine.
	unnoticed = 900 * time.Millisecond
	// repair is the product's promise of a second, as a pod sees it: what was
	// lost meanwhile is sent again after up to a second more.
	repair = 2500 * time.Millisecond
	// failover likewise, for three intervals of 100 ms and the skew.
	failover = 2500 * time.Millisecond
	// cold is for a pair of which neither lives: what agents that have died have
	// left of the HaVips is removed by the next ones before all else, and nobody
	// is active before one has compared its kernel with the plan. The lab's
	// only processor starts five agents in that time.
	cold = 6 * time.Second
	// soundLimit is the time after a fault in which all must be in place.
	soundLimit = 10 * time.Second
	// coldLimit is that for five agents that start at once on the lab's only
	// processor, each of which has one of its own elsewhere.
	coldLimit = 15 * time.Second
	// reopenLimit is that for BGP sessions that were reset: GoBGP refuses to speak
	// for five seconds after that, at either end, and one end may call in the last
	// of the other's and be refused; then it draws a pause of up to two seconds.
	reopenLimit = 15 * time.Second
	// homeLimit is the time after that in which the preferred proxy must be the
	// active one again: it waits until BGP neighbors hear it, for ten seconds
	// at most (docs/adr/0015-elections-move-havips.md), and for what it takes to start.
	homeLimit = 15 * time.Second
)

// String says in a few words what must hold.
func (h promise) String() string {
	text := "no pod notices"
	switch {
	case h.refused:
		text = "pods are refused until it is over"
	case h.stall > 0:
		text = fmt.Sprintf("pods wait %v at most", h.stall)
	}
	for _, s := range h.spared {
		text += "; " + s + " notices nothing"
	}
	if !h.broken {
		text += "; connections live"
	}
	return text
}

// inject makes the fault happen.
func (f *fault) inject(ctx context.Context, p *platform) error {
	if f.do != nil {
		return f.do(ctx, p)
	}
	return p.typeOn(ctx, f.on, f.typed)
}

// end takes it back, where it does not pass by itself.
func (f *fault) end(ctx context.Context, p *platform) error {
	if f.undo != nil {
		return f.undo(ctx, p)
	}
	return p.typeOn(ctx, f.on, f.mend)
}

// how tells a reader how the fault was injected.
func (f *fault) how() string {
	if f.do != nil {
		return ""
	}
	text := ""
	for i, line := range f.typed {
		if i > 0 {
			text += "; "
		}
		text += line
	}
	return f.on + "# " + text
}
