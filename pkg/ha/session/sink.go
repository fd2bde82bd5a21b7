package session

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

// errGap is returned for changes that do not follow on what has been applied.
var errGap = errors.New("changes are missing")

// stand forgets where the stream came from: another member may be the active
// one now.
func (s *stream) stand() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from.epoch, s.from.seq, s.from.copying, s.from.whole = 0, 0, false, false
	s.held.Store(false)
}

// standBack is stand of a member that begins to be on standby.
func (s *stream) standBack() {
	s.stand()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from.since = time.Now()
}

// settled tells whether flows may go that the active member does not know. The
// stream is locked.
func (s *stream) settled() bool { return time.Since(s.from.since) >= s.opts.Grace }

// have returns what to subscribe with.
func (s *stream) have() (epoch, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.from.whole {
		return 0, 0
	}
	return s.from.epoch, s.from.seq
}

// apply makes changes true in the table and in the kernel. Nothing is applied if it
// returns errGap. What the kernel refuses is left to reconcile.
func (s *stream) apply(ctx context.Context, b *batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.from
	switch {
	case b.first:
		f.epoch, f.copying, f.whole = b.epoch, true, false
		s.held.Store(false)
		s.table.begin()
	case b.epoch != f.epoch || b.after != f.seq || !f.copying && !f.whole:
		return errGap
	}
	f.seq = b.seq
	var w writes
	for i := range b.changes {
		c := &b.changes[i]
		known := s.table.get(&c.entry.Orig)
		switch {
		case c.dead:
			if known != nil {
				w.remove = append(w.remove, c.entry.Orig)
				s.table.end(&c.entry.Orig)
			}
			continue
		case known == nil:
			w.create = append(w.create, c.entry)
		case known.entry.Reply != c.entry.Reply:
			w.remove = append(w.remove, c.entry.Orig)
			w.create = append(w.create, c.entry)
		default:
			w.update = append(w.update, c.entry)
		}
		s.table.put(&c.entry)
	}
	if b.last {
		s.complete(&w)
	}
	s.counts.applied.Add(uint64(len(b.changes)))
	err := s.write(ctx, &w)
	if b.last && err == nil {
		// Whatever this member had in its kernel from a time when it was
		// the active one goes now.
		err = s.compare(ctx)
	}
	if err != nil {
		s.complain(err)
	} else if b.last {
		s.held.Store(true)
		s.praise()
	}
	return nil
}

// complete ends the flows that a whole copy does not have.
func (s *stream) complete(w *writes) {
	s.from.copying, s.from.whole = false, true
	var gone []conntrack.Tuple
	s.table.rest(func(e *conntrack.Entry, _ int64) { gone = append(gone, e.Orig) })
	for i := range gone {
		s.table.end(&gone[i])
	}
	if s.settled() {
		w.remove = append(w.remove, gone...)
	}
}

// check compares the table with what the active member says of its own; it
// reports false if they differ.
func (s *stream) check(st *state) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.from.whole || st.epoch != s.from.epoch || st.seq != s.from.seq {
		return true // not comparable, or being made up for
	}
	return int(st.live) == s.table.live && st.digest == s.table.digest
}

// sink keeps the kernel like the table while the group is not active here.
func (s *stream) sink(ctx context.Context) {
	list := time.Now().Add(s.opts.Refresh)
	var last *conntrack.Conn
	wait := retry
	for pause(ctx, rhythm.Until(wait)) {
		wait = retry
		conn, err := s.kernel() // notices a namespace that is new, or gone
		if err != nil {
			s.complain(err)
			continue
		}
		if conn == last && (time.Now().Before(list) || s.unaltered(ctx, conn)) {
			wait = rest
			continue
		}
		if _, ok := s.pace.start(); !ok {
			continue
		}
		began := time.Now()
		s.mu.Lock()
		if s.from.whole { // half a copy says nothing about the other half
			if err = s.compare(ctx); err == nil {
				last = conn
				s.held.Store(true)
			}
		}
		s.mu.Unlock()
		s.pace.done(began)
		list = began.Add(s.opts.Refresh)
		if err != nil {
			s.complain(err)
		}
	}
}

// unaltered tells whether nobody but this member has changed its kernel's entries.
func (s *stream) unaltered(ctx context.Context, conn *conntrack.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.from.whole && s.atRest(ctx, conn)
}

// compare makes the kernel like the table. The stream is locked.
func (s *stream) compare(ctx context.Context) error {
	conn, err := s.kernel()
	if err != nil {
		return err
	}
	w, err := s.difference(ctx, conn)
	if err != nil {
		return err
	}
	if err := s.write(ctx, w); err != nil {
		return err
	}
	// What runs out here is missing in the next count.
	s.counted(ctx, conn, math.MaxUint32)
	return nil
}

// difference lists what the kernel has other than the table. The stream is locked.
func (s *stream) difference(ctx context.Context, conn *conntrack.Conn) (*writes, error) {
	var w writes
	s.table.begin()
	err := conn.Dump(ctx, conntrack.Assured, func(e *conntrack.Entry) {
		known := s.table.get(&e.Orig)
		switch {
		case known == nil:
			if e.HasPorts() && s.settled() {
				w.remove = append(w.remove, e.Orig)
			}
		case known.entry.Reply == e.Reply:
			s.table.seen(known)
		default:
			w.remove = append(w.remove, e.Orig)
		}
	})
	if err != nil {
		return nil, err
	}
	s.table.rest(func(e *conntrack.Entry, left int64) {
		if left > 1 { // else it has run out
			again := *e
			again.Timeout = uint32(min(left, 1<<31))
			w.create = append(w.create, again)
		}
	})
	return &w, nil
}

// writes is what to do to a kernel's table, in this order: remove, update,
// create. A flow may be in remove and create.
type writes struct {
	remove         []conntrack.Tuple
	update, create []conntrack.Entry
}

// write does it, unless or until the context ends: then what the kernel has by now
// is right, and what was to be written is not.
func (s *stream) write(ctx context.Context, w *writes) error {
	if len(w.remove)+len(w.update)+len(w.create) == 0 {
		return nil
	}
	conn, err := s.kernel()
	if err != nil {
		return err
	}
	var errs failures
	errs.add(conn.Delete(ctx, w.remove))
	for i, err := range conn.Update(ctx, w.update) {
		if errors.Is(err, unix.ENOENT) { // it has run out here, or somebody has flushed it
			w.create = append(w.create, w.update[i])
			continue
		}
		errs.add([]error{err})
	}
	// A flow that is in the way has the original or the reply tuple of one
	// that lives on the active member: it is not the one that lives.
	var again []conntrack.Entry
	var inTheWay []conntrack.Tuple
	for i, err := range conn.Create(ctx, w.create) {
		if errors.Is(err, unix.EEXIST) {
			e := &w.create[i]
			inTheWay = append(inTheWay, e.Orig, e.Reply)
			again = append(again, *e)
			continue
		}
		errs.add([]error{err})
	}
	errs.add(conn.Delete(ctx, inTheWay))
	errs.add(conn.Create(ctx, again))
	return errs.join()
}

// failures keeps the first of many errors, and their number.
type failures struct {
	first error
	count int
}

func (f *failures) add(errs []error) {
	for _, err := range errs {
		if err == nil {
			continue
		}
		if f.first == nil {
			f.first = err
		}
		f.count++
	}
}

func (f *failures) join() error {
	if f.count == 0 {
		return nil
	}
	return fmt.Errorf("write %d conntrack entries: %w", f.count, f.first)
}
