package session

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

// How soon a member is called again, at first and at most.
const (
	redialFirst = 200 * time.Millisecond
	redialMost  = 5 * time.Second
)

// dial follows one member's sessions until the context ends.
func (g *group) dial(ctx context.Context, m Member, namespaces []string) {
	wait, failed := redialFirst, false
	log := g.log.With("member", m.Node)
	for ctx.Err() == nil {
		began := time.Now()
		err := g.follow(ctx, m, namespaces, func() {
			if failed {
				log.Info("connected for session replication")
			}
			failed = false
		})
		g.setCopy(m.Node, false)
		if ctx.Err() != nil {
			return
		}
		if !failed {
			log.Warn("not connected for session replication; trying again", "address", m.Address, "err", err)
			failed = true
		}
		if time.Since(began) > redialMost {
			wait = redialFirst
		}
		pause(ctx, wait)
		wait = min(2*wait, redialMost)
	}
}

func (g *group) setCopy(node string, whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if whole {
		g.copyOf[node] = true
	} else {
		delete(g.copyOf, node)
	}
}

// follower is one connection to a member.
type follower struct {
	group   *group
	node    string
	conn    net.Conn
	changes []change
	// streams have a new number after each subscription: what was under way
	// under an old one is ignored.
	streams map[uint32]*stream
	next    uint32

	mu  sync.Mutex // of writing
	out []byte
}

func (g *group) follow(ctx context.Context, m Member, namespaces []string, connected func()) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: handshake}, Config: g.opts.Credentials.Client(m.Node)}
	opening, cancel := context.WithTimeout(ctx, handshake)
	conn, err := d.DialContext(opening, "tcp", m.Address.String())
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	f := &follower{group: g, node: m.Node, conn: conn, streams: map[uint32]*stream{}}
	if err := f.send(frameHello, func(b []byte) []byte { return appendHello(b, g.name) }); err != nil {
		return err
	}
	for _, netns := range namespaces {
		if err := f.subscribe(g.open(netns)); err != nil {
			return err
		}
	}
	connected()
	ctx, cancel = context.WithCancel(ctx)
	var beating sync.WaitGroup
	defer beating.Wait()
	defer cancel()
	beating.Go(func() { f.beat(ctx) })
	in := bufio.NewReaderSize(conn, maxFrame)
	var room []byte
	for {
		if err := conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		var typ byte
		var body []byte
		if typ, body, room, err = readFrame(in, room); err != nil {
			return err
		}
		if err := f.hear(ctx, typ, body); err != nil {
			return err
		}
	}
}

func (f *follower) send(typ byte, body func([]byte) []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = seal(body(frame(f.out, typ)))
	if err := f.conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	_, err := f.conn.Write(f.out)
	return err
}

func (f *follower) subscribe(s *stream) error {
	f.next++
	f.streams[f.next] = s
	want := subscription{stream: f.next, netns: s.netns}
	want.epoch, want.seq = s.have()
	return f.send(frameSubscribe, func(b []byte) []byte { return appendSubscription(b, &want) })
}

// beat says that this side is alive; a connection that takes nothing is closed.
func (f *follower) beat(ctx context.Context) {
	for pause(ctx, rhythm.Until(beat)) {
		if f.send(frameBeat, func(b []byte) []byte { return b }) != nil {
			_ = f.conn.Close()
			return
		}
	}
}

func (f *follower) hear(ctx context.Context, typ byte, body []byte) error {
	switch typ {
	case frameBeat:
		return nil
	case frameBatch:
		b, err := decodeBatch(body, f.changes[:0])
		if err != nil {
			return err
		}
		f.changes = b.changes
		return f.take(ctx, &b)
	case frameState:
		st, err := decodeState(body)
		if err != nil {
			return err
		}
		if s := f.streams[st.stream]; s != nil && !s.check(&st) {
			f.group.log.Warn("the copy of a member's sessions differs and is made anew", "member", f.node, "netns", s.netns)
			return f.restart(st.stream)
		}
		return nil
	}
	return errMalformed
}

// restart asks for a whole copy.
func (f *follower) restart(id uint32) error {
	s := f.streams[id]
	delete(f.streams, id)
	s.counts.resyncs.Add(1)
	s.stand()
	return f.subscribe(s)
}

func (f *follower) take(ctx context.Context, b *batch) error {
	s := f.streams[b.stream]
	if s == nil {
		return nil
	}
	err := s.apply(ctx, b)
	switch {
	case errors.Is(err, errGap):
		return f.restart(b.stream)
	case err != nil:
		return err
	}
	if b.last {
		f.group.setCopy(f.node, f.whole())
	}
	a := ack{stream: b.stream, epoch: b.epoch, seq: b.seq}
	return f.send(frameAck, func(out []byte) []byte { return appendAck(out, &a) })
}

// whole tells whether there is a whole copy of every namespace.
func (f *follower) whole() bool {
	for _, s := range f.streams {
		s.mu.Lock()
		whole := s.from.whole
		s.mu.Unlock()
		if !whole {
			return false
		}
	}
	return true
}
