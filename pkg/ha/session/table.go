package session

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// table holds the flows of one namespace in the order of their last change.
// Whoever knows the number of the last change that he has seen gets what came
// after it: one record for each flow, however often it has changed, so that a
// slow reader costs no memory. Ended flows stay as tombstones for a while; a
// reader from before the oldest one starts over.
//
// Slots refer to each other by number and hold no pointer: a table of 100,000
// flows costs the garbage collector nothing (arena). It is not safe for concurrent use.
type table struct {
	epoch uint64 // numbers of another epoch mean nothing
	seq   uint64 // of the last change
	floor uint64 // tombstones up to this one are gone

	index  index
	arena  *arena
	chunks [][]slot
	free   []uint32
	used   uint32 // slots ever used
	live   int
	digest uint64 // of the live flows' tuples, in whatever order

	graves  []grave // in order of seq; from head on
	head    int
	cursors map[*cursor]struct{}
	sweep   uint8 // the current one, see begin
}

type slot struct {
	entry      conntrack.Entry
	seq        uint64
	deadline   int64 // when the entry runs out, in seconds since an arbitrary moment
	prev, next uint32
	sweep      uint8
	dead       bool
}

// grave is a tombstone, unless its slot has changed since.
type grave struct {
	seq uint64
	at  uint32
}

// cursor is a reader's place: all up to its slot have been read.
type cursor struct {
	at    uint32
	seq   uint64
	floor uint64 // the table's when reading began
}

const (
	slotsPerChunk = 1024
	// sentinel is the slot that the list begins and ends with.
	sentinel = 0
	// maxGraves is how many ended flows are remembered.
	maxGraves = 16384
)

func newTable(epoch uint64) *table {
	t := &table{epoch: epoch, index: newIndex(), cursors: map[*cursor]struct{}{}}
	t.arena = newArena(t)
	t.chunks = [][]slot{t.arena.chunk()}
	t.used = 1
	return t
}

func (t *table) slot(i uint32) *slot { return &t.chunks[i/slotsPerChunk][i%slotsPerChunk] }

// now is the clock of deadlines: it goes on while the machine is suspended, as
// flows elsewhere do.
func now() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return int64(time.Since(processStart) / time.Second)
	}
	return ts.Sec
}

var processStart = time.Now()

// get returns the flow's slot, or nil. It is valid until the next change.
func (t *table) get(k *conntrack.Tuple) *slot {
	if i, ok := t.find(k); ok {
		if s := t.slot(i); !s.dead {
			return s
		}
	}
	return nil
}

// put adds a flow or replaces what is known of it, as the newest change.
func (t *table) put(e *conntrack.Entry) {
	i, known := t.find(&e.Orig)
	if !known {
		i = t.allocate()
	} else {
		t.unlink(i)
	}
	s := t.slot(i)
	if known && !s.dead {
		t.count(&s.entry, -1)
	}
	s.entry, s.deadline, s.dead, s.sweep = *e, now()+int64(e.Timeout), false, t.sweep
	if !known {
		t.enter(i)
	}
	t.count(e, 1)
	t.append(i)
}

// end takes a flow out; it reports whether it was there.
func (t *table) end(k *conntrack.Tuple) bool {
	i, ok := t.find(k)
	if !ok || t.slot(i).dead {
		return false
	}
	s := t.slot(i)
	t.count(&s.entry, -1)
	t.unlink(i)
	s.dead = true
	t.append(i)
	t.graves = append(t.graves, grave{t.seq, i})
	for len(t.graves)-t.head > maxGraves {
		t.bury()
	}
	return true
}

// bury forgets the oldest tombstone.
func (t *table) bury() {
	g := t.graves[t.head]
	t.head++
	if t.head > maxGraves { // twice the room is enough
		t.graves = append(t.graves[:0], t.graves[t.head:]...)
		t.head = 0
	}
	s := t.slot(g.at)
	if s.seq != g.seq { // lives again, or died again
		return
	}
	t.floor = g.seq
	t.unlink(g.at)
	t.forget(g.at)
	*s = slot{}
	t.free = append(t.free, g.at)
}

func (t *table) allocate() uint32 {
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		return i
	}
	i := t.used
	t.used++
	if int(i/slotsPerChunk) == len(t.chunks) {
		t.chunks = append(t.chunks, t.arena.chunk())
	}
	return i
}

func (t *table) append(i uint32) {
	t.seq++
	s, end := t.slot(i), t.slot(sentinel)
	s.seq = t.seq
	s.prev, s.next = end.prev, sentinel
	t.slot(end.prev).next = i
	end.prev = i
}

// unlink takes a slot out of the order. Who had read up to it has now read up to
// the one before.
func (t *table) unlink(i uint32) {
	s := t.slot(i)
	for c := range t.cursors {
		if c.at == i {
			c.at = s.prev
		}
	}
	t.slot(s.prev).next, t.slot(s.next).prev = s.next, s.prev
}

// count keeps the number of live flows and their digest.
func (t *table) count(e *conntrack.Entry, by int) {
	t.live += by
	t.digest ^= fingerprint(e)
}

// fingerprint is FNV-1a over an entry's tuples, the same on every machine.
func fingerprint(e *conntrack.Entry) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	mix := func(v uint64) { h = (h ^ v) * prime; h ^= h >> 29 }
	for _, t := range []*conntrack.Tuple{&e.Orig, &e.Reply} {
		mix(binary.BigEndian.Uint64(t.Src[:8]))
		mix(binary.BigEndian.Uint64(t.Src[8:]))
		mix(binary.BigEndian.Uint64(t.Dst[:8]))
		mix(binary.BigEndian.Uint64(t.Dst[8:]))
		mix(uint64(t.SrcPort)<<32 | uint64(t.DstPort)<<8 | uint64(t.Proto))
	}
	return h
}

// read returns a new reader of all that comes after a change; ok is false if
// that is no longer known, and the reader starts at the beginning.
func (t *table) read(epoch, after uint64) (c *cursor, ok bool) {
	c = &cursor{floor: t.floor}
	t.cursors[c] = struct{}{}
	if epoch != t.epoch || after < t.floor || after > t.seq {
		return c, false
	}
	at := t.slot(sentinel).prev
	for at != sentinel && t.slot(at).seq > after {
		at = t.slot(at).prev
	}
	c.at, c.seq = at, after
	return c, true
}

// close ends a reader.
func (t *table) close(c *cursor) { delete(t.cursors, c) }

// behind tells whether a reader has missed ended flows, and must start over.
func (t *table) behind(c *cursor) bool { return t.floor > c.floor && t.floor > c.seq }

// next calls f with up to limit changes that a reader has not read, and tells
// whether he has read all.
func (t *table) next(c *cursor, limit int, f func(e *conntrack.Entry, left int64, dead bool)) (all bool) {
	clock := now()
	for range limit {
		i := t.slot(c.at).next
		if i == sentinel {
			break
		}
		s := t.slot(i)
		f(&s.entry, max(s.deadline-clock, 1), s.dead)
		c.at, c.seq = i, s.seq
	}
	if t.slot(c.at).next != sentinel {
		return false
	}
	c.seq = t.seq
	return true
}

// unread counts the changes after one, newest first, up to limit.
func (t *table) unread(after uint64, limit int) int {
	n := 0
	for i := t.slot(sentinel).prev; i != sentinel && n < limit && t.slot(i).seq > after; i = t.slot(i).prev {
		n++
	}
	return n
}

// begin starts a sweep: seen marks what is there, and rest finds the others.
func (t *table) begin() { t.sweep++ }

func (t *table) seen(s *slot) { s.sweep = t.sweep }

// rest calls f with the flows that the sweep has not seen. f must not change the table.
func (t *table) rest(f func(e *conntrack.Entry, left int64)) {
	clock := now()
	for i := t.slot(sentinel).next; i != sentinel; i = t.slot(i).next {
		if s := t.slot(i); !s.dead && s.sweep != t.sweep {
			f(&s.entry, max(s.deadline-clock, 1))
		}
	}
}
