package echo

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// answerRate bounds the answers of a namespace, by second: some tens of
	// measurements at once, and a twentieth of a processor.
	answerRate = 2000
	// maxSessions is how many measurements are counted at once; an older one
	// begins again at 0.
	maxSessions = 256
	// reopen is the wait before a namespace that could not be entered, or has
	// gone, is tried again.
	reopen = time.Second
	// maxPacket is IP's largest, and far more than any tunnel carries.
	maxPacket = 1 << 16
)

// Responder answers measurements that other nodes make through this one's tunnels.
// It answers only what came out of a tunnel of ours, to where that came from, and
// costs other packets nothing.
type Responder struct {
	host kernel.Host
	log  *slog.Logger

	mu      sync.Mutex
	wanted  map[string]bool
	changed chan struct{} // buffered, 1
}

// NewResponder returns a Responder that answers nowhere yet.
func NewResponder(h kernel.Host, log *slog.Logger) *Responder {
	return &Responder{host: h, log: log, changed: make(chan struct{}, 1)}
}

// Follow says in which namespaces there are tunnels. They need not exist yet. It
// does not wait, and is safe for concurrent use.
func (r *Responder) Follow(netns map[string]bool) {
	r.mu.Lock()
	r.wanted = netns
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run answers until the context ends.
func (r *Responder) Run(ctx context.Context) {
	following := map[string]context.CancelFunc{}
	var running sync.WaitGroup
	defer running.Wait()
	for {
		select {
		case <-ctx.Done():
			return // the contexts of those that follow are of this one
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
				})
			}
		}
	}
}

// follow answers in one namespace, which may come and go.
func (r *Responder) follow(ctx context.Context, netns string) {
	failing := false
	for ctx.Err() == nil {
		var s *socket
		closed, err := r.host.Keep(ctx, netns, func() (_ io.Closer, err error) {
			s, err = open(0)
			return s, err
		})
		switch {
		case err == nil:
			if failing {
				r.log.Info("measurements by other nodes are answered again", "netns", netns)
			}
			failing = false
			s.serve()
			<-closed
		case !errors.Is(err, kernel.ErrNotFound) && !failing && ctx.Err() == nil: // otherwise it is yet to be made
			failing = true
			r.log.Warn("measurements by other nodes are not answered: their netcheck will say that this one is silent", "netns", netns, "err", err)
		}
		t := time.NewTimer(reopen)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// serve answers until the socket is closed.
func (s *socket) serve() {
	b := make([]byte, maxPacket)
	c := counts{n: map[session]uint32{}}
	for {
		n, from, err := s.receive(b)
		if err != nil {
			_ = s.Close()
			return
		}
		p, ok := decode(b[:n])
		if !ok || p.kind == answer || !c.may(time.Now()) || !strings.HasPrefix(s.device(from.device), desired.LinkPrefix) {
			continue
		}
		a, octets := c.answer(p, n, from)
		_ = s.send(a.encode(octets), from) // one that cannot be sent is lost
	}
}

// session is a measurement by somebody.
type session struct {
	from   origin
	number uint64
}

// counts is what has come.
type counts struct {
	n     map[session]uint32
	order []session // the oldest first

	second time.Time
	budget int
}

// may tells whether the rate allows an answer.
func (c *counts) may(now time.Time) bool {
	if now.Sub(c.second) >= time.Second {
		c.second, c.budget = now, answerRate
	}
	c.budget--
	return c.budget >= 0
}

// answer counts a request of so many octets, and returns its answer and how large
// that is to be.
func (c *counts) answer(p packet, octets int, from origin) (packet, int) {
	key := session{from, p.session}
	if p.kind == request {
		if _, known := c.n[key]; !known {
			if len(c.order) == maxSessions {
				delete(c.n, c.order[0])
				c.order = c.order[1:]
			}
			c.order = append(c.order, key)
		}
		c.n[key]++
	}
	a := packet{kind: answer, size: uint16(min(octets, maxPacket-1)), session: p.session, seq: p.seq, count: c.n[key]} //nolint:gosec // bounded
	return a, int(p.size)
}
