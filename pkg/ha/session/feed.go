package session

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

const (
	// beat is how often either side says that it is alive at least, and silence
	// how long it may not: both ends give up then.
	beat    = 2 * time.Second
	silence = 5 * time.Second
	// handshake bounds what a stranger can hold a connection for.
	handshake = 5 * time.Second
	// maxSubscriptions bounds what a member can ask for on one connection: four
	// times the attachments that a node is tested with.
	maxSubscriptions = 4096
)

// accept serves one connection of a standby.
func (m *Manager) accept(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn := tls.Server(raw, m.opts.Credentials.Server)
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	defer func() { _ = raw.Close() }()
	log := m.opts.Log.With("remote", raw.RemoteAddr())
	f, err := m.greet(ctx, conn)
	if err != nil {
		if ctx.Err() == nil {
			log.Debug("connection for session replication refused", "err", err)
		}
		return
	}
	f.group.mu.Lock()
	f.group.feeds[f] = struct{}{}
	f.group.mu.Unlock()
	log.Info("a member follows our sessions", "group", f.group.name, "member", f.peer)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		f.read()
	})
	err = f.write(ctx)
	cancel()
	_ = raw.Close()
	reading.Wait()
	f.close()
	log.Info("a member follows our sessions no longer", "group", f.group.name, "member", f.peer, "err", errors.Join(err, f.failed))
}

// greet finds out who is there, and what for.
func (m *Manager) greet(ctx context.Context, conn *tls.Conn) (*feed, error) {
	if err := conn.SetDeadline(time.Now().Add(handshake)); err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	peer, err := m.opts.Credentials.Peer(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	f := &feed{conn: conn, in: bufio.NewReader(conn), peer: peer, subs: map[uint32]*sub{}, fresh: make(chan struct{}, 1)}
	typ, body, room, err := readFrame(f.in, nil)
	if err != nil {
		return nil, err
	}
	f.room = room
	if typ != frameHello {
		return nil, errMalformed
	}
	name, err := decodeHello(body)
	if err != nil {
		return nil, err
	}
	if f.group = m.group(name); f.group == nil {
		return nil, fmt.Errorf("%s asks for group %s, which this node is not in", peer, name)
	}
	if !f.group.hasMember(peer) {
		return nil, fmt.Errorf("%s is no member of group %s", peer, name)
	}
	return f, conn.SetDeadline(time.Time{})
}

// feed sends a group's changes to one standby while this node is active.
type feed struct {
	group *group
	peer  string
	conn  net.Conn
	in    *bufio.Reader
	room  []byte // for frames that are read
	fresh chan struct{}
	out   []byte
	wrote bool // since it was last cleared; the writer's

	mu     sync.Mutex
	subs   map[uint32]*sub
	failed error // of the reader
}

// sub is a namespace that the standby asked for.
type sub struct {
	subscription
	stream *stream // nil until it is known here and active
	cursor *cursor
	epoch  uint64
	sent   uint64 // up to this change
	acked  uint64
	first  bool      // the next batch begins a whole copy
	copied bool      // the whole copy, if one was needed, has been sent
	whole  uint64    // where the copy ended
	told   time.Time // of the state
	open   []sending
}

// sending is a batch that is not acknowledged.
type sending struct {
	seq uint64
	at  time.Time
}

// read takes what the standby says until the connection ends.
func (f *feed) read() {
	for {
		err := f.conn.SetReadDeadline(time.Now().Add(silence))
		var typ byte
		var body []byte
		if err == nil {
			typ, body, f.room, err = readFrame(f.in, f.room)
		}
		if err == nil {
			err = f.hear(typ, body)
		}
		if err != nil {
			f.mu.Lock()
			f.failed = err
			f.mu.Unlock()
			return
		}
	}
}

func (f *feed) hear(typ byte, body []byte) error {
	switch typ {
	case frameBeat:
		return nil
	case frameAck:
		a, err := decodeAck(body)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if s := f.subs[a.stream]; s != nil && s.epoch == a.epoch {
			s.acked = max(s.acked, a.seq)
			for len(s.open) > 0 && s.open[0].seq <= a.seq {
				s.open = s.open[1:]
			}
		}
		return nil
	case frameSubscribe:
		want, err := decodeSubscription(body)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, old := range f.subs {
			if old.netns == want.netns { // it starts over
				old.drop()
				delete(f.subs, id)
			}
		}
		if len(f.subs) == maxSubscriptions {
			return fmt.Errorf("more than %d subscriptions", maxSubscriptions)
		}
		f.subs[want.stream] = &sub{subscription: want}
		select {
		case f.fresh <- struct{}{}:
		default:
		}
		return nil
	}
	return errMalformed
}

// drop lets go of the table.
func (s *sub) drop() {
	if s.stream != nil {
		s.stream.mu.Lock()
		s.stream.table.close(s.cursor)
		s.stream.mu.Unlock()
		s.stream, s.cursor, s.open = nil, nil, nil
	}
}

func (f *feed) close() {
	f.group.mu.Lock()
	delete(f.group.feeds, f)
	f.group.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.subs {
		s.drop()
	}
}

// write sends what there is to send until the context or the connection ends.
func (f *feed) write(ctx context.Context) error {
	timer := time.NewTimer(rhythm.Until(beat))
	defer timer.Stop()
	for due := false; ; {
		active, stopped, news := f.group.sends()
		if stopped {
			return nil
		}
		f.wrote = false
		for more := active; more && ctx.Err() == nil; {
			var err error
			if more, err = f.round(); err != nil {
				return err
			}
		}
		if due && !f.wrote {
			if err := f.send(seal(frame(f.out, frameBeat))); err != nil {
				return err
			}
		}
		due = false
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-f.fresh:
		case <-timer.C:
			timer.Reset(rhythm.Until(beat))
			due = true
		}
	}
}

func (f *feed) send(b []byte) error {
	f.out, f.wrote = b, true
	if err := f.conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	_, err := f.conn.Write(b)
	return err
}

// round sends at most one frame for each subscription, and tells whether there
// may be more to send.
func (f *feed) round() (more bool, err error) {
	f.mu.Lock()
	subs := make([]*sub, 0, len(f.subs))
	for _, s := range f.subs {
		subs = append(subs, s)
	}
	f.mu.Unlock()
	for _, s := range subs {
		f.mu.Lock()
		b, left := f.collect(s)
		f.mu.Unlock()
		if b != nil {
			if err := f.send(b); err != nil {
				return false, err
			}
		}
		more = more || left
	}
	return more, nil
}

// collect builds the next frame of a subscription, or returns nil. The feed is locked.
func (f *feed) collect(s *sub) (b []byte, more bool) {
	if f.subs[s.subscription.stream] != s {
		return nil, false // another has replaced it meanwhile
	}
	if s.stream != nil && f.group.stream(s.netns) != s.stream {
		s.drop()
	}
	if s.stream == nil {
		if s.stream = f.group.stream(s.netns); s.stream == nil {
			return nil, false // not one of ours, or not yet
		}
		s.stream.mu.Lock()
		s.begin(s.subscription.epoch, s.subscription.seq)
	} else {
		s.stream.mu.Lock()
	}
	defer s.stream.mu.Unlock()
	t := s.stream.table
	if s.epoch != t.epoch || t.behind(s.cursor) {
		t.close(s.cursor)
		s.begin(0, 0)
	}
	h := batch{stream: s.subscription.stream, epoch: t.epoch, after: s.sent, first: s.first}
	n := 0
	changes := f.out[:0] // behind the header, whose flags are known later
	changes = appendBatch(frame(changes, frameBatch), &h)
	all := t.next(s.cursor, batchLimit, func(e *conntrack.Entry, left int64, dead bool) {
		if dead && !s.copied {
			return // it is not in the copy
		}
		changes = appendChange(changes, e, left, dead)
		n++
	})
	if n == 0 && all && s.copied {
		return f.tell(s, t), false
	}
	h.seq, h.last = s.cursor.seq, all && !s.copied
	appendBatch(frame(changes, frameBatch), &h) // over the first one
	if s.copied = s.copied || all; h.last {
		s.whole = h.seq
	}
	s.sent, s.first = h.seq, false
	s.open = append(s.open, sending{h.seq, time.Now()})
	s.stream.counts.sent.Add(uint64(n))
	return seal(changes), true
}

// begin places the cursor. The stream is locked.
func (s *sub) begin(epoch, seq uint64) {
	t := s.stream.table
	s.epoch, s.open = t.epoch, nil
	var upToDate bool
	if s.cursor, upToDate = t.read(epoch, seq); upToDate {
		s.sent, s.acked, s.first, s.copied, s.whole = seq, seq, false, true, seq
		return
	}
	s.sent, s.acked, s.first, s.copied, s.whole = 0, 0, true, false, 0
	s.stream.counts.resyncs.Add(1)
}

// tell says now and then what the standby should have.
func (f *feed) tell(s *sub, t *table) []byte {
	if time.Since(s.told) < beat/2 {
		return nil
	}
	s.told = time.Now()
	st := state{stream: s.subscription.stream, epoch: t.epoch, seq: s.sent, live: uint32(t.live), digest: t.digest}
	return seal(appendState(frame(f.out, frameState), &st))
}

// progress returns how many entries the standby is not known to have, how long
// the oldest change has been under way, and whether it has whole copies.
func (f *feed) progress(clock time.Time) (pending int, lag time.Duration, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	whole = len(f.subs) > 0
	for _, s := range f.subs {
		if s.stream == nil {
			whole = false
			continue
		}
		s.stream.mu.Lock()
		pending += s.stream.table.unread(s.acked, s.stream.table.live)
		s.stream.mu.Unlock()
		whole = whole && s.copied && s.acked >= s.whole
		if len(s.open) > 0 {
			lag = max(lag, clock.Sub(s.open[0].at))
		}
	}
	return pending, lag, whole
}
