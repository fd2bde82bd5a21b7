package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// CrowdPort is where a Crowd's server listens.
const CrowdPort = 7007

// Crowd is many long-lived TCP connections. Each asks now and then, and waits for
// its answer before it asks again.
type Crowd struct {
	listener net.Listener
	flows    []*member
	every    time.Duration
	stop     chan struct{}
	tasks    sync.WaitGroup

	mu       sync.Mutex
	accepted []net.Conn
}

// member is one connection of a Crowd.
type member struct {
	conn net.Conn

	mu      sync.Mutex
	asked   time.Time // zero: nothing is being asked
	began   time.Time // the last question that was answered
	n       uint64
	longest time.Duration
	err     error
}

// CrowdReport is what became of a Crowd so far.
type CrowdReport struct {
	Flows, Resets, Errors int
	FirstError            error
	Answers               uint64
	// Median and Longest are of each connection's longest wait for an answer.
	Median, Longest time.Duration
}

const (
	// crowdDialers is how many connect at once.
	crowdDialers = 4
	// crowdPace is the time between two connections: a machine with one
	// processor has more to do than to connect.
	crowdPace = 3 * time.Millisecond
	// crowdPatience is how long a connection may take to be made.
	crowdPatience = 20 * time.Second
)

// StartCrowd opens n connections from a client to an address of a server, and
// has each ask at every interval until Stop.
func StartCrowd(ctx context.Context, client, server *topo.Machine, address netip.Addr, n int, every time.Duration) (*Crowd, error) {
	c := &Crowd{stop: make(chan struct{}), every: every}
	err := server.InNetwork(func() (err error) {
		c.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", fmt.Sprintf(":%d", CrowdPort))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: serve a crowd: %w", server.Name, err)
	}
	c.tasks.Go(c.accept)
	if err := c.dial(ctx, client, netip.AddrPortFrom(address, CrowdPort).String(), n); err != nil {
		c.Stop()
		return nil, err
	}
	for _, m := range c.flows {
		c.tasks.Go(m.receive)
	}
	c.tasks.Go(c.ask)
	return c, nil
}

// dial opens the connections, all from a few threads: entering a machine costs
// more than connecting.
func (c *Crowd) dial(ctx context.Context, client *topo.Machine, address string, n int) error {
	var next atomic.Int64
	var dialing sync.WaitGroup
	errs := make([]error, crowdDialers)
	pace := time.NewTicker(crowdPace)
	defer pace.Stop()
	for i := range crowdDialers {
		dialing.Go(func() {
			errs[i] = client.InNetwork(func() error {
				for next.Add(1) <= int64(n) {
					<-pace.C
					conn, err := (&net.Dialer{Timeout: crowdPatience}).DialContext(ctx, "tcp4", address)
					if err != nil {
						return err
					}
					c.mu.Lock()
					c.flows = append(c.flows, &member{conn: conn})
					c.mu.Unlock()
				}
				return nil
			})
		})
	}
	dialing.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: connection %d of a crowd: %w", client.Name, len(c.flows)+1, err)
	}
	return nil
}

func (c *Crowd) accept() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.accepted = append(c.accepted, conn)
		c.mu.Unlock()
		c.tasks.Go(func() {
			var word [8]byte
			for {
				if _, err := io.ReadFull(conn, word[:]); err != nil {
					return
				}
				if _, err := conn.Write(word[:]); err != nil {
					return
				}
			}
		})
	}
}

// ask has the connections ask in turn, evenly spread over the interval.
func (c *Crowd) ask() {
	const tick = 10 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	due, at := 0.0, 0
	for {
		select {
		case <-c.stop:
			return
		case <-ticker.C:
		}
		for due += float64(len(c.flows)) * float64(tick) / float64(c.every); due >= 1; due-- {
			c.flows[at].ask()
			at = (at + 1) % len(c.flows)
		}
	}
}

func (m *member) ask() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.asked.IsZero() || m.err != nil {
		return
	}
	var word [8]byte
	binary.BigEndian.PutUint64(word[:], m.n)
	m.asked = time.Now()
	if _, err := m.conn.Write(word[:]); err != nil {
		m.err = err
	}
}

func (m *member) receive() {
	var word [8]byte
	for {
		_, err := io.ReadFull(m.conn, word[:])
		m.mu.Lock()
		if err == nil && (m.asked.IsZero() || binary.BigEndian.Uint64(word[:]) != m.n) {
			err = fmt.Errorf("answer %d to question %d", binary.BigEndian.Uint64(word[:]), m.n)
		}
		if err != nil {
			if m.err == nil && !errors.Is(err, net.ErrClosed) {
				m.err = err
			}
			m.mu.Unlock()
			return
		}
		m.longest = max(m.longest, time.Since(m.asked))
		m.began, m.asked = m.asked, time.Time{}
		m.n++
		m.mu.Unlock()
	}
}

// Answered tells how many connections have had an answer to a question that was asked
// after a moment.
func (c *Crowd) Answered(since time.Time) (n int) {
	for _, m := range c.flows {
		m.mu.Lock()
		if m.began.After(since) {
			n++
		}
		m.mu.Unlock()
	}
	return n
}

// Forget begins the measurement of waits anew.
func (c *Crowd) Forget() {
	for _, m := range c.flows {
		m.mu.Lock()
		m.longest = 0
		m.mu.Unlock()
	}
}

// Report tells what became of the connections so far.
func (c *Crowd) Report() CrowdReport {
	r := CrowdReport{Flows: len(c.flows)}
	waits := make([]time.Duration, 0, len(c.flows))
	for _, m := range c.flows {
		m.mu.Lock()
		longest, err := m.longest, m.err
		if !m.asked.IsZero() {
			longest = max(longest, time.Since(m.asked))
		}
		r.Answers += m.n
		m.mu.Unlock()
		waits = append(waits, longest)
		if err == nil {
			continue
		}
		r.Errors++
		if r.FirstError == nil {
			r.FirstError = err
		}
		if errors.Is(err, unix.ECONNRESET) {
			r.Resets++
		}
	}
	if slices.Sort(waits); len(waits) > 0 {
		r.Median, r.Longest = waits[len(waits)/2], waits[len(waits)-1]
	}
	return r
}

// Stop ends all connections with a reset, so that their ports are free for the
// next crowd at once.
func (c *Crowd) Stop() {
	close(c.stop)
	_ = c.listener.Close()
	for _, m := range c.flows {
		abort(m.conn)
	}
	c.mu.Lock()
	for _, conn := range c.accepted {
		abort(conn)
	}
	c.mu.Unlock()
	c.tasks.Wait()
}

func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
