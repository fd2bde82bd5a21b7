package ha

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How soon a failed move is tried again, at first and at most.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// movement makes a Mover follow the machine. Its queue is one wish long: only
// the last role asked for counts, and an announcement is asked for or it is not.
type movement struct {
	mover Mover
	log   *slog.Logger
	stats *counters

	mu       sync.Mutex
	wish     wish
	cancel   context.CancelFunc // of the call under way, nil if none
	stopping bool
	wake     chan struct{} // buffered, 1
	done     chan struct{}
	root     context.Context // bounds the calls, which outlive Run's context on purpose
	abort    context.CancelFunc
}

type wish struct {
	active, announce bool
	moving           bool // active is still to be brought about
	gen              uint64
}

func newMovement(m Mover, log *slog.Logger, stats *counters) *movement {
	root, abort := context.WithCancel(context.Background())
	return &movement{mover: m, log: log, stats: stats, wake: make(chan struct{}, 1), done: make(chan struct{}), root: root, abort: abort}
}

// want asks for a role and cancels whatever is under way. It does not wait.
func (m *movement) want(active bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish = wish{active: active, moving: true, gen: m.wish.gen + 1}
	if m.cancel != nil {
		m.cancel()
	}
	m.kick()
}

// again asks for an announcement, which an Activate still to come includes.
func (m *movement) again() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish.announce = m.wish.active
	m.kick()
}

func (m *movement) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// finish lets the last wish come true, for at most d, and ends run.
func (m *movement) finish(d time.Duration) {
	m.mu.Lock()
	m.stopping = true
	m.kick()
	m.mu.Unlock()
	timer := time.AfterFunc(d, m.abort)
	<-m.done
	timer.Stop()
	m.abort()
}

func (m *movement) run() {
	defer close(m.done)
	retry, failed := retryFirst, false
	for {
		name, call, ctx, gen := m.next()
		if call == nil {
			if m.ended() {
				return
			}
			select {
			case <-m.wake:
			case <-m.root.Done():
				return
			}
			continue
		}
		err := call(ctx)
		switch overtaken := m.settle(gen, name, err); {
		case overtaken:
			retry, failed = retryFirst, false
		case err == nil:
			if failed {
				m.log.Info("addresses moved after failures", "step", name)
			}
			retry, failed = retryFirst, false
		default:
			m.stats.moverFailures.Add(1)
			if !failed {
				m.log.Error("cannot move the addresses, trying again", "step", name, "err", err)
			}
			failed = true
			m.pause(retry)
			retry = min(2*retry, retryMost)
		}
		if m.root.Err() != nil {
			return
		}
	}
}

// next picks the call that is due, or nil.
func (m *movement) next() (name string, call func(context.Context) error, ctx context.Context, gen uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.wish.moving && m.wish.active:
		// It announces, so what was asked so far is answered with it.
		name, call, m.wish.announce = "activate", m.mover.Activate, false
	case m.wish.moving:
		name, call = "deactivate", m.mover.Deactivate
	case m.wish.announce:
		name, call, m.wish.announce = "announce", m.mover.Announce, false
	default:
		return "", nil, nil, 0
	}
	ctx, m.cancel = context.WithCancel(m.root)
	return name, call, ctx, m.wish.gen
}

// settle records how a call ended; overtaken says that a newer wish came.
func (m *movement) settle(gen uint64, name string, err error) (overtaken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cancel()
	m.cancel = nil
	if m.wish.gen != gen {
		return true
	}
	switch {
	case err == nil && name != "announce":
		m.wish.moving = false
	case err != nil && name == "announce":
		m.wish.announce = true
	}
	return false
}

// ended says whether there is nothing left to do before the end.
func (m *movement) ended() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stopping
}

// pause waits before a retry; a new wish ends it.
func (m *movement) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.wake:
	case <-m.root.Done():
	}
}
