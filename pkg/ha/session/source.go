package session

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

const (
	// gulp is how long events gather before they are read: a listener that is
	// woken by each of them takes a third of the rate of new flows.
	gulp = 50 * time.Millisecond
	// maxGulp bounds how many are read at once.
	maxGulp = 1 << 16
	// maxYoung bounds the flows that wait for their age: beyond, a listing of the
	// table finds them.
	maxYoung = 1 << 17
	// calm is how long after it has become active a member that has a copy lists its
	// kernel's table for the first time: that is little news, as what comes now is told
	// by events, and the processor is the packets' for that long.
	calm = time.Second
	// retry is the wait after a failure, and rest how often a standby that keeps its
	// kernel like the table looks whether the namespace is still the same.
	retry, rest = time.Second, 4 * time.Second
)

// young is a flow that is assured, and too young yet.
type young struct {
	due  time.Time
	flow conntrack.Tuple
}

// source follows the kernel's table while the group is active here.
//
// The kernel tells of a flow once, when it is assured. Most end soon; those that
// are still there after a moment are looked up, and those alone replicated.
// That a flow ends, or changes, is seen in listings, for which there is a reason when
// the number of entries has changed (census): a flow that has ended does no harm on a
// standby for that long.
type source struct {
	*stream
	listener *conntrack.Listener
	conn     *conntrack.Conn
	young    []young // in order of due; from head on
	head     int
	list     time.Time // when to list the table next
	quiet    bool      // whether events are chosen at their origin
}

// source runs until the context ends.
func (s *stream) source(ctx context.Context) {
	s.mu.Lock()
	s.table.epoch = rand.Uint64() // whoever has a copy of another time starts over
	s.mu.Unlock()
	for ctx.Err() == nil {
		if err := s.follow(ctx); err != nil && ctx.Err() == nil {
			s.complain(err)
			pause(ctx, retry)
		}
	}
	s.waiting.Store(0)
}

func (s *stream) follow(ctx context.Context) error {
	conn, err := s.kernel()
	if err != nil {
		return err
	}
	src := &source{stream: s, conn: conn}
	s.mu.Lock()
	s.census = census{}
	if s.table.live > 0 {
		src.list = time.Now().Add(calm)
	}
	s.mu.Unlock()
	if src.listener, err = conntrack.Listen(s.path); err != nil {
		return err
	}
	defer func() { _ = src.listener.Close() }()
	for ctx.Err() == nil {
		if now, err := s.kernel(); err != nil || now != conn {
			return err // another namespace has the name
		}
		if err := src.turn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// turn waits for what is due next and does it.
func (s *source) turn(ctx context.Context) error {
	due := s.list
	if s.head < len(s.young) && s.young[s.head].due.Before(due) {
		due = s.young[s.head].due
	}
	wait, cancel := context.WithDeadline(ctx, due)
	err := s.listener.Wait(wait)
	expired := wait.Err() != nil
	cancel()
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		if !pause(ctx, gulp) {
			return nil
		}
	case !expired:
		return err
	}
	if err := s.drain(); err != nil {
		return err
	}
	if err := s.grown(ctx); err != nil {
		return err
	}
	if time.Now().Before(s.list) {
		return nil
	}
	if s.unchanged(ctx) {
		s.list = time.Now().Add(s.opts.Refresh)
		return nil
	}
	if wait, ok := s.pace.start(); !ok {
		s.list = time.Now().Add(wait)
		return nil
	}
	began := time.Now()
	defer s.pace.done(began)
	s.list = began.Add(s.opts.Refresh)
	return s.listing(ctx)
}

// unchanged tells whether a listing would find nothing.
func (s *source) unchanged(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.atRest(ctx, s.conn)
}

// missed makes up for events that did not come.
func (s *source) missed() {
	s.counts.lost.Add(1)
	s.list = time.Time{}
	s.mu.Lock()
	s.census = census{}
	s.mu.Unlock()
}

func (s *source) drain() error {
	due := time.Now().Add(s.opts.Age)
	_, err := s.listener.Drain(maxGulp, func(e *conntrack.Entry) {
		if e.Status&conntrack.Assured == 0 || e.Closed() || !e.HasPorts() {
			return
		}
		if len(s.young)-s.head >= maxYoung {
			s.missed()
			return
		}
		s.young = append(s.young, young{due, e.Orig})
	})
	if errors.Is(err, conntrack.ErrLost) {
		s.missed()
		err = nil
	}
	s.waiting.Store(int64(len(s.young) - s.head))
	return err
}

// grown looks up the flows that have come of age.
func (s *source) grown(ctx context.Context) error {
	clock := time.Now()
	var flows []conntrack.Tuple
	for ; s.head < len(s.young) && !s.young[s.head].due.After(clock); s.head++ {
		flows = append(flows, s.young[s.head].flow)
	}
	if s.head == len(s.young) {
		s.young, s.head = s.young[:0], 0
		if cap(s.young) > 4096 {
			s.young = nil
		}
	} else if s.head > maxYoung {
		s.young, s.head = append(s.young[:0], s.young[s.head:]...), 0
	}
	defer func() { s.waiting.Store(int64(len(s.young) - s.head)) }()
	return s.lookup(ctx, flows, false)
}

// lookup takes flows over as the kernel has them now; the ones it has not, or not
// as living, end, if they were known.
func (s *source) lookup(ctx context.Context, flows []conntrack.Tuple, ends bool) error {
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		part := flows[:n]
		flows = flows[n:]
		there := make([]conntrack.Entry, 0, n)
		found := make([]bool, n)
		err := s.conn.Get(ctx, part, func(i int, e *conntrack.Entry) {
			if alive(e) {
				there = append(there, *e)
				found[i] = true
			}
		})
		if err != nil {
			return err
		}
		s.mu.Lock()
		changed := s.take(there)
		for i := range part {
			if ends && !found[i] && s.table.end(&part[i]) {
				changed = true
			}
		}
		s.mu.Unlock()
		if changed {
			s.changed()
		}
	}
	return nil
}

// alive tells whether a flow is to be replicated.
func alive(e *conntrack.Entry) bool {
	return e.Status&conntrack.Assured != 0 && e.HasPorts() && !e.Closed()
}

// take brings the table up to date with living entries of the kernel. The
// stream is locked.
func (s *stream) take(entries []conntrack.Entry) (changed bool) {
	clock := now()
	for i := range entries {
		e := &entries[i]
		known := s.table.get(&e.Orig)
		if known != nil && !differs(known, e, clock) {
			s.table.seen(known)
			continue
		}
		s.table.put(e)
		changed = true
	}
	return changed
}

// differs tells whether a standby needs to know. A time-out matters when it is
// a quarter longer than the standby thinks: then that has enough left until
// the next listing, and a flow that is idle now and then is not told of anew
// each time.
func differs(known *slot, e *conntrack.Entry, clock int64) bool {
	k := &known.entry
	return k.Reply != e.Reply || k.Mark != e.Mark || k.TCP.State != e.TCP.State ||
		clock+int64(e.Timeout)-known.deadline > int64(e.Timeout/4)
}

// listing compares the table with the kernel's.
func (s *source) listing(ctx context.Context) error {
	if s.opts.ChooseEvents != nil {
		// Without it there are more events, and all goes on.
		err := s.opts.ChooseEvents(ctx, s.netns)
		if s.quiet = err == nil; err != nil {
			s.complain(fmt.Errorf("choose conntrack events: %w", err))
		}
	}
	s.mu.Lock()
	s.table.begin()
	s.mu.Unlock()
	brief := uint32(math.MaxUint32)
	entries := make([]conntrack.Entry, 0, batchLimit)
	flush := func() {
		s.mu.Lock()
		changed := s.take(entries)
		s.mu.Unlock()
		entries = entries[:0]
		if changed {
			s.changed()
		}
	}
	err := s.conn.Dump(ctx, conntrack.Assured, func(e *conntrack.Entry) {
		if !alive(e) {
			return
		}
		brief = min(brief, e.Timeout)
		if entries = append(entries, *e); len(entries) == batchLimit {
			flush()
		}
	})
	if err != nil {
		return err
	}
	flush()
	// A listing may miss an entry while others come and go: ask before
	// believing that it is gone.
	var gone []conntrack.Tuple
	s.mu.Lock()
	s.table.rest(func(e *conntrack.Entry, _ int64) { gone = append(gone, e.Orig) })
	s.mu.Unlock()
	if err := s.lookup(ctx, gone, true); err != nil {
		return err
	}
	s.mu.Lock()
	s.counted(ctx, s.conn, brief)
	s.mu.Unlock()
	if s.quiet || s.opts.ChooseEvents == nil {
		s.praise()
	}
	return nil
}
