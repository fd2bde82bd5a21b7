package session

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// stream is the flows of one namespace: what its kernel has while the group is
// active here, and what it shall have while it is not.
type stream struct {
	netns string
	path  string
	opts  *Options
	log   *slog.Logger
	pace  *pacer

	// changed is called after the table has changed here, without mu.
	changed func()

	mu     sync.Mutex
	table  *table
	census census
	// What a standby has of the active member's table.
	from struct {
		epoch, seq uint64
		copying    bool // a whole copy is under way
		whole      bool // one has arrived
		since      time.Time
	}

	// held is set on standby while the kernel is known to have had all of a whole copy.
	held atomic.Bool

	kernelMu sync.Mutex
	conn     *conntrack.Conn
	inode    uint64

	waiting atomic.Int64 // flows that are too young
	counts  struct {
		lost, failed, resyncs, sent, applied, listings atomic.Uint64
	}
	complained atomic.Bool
}

func newStream(netns string, opts *Options, pace *pacer, changed func()) *stream {
	return &stream{
		netns: netns, path: filepath.Join(opts.NetnsDir, netns), opts: opts, pace: pace, changed: changed,
		log: opts.Log.With("netns", netns), table: newTable(rand.Uint64()),
	}
}

// kernel returns a connection into the namespace as it is now: one that was
// deleted and made anew has the same name.
func (s *stream) kernel() (*conntrack.Conn, error) {
	s.kernelMu.Lock()
	defer s.kernelMu.Unlock()
	st, err := os.Stat(s.path)
	if err != nil {
		s.drop()
		return nil, err
	}
	inode := uint64(0)
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		inode = sys.Ino
	}
	if s.conn != nil && s.inode == inode {
		return s.conn, nil
	}
	s.drop()
	if s.conn, err = conntrack.Open(s.path); err != nil {
		s.conn = nil
		return nil, err
	}
	s.inode = inode
	return s.conn, nil
}

// drop lets go of the namespace, which lives as long as anybody holds it.
func (s *stream) drop() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// release is drop for others.
func (s *stream) release() {
	s.kernelMu.Lock()
	defer s.kernelMu.Unlock()
	s.drop()
}

// complain logs the first of failures in a row, and praise the recovery. A
// namespace that is not there is none of ours yet, or no longer.
func (s *stream) complain(err error) {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, context.Canceled) {
		return
	}
	s.counts.failed.Add(1)
	if !s.complained.Swap(true) {
		s.log.Warn("sessions are not replicated wholly; trying again", "err", err)
	}
}

func (s *stream) praise() {
	if s.complained.Swap(false) {
		s.log.Info("sessions are replicated wholly again")
	}
}

// pause waits, and reports false if the context ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pacer keeps listings of the kernel's table to a twentieth of one processor:
// the kernel walks the table of all namespaces to list one of them. A listing
// that took long because this machine was starved, or suspended, must not put the
// next one off for longer than flows live that nobody has renewed.
type pacer struct {
	mu   sync.Mutex
	next time.Time
	busy bool
}

const (
	idleShare = 20
	// idleMost is half of the kernel's default time-out of a UDP flow that goes on.
	idleMost = time.Minute
)

// start takes the turn, or returns when to ask again.
func (p *pacer) start() (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy {
		return 10 * time.Millisecond, false
	}
	if wait := time.Until(p.next); wait > 0 {
		return wait, false
	}
	p.busy = true
	return 0, true
}

func (p *pacer) done(began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy, p.next = false, time.Now().Add(min(idleShare*time.Since(began), idleMost))
}
