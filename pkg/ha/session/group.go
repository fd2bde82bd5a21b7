package session

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// group replicates the namespaces of one proxy group, in the direction of its role.
type group struct {
	name string
	opts *Options
	log  *slog.Logger
	pace *pacer

	mu      sync.Mutex
	want    Group
	active  bool
	turned  bool // run has come round to what active says
	stopped bool
	// ending ends the present turn's workers; nil before the first turn.
	ending  context.CancelFunc
	wake    chan struct{} // closed and replaced when the above changes
	news    chan struct{} // closed and replaced when a table has changed
	streams map[string]*stream
	feeds   map[*feed]struct{} // standbys that are connected
	copyOf  map[string]bool    // on standby: members that sent a whole copy
}

func newGroup(want Group, active bool, opts *Options, pace *pacer) *group {
	return &group{
		name: want.Name, want: want, active: active, opts: opts, pace: pace, log: opts.Log.With("group", want.Name),
		wake: make(chan struct{}), news: make(chan struct{}), streams: map[string]*stream{}, feeds: map[*feed]struct{}{},
		copyOf: map[string]bool{},
	}
}

func (g *group) set(want Group) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.want.equal(&want) {
		g.want = want
		g.kick()
	}
}

// setActive has run change the role. What a standby was about to write to its kernel
// when it became active is not written from then on: what it would remove may be
// a connection that has just begun, and what it would add one that has ended.
func (g *group) setActive(active bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == active {
		return
	}
	g.active, g.turned = active, false
	if g.ending != nil {
		g.ending()
	}
	g.kick()
}

func (g *group) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.kick()
}

func (g *group) kick() {
	close(g.wake)
	g.wake = make(chan struct{})
	close(g.news)
	g.news = make(chan struct{})
}

// announce wakes the feeds.
func (g *group) announce() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.news)
	g.news = make(chan struct{})
}

// worker is a goroutine that can be ended alone.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func start(ctx context.Context, f func(context.Context)) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{cancel, make(chan struct{})}
	go func() {
		defer close(w.done)
		f(ctx)
	}()
	return w
}

func (w *worker) stop() {
	w.cancel()
	<-w.done
}

// run does what the role asks for until the context ends or stop is called.
func (g *group) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := map[string]*worker{} // of each stream
	var dialers []*worker
	var working context.Context // of this turn's
	defer func() {
		for _, d := range dialers {
			d.stop()
		}
		for netns, w := range workers {
			g.retire(netns, w)
		}
	}()
	for {
		g.mu.Lock()
		want, active, turned, stopped, wake := g.want, g.active, g.turned, g.stopped, g.wake
		g.mu.Unlock()
		if ctx.Err() != nil || stopped {
			return
		}
		for _, d := range dialers {
			d.stop() // before the role of a stream changes: it writes to it
		}
		dialers = nil
		for netns, w := range workers {
			switch {
			case !slices.Contains(want.Namespaces, netns):
				g.retire(netns, w)
				delete(workers, netns)
			case !turned:
				w.stop()
				delete(workers, netns)
			}
		}
		if !turned {
			var ok bool
			if working, ok = g.turn(ctx, active); !ok {
				continue
			}
		}
		for _, netns := range want.Namespaces {
			if workers[netns] == nil {
				workers[netns] = g.work(working, netns, active)
			}
		}
		if !active {
			for _, m := range want.Others {
				dialers = append(dialers, start(working, func(ctx context.Context) { g.dial(ctx, m, want.Namespaces) }))
			}
		}
		g.announce()
		select {
		case <-ctx.Done():
		case <-wake:
		}
	}
}

// turn begins a role, whose workers get the context; it reports false if that has
// changed meanwhile.
func (g *group) turn(ctx context.Context, active bool) (context.Context, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active != active {
		return nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	g.turned, g.ending = true, cancel
	return ctx, true
}

// work starts what keeps a stream.
func (g *group) work(ctx context.Context, netns string, active bool) *worker {
	s := g.open(netns)
	if active {
		return start(ctx, s.source)
	}
	s.standBack()
	return start(ctx, s.sink)
}

// open returns the stream of a namespace, which is made at first.
func (g *group) open(netns string) *stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.streams[netns]
	if s == nil {
		s = newStream(netns, g.opts, g.pace, g.announce)
		g.streams[netns] = s
	}
	return s
}

// retire ends a stream whose namespace is no longer the group's.
func (g *group) retire(netns string, w *worker) {
	w.stop()
	g.mu.Lock()
	s := g.streams[netns]
	delete(g.streams, netns)
	g.mu.Unlock()
	if s != nil {
		s.release()
	}
}

func (g *group) stream(netns string) *stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams[netns]
}

// sends tells whether there is to be sent what changes here: on standby the tables
// are another member's. news is closed when that, or anything to send, changes.
func (g *group) sends() (yes, stopped bool, news chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active && g.turned, g.stopped, g.news
}

func (g *group) hasMember(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.want.Others, func(m Member) bool { return m.Node == node })
}

// copied is Manager.Copied. It waits for no stream: one is locked while a kernel's
// table is listed.
func (g *group) copied() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active || !g.turned {
		return false
	}
	if len(g.want.Others) == 0 || len(g.want.Namespaces) == 0 {
		return true // there is nothing to have
	}
	for _, netns := range g.want.Namespaces {
		if s := g.streams[netns]; s == nil || !s.held.Load() {
			return false
		}
	}
	return len(g.copyOf) > 0
}

func (g *group) status() GroupStatus {
	g.mu.Lock()
	st := GroupStatus{Group: g.name, Active: g.active}
	feeds := make([]*feed, 0, len(g.feeds))
	for f := range g.feeds {
		feeds = append(feeds, f)
	}
	streams := make([]*stream, 0, len(g.streams))
	for _, s := range g.streams {
		streams = append(streams, s)
	}
	if !g.active {
		for node := range g.copyOf {
			st.Standbys = append(st.Standbys, node)
		}
	}
	g.mu.Unlock()
	unsent := 0
	for _, s := range streams {
		s.mu.Lock()
		st.Entries += s.table.live
		s.mu.Unlock()
		unsent += int(s.waiting.Load())
		st.Sent += s.counts.sent.Load()
		st.Applied += s.counts.applied.Load()
		st.Resyncs += s.counts.resyncs.Load()
		st.LostEvents += s.counts.lost.Load()
		st.Listings += s.counts.listings.Load()
		st.Failures += s.counts.failed.Load()
	}
	if !st.Active {
		slices.Sort(st.Standbys)
		return st
	}
	st.Pending = st.Entries // with nobody there, nobody has them
	for i, f := range feeds {
		pending, lag, whole := f.progress(time.Now())
		if whole {
			st.Standbys = append(st.Standbys, f.peer)
		}
		if i == 0 || pending > st.Pending {
			st.Pending = pending
		}
		st.Lag = max(st.Lag, lag)
	}
	st.Pending += unsent
	slices.Sort(st.Standbys)
	return st
}
