package traffic

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Flow is a long-lived TCP connection to a server's echo: numbers go out and
// must come back, each once and in order.
type Flow struct {
	// Answer is who the server said it is, and whom it saw.
	Answer Answer

	conn  net.Conn
	stop  chan struct{}
	tasks sync.WaitGroup

	mu     sync.Mutex
	report FlowReport
	heard  time.Time
}

// FlowReport is what became of a Flow so far.
type FlowReport struct {
	Sent, Returned uint64        // numbers
	LongestGap     time.Duration // between two that came back
	Err            error         // a reset, a wrong number; nil while it lives
}

// flowTick is how often a Flow sends.
const flowTick = 5 * time.Millisecond

// StartFlow connects from a machine and keeps talking until Stop.
func StartFlow(ctx context.Context, m *topo.Machine, server netip.Addr) (*Flow, error) {
	c, err := Dial(ctx, m, "tcp4", netip.AddrPortFrom(server, EchoPort).String())
	if err != nil {
		return nil, fmt.Errorf("%s: flow to %s: %w", m.Name, server, err)
	}
	reader := bufio.NewReader(c)
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetReadDeadline(deadline)
	}
	line, err := reader.ReadBytes('\n')
	f := &Flow{conn: c, stop: make(chan struct{}), heard: time.Now()}
	if err == nil {
		err = json.Unmarshal(line, &f.Answer)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: greeting of %s: %w", m.Name, server, err)
	}
	_ = c.SetReadDeadline(time.Time{})
	f.tasks.Go(f.send)
	f.tasks.Go(func() { f.receive(reader) })
	return f, nil
}

// Report tells what became of the flow so far.
func (f *Flow) Report() FlowReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.report
	r.LongestGap = max(r.LongestGap, time.Since(f.heard))
	return r
}

// Stop stops sending, waits until everything has come back or patience ends,
// closes the connection and returns the last report.
func (f *Flow) Stop(patience time.Duration) FlowReport {
	close(f.stop)
	_ = f.conn.SetDeadline(time.Now().Add(patience)) // the sender may be stuck, too
	f.tasks.Wait()
	_ = f.conn.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.report.Err == nil && f.report.Returned != f.report.Sent {
		f.report.Err = fmt.Errorf("%d of %d numbers came back", f.report.Returned, f.report.Sent)
	}
	return f.report
}

func (f *Flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.report.Err == nil {
		f.report.Err = err
	}
}

func (f *Flow) send() {
	ticker := time.NewTicker(flowTick)
	defer ticker.Stop()
	var word [8]byte
	for {
		select {
		case <-f.stop:
			if half, ok := f.conn.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			return
		case <-ticker.C:
		}
		f.mu.Lock()
		n := f.report.Sent
		f.report.Sent++
		f.mu.Unlock()
		binary.BigEndian.PutUint64(word[:], n)
		if _, err := f.conn.Write(word[:]); err != nil {
			f.fail(err)
			return
		}
	}
}

func (f *Flow) receive(reader io.Reader) {
	var word [8]byte
	for want := uint64(0); ; want++ {
		if _, err := io.ReadFull(reader, word[:]); err != nil {
			if err != io.EOF {
				f.fail(err)
			}
			return
		}
		if got := binary.BigEndian.Uint64(word[:]); got != want {
			f.fail(fmt.Errorf("number %d came back instead of %d", got, want))
			return
		}
		f.mu.Lock()
		now := time.Now()
		f.report.Returned++
		f.report.LongestGap = max(f.report.LongestGap, now.Sub(f.heard))
		f.heard = now
		f.mu.Unlock()
	}
}
