package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// probeEvery is the pause between two requests of a pod.
	probeEvery = 40 * time.Millisecond
	// probeLimit ends a request, so that the next is a new connection.
	probeLimit = 700 * time.Millisecond
)

// probe is a pod that asks its server again and again, by new connections and
// by one that lives.
type probe struct {
	*topo.Machine
	tenant string
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex
	begun   time.Time // of the period that is looked at
	last    time.Time // answer
	longest time.Duration
	asked   int
	failed  int
	failure error // the last
	wrong   error // an answer that must not be; the first
	flow    *traffic.Flow
}

func startProbe(m *topo.Machine, tenant string) *probe {
	ctx, cancel := context.WithCancel(context.Background())
	p := &probe{Machine: m, tenant: tenant, cancel: cancel, last: time.Now(), begun: time.Now()}
	p.tasks.Go(func() { p.ask(ctx) })
	return p
}

func (p *probe) ask(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		attempt, stop := context.WithTimeout(ctx, probeLimit)
		answer, err := traffic.Get(attempt, p.Machine, topo.ServerAddress)
		stop()
		if ctx.Err() == nil {
			p.note(answer, err)
		}
	}
}

func (p *probe) note(answer traffic.Answer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if err != nil {
		p.failed++
		p.failure = err
		return
	}
	now := time.Now()
	p.longest = max(p.longest, now.Sub(p.last))
	p.last = now
	if answer.Server != p.tenant && p.wrong == nil {
		p.wrong = fmt.Errorf("%s of %s was answered by %s", p.Name, p.tenant, answer.Server)
	}
}

// well tells whether the last request was answered just now, and sees to it
// that a connection lives.
func (p *probe) well() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ago := time.Since(p.last); ago > 10*probeEvery {
		return fmt.Errorf("%s has had no answer for %v: %w", p.Name, ago.Round(time.Millisecond), p.failure)
	}
	if p.flow != nil && p.flow.Report().Err == nil {
		return nil
	}
	if p.flow != nil {
		p.flow.Stop(0)
		p.flow = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	flow, err := traffic.StartFlow(ctx, p.Machine, topo.ServerAddress)
	if err != nil {
		return err
	}
	p.flow = flow
	return nil
}

// begin starts the period that outcome reports on.
func (p *probe) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun, p.last, p.longest, p.asked, p.failed, p.failure = time.Now(), time.Now(), 0, 0, 0, nil
}

// outcome is what a pod has seen since begin.
type outcome struct {
	pod, tenant string
	stall       time.Duration // the longest time without an answer
	broken      error         // what became of its connection
	wrong       error
}

func (p *probe) outcome() outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := outcome{pod: p.Name, tenant: p.tenant, stall: max(p.longest, time.Since(p.last)), wrong: p.wrong}
	if p.flow == nil {
		o.broken = errors.New("there was none")
	} else {
		o.broken = p.flow.Report().Err
	}
	p.wrong = nil
	return o
}

func (p *probe) stop() {
	p.cancel()
	p.tasks.Wait()
	if p.flow != nil {
		p.flow.Stop(0)
	}
}
