package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// requestRate bounds the requests that are looked at in a namespace, by
	// second: each costs some 10 µs, most of it in the kernel, so that a
	// flood takes a twentieth of a processor. The rest waits in the socket,
	// and when that is full is found by listing.
	requestRate = 5000
	// batchSize is how many requests are answered together.
	batchSize = 256
	// tolerated is how many unknown addresses a namespace may ask for in a
	// second before they are deleted. Until then each is left as the kernel
	// makes it: it fails by itself and is asked for once a second, however
	// many packets there are for it. More of them fill the table of
	// neighbors, which all namespaces and the underlay share (gc_thresh3).
	tolerated = 64
	// followRetry is the wait before a namespace that could not be followed
	// is tried again.
	followRetry = 100 * time.Millisecond
	// quietAfter ends an episode of requests for unknown addresses.
	quietAfter = time.Minute
	// fillLimit bounds the entries that are made in a namespace in advance
	// when the agent stops: they take half a second.
	fillLimit = 1 << 16
	// fillTime bounds the time of that.
	fillTime = 5 * time.Second
)

// ResponderOptions sets up a Responder.
type ResponderOptions struct {
	Host     kernel.Host
	Resolver Resolver
	// Age is for how long an entry stays that no tracked connection needs.
	Age time.Duration
	Log *slog.Logger
}

// Responder answers when the kernel asks for a neighbor (RTM_GETNEIGH), while
// packets wait in the kernel: a proxy then holds the entries of the hosts that it
// talks to, not of all.
//
// Answers are permanent entries. They count toward none of the kernel's limits
// and expire never, so an agent that is stopped or dead stops no packet of a host
// that is known. The agent lets them go: an entry that no connection has needed for
// Age. What is right and wrong of them is the reconciler's business
// ([Neighbors]), which is why answers give no hints.
//
// An agent that stops in order makes the rest of the entries in advance, for
// hosts that come while it is away.
type Responder struct {
	opts  ResponderOptions
	stats responderStats

	mu       sync.Mutex
	wanted   map[string]bool
	changed  chan struct{} // buffered, 1
	unknown  time.Time     // the last request for an unknown address; zero between episodes
	unknowns uint64        // in this episode
}

type responderStats struct {
	answered, unknown, failed, cleared, aged atomic.Uint64
	present                                  atomic.Int64
}

// ResponderStats counts what a Responder has done since it was made.
type ResponderStats struct {
	Answered uint64 // requests
	Unknown  uint64 // requests for addresses that nobody has
	Failed   uint64 // answers that the kernel did not take
	Cleared  uint64 // entries for unknown addresses deleted in a flood
	Aged     uint64 // entries deleted for want of use
	Present  int64  // entries at the last look
}

// NewResponder returns a Responder that follows no namespace yet.
func NewResponder(o ResponderOptions) *Responder {
	return &Responder{opts: o, changed: make(chan struct{}, 1)}
}

// Follow says in which namespaces requests are answered. They need not exist
// yet. It does not wait, and is safe for concurrent use.
func (r *Responder) Follow(netns map[string]bool) {
	r.mu.Lock()
	r.wanted = netns
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Stats returns the counts. It is safe for concurrent use.
func (r *Responder) Stats() ResponderStats {
	return ResponderStats{
		Answered: r.stats.answered.Load(), Unknown: r.stats.unknown.Load(), Failed: r.stats.failed.Load(),
		Cleared: r.stats.cleared.Load(), Aged: r.stats.aged.Load(), Present: r.stats.present.Load(),
	}
}

// Run answers until the context ends.
func (r *Responder) Run(ctx context.Context) {
	following := map[string]context.CancelFunc{}
	var running sync.WaitGroup
	defer running.Wait()
	quiet := time.NewTicker(quietAfter)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return // the contexts of those that follow are of this one
		case now := <-quiet.C:
			r.calm(now)
		case <-r.changed:
		}
		r.mu.Lock()
		wanted := r.wanted
		r.mu.Unlock()
		for netns, stop := range following {
			if !wanted[netns] {
				stop()
				delete(following, netns)
			}
		}
		for netns := range wanted {
			if following[netns] == nil {
				each, stop := context.WithCancel(ctx)
				following[netns] = stop
				running.Go(func() {
					defer stop()
					r.follow(each, netns)
					if ctx.Err() != nil {
						r.fill(context.WithoutCancel(ctx), netns)
					}
				})
			}
		}
	}
}

// follow answers in one namespace, which may come and go.
func (r *Responder) follow(ctx context.Context, netns string) {
	failing := false
	for ctx.Err() == nil {
		requests, err := r.opts.Host.NeighborRequests(ctx, netns)
		switch {
		case err == nil:
			if failing {
				r.opts.Log.Info("neighbor requests are followed again", "netns", netns)
			}
			failing = false
			newRoom(r, netns).serve(ctx, requests)
		case !errors.Is(err, kernel.ErrNotFound) && !failing && ctx.Err() == nil: // otherwise it is yet to be made
			failing = true
			r.opts.Log.Error("neighbor requests are not followed: hosts that are not known yet get no answers", "netns", netns, "err", err)
		}
		wait(ctx, followRetry)
	}
}

// fill makes the entries of all hosts, for the time without an agent.
func (r *Responder) fill(ctx context.Context, netns string) {
	ctx, cancel := context.WithTimeout(ctx, fillTime)
	defer cancel()
	known := r.opts.Resolver.All(netns)
	if len(known) > fillLimit {
		r.opts.Log.Warn("too many hosts to make neighbors for them in advance: new ones get no answers until the agent is back", "netns", netns, "hosts", len(known))
		return
	}
	if err := newRoom(r, netns).make(ctx, known); err != nil && !errors.Is(err, kernel.ErrNotFound) {
		r.opts.Log.Warn("not all neighbors were made in advance", "netns", netns, "err", err)
	}
}

// strangers counts requests for unknown addresses, and says so once an episode.
func (r *Responder) strangers(netns string, example kernel.NeighborRequest, n int) {
	r.stats.unknown.Add(uint64(n))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unknown.IsZero() {
		r.opts.Log.Warn("a neighbor is asked for that no node has; vpcproxy_neighbor_requests_total counts what follows", "netns", netns, "address", example.Addr)
	}
	r.unknown = time.Now()
	r.unknowns += uint64(n)
}

// calm ends the episode.
func (r *Responder) calm(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.unknown.IsZero() && now.Sub(r.unknown) >= quietAfter {
		r.opts.Log.Info("no unknown neighbor is asked for any more", "requests", r.unknowns)
		r.unknown, r.unknowns = time.Time{}, 0
	}
}

// wait returns when the context ends or the time is over.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
