package iptables

import (
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Pauses between two moves of one jump; the package comment states the policy.
const (
	firstPause = time.Second
	lastPause  = 10 * time.Minute
	// fightPause is the pause from which on another program is said to
	// fight: the fourth move within seconds.
	fightPause = 8 * firstPause
)

// pace bounds how often jumps are moved. It is safe for concurrent use.
type pace struct {
	mu    sync.Mutex
	moves map[seat]move
}

type seat struct {
	netns string
	nat.Key
}

type move struct {
	at    time.Time
	pause time.Duration // before the next
}

// due says whether a jump may be moved at a time.
func (p *pace) due(s seat, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.moves[s]
	return !ok || !now.Before(m.at.Add(m.pause))
}

// moved notes a move and returns the pause until the next one.
func (p *pace) moved(s seat, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.moves[s]
	if !ok || now.Sub(m.at) > 2*m.pause+time.Minute {
		m.pause = firstPause
	} else {
		m.pause = min(2*m.pause, lastPause)
	}
	m.at = now
	if p.moves == nil {
		p.moves = map[seat]move{}
	}
	p.moves[s] = m
	return m.pause
}

// forget drops what is known of a namespace.
func (p *pace) forget(netns string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.moves {
		if s.netns == netns {
			delete(p.moves, s)
		}
	}
}
