// Package meter measures what passes through a node's attachments: bytes,
// connections, the ports that source NAT has used up, and what our filters
// drop. All of it is read from the kernel's own counters and tables.
package meter

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// every is how often counters are read that cost next to nothing.
	every = 5 * time.Second
	// share bounds what listing connections and filters takes: after a look
	// that took a second there is none for 50 seconds, 2 % of a processor.
	share = 50
)

// Place is where the traffic of an attachment is.
type Place struct {
	Attachment string
	Netns      string // "": the agent's own, shared with other attachments
	Tunnel     string // device
	ENI        string // device; "" on a function host
	// In the agent's own namespace, the traffic of Pods is the attachment's,
	// and from whatever source that to CIDRs.
	Pods  []Pair
	CIDRs []netip.Prefix
}

// Pair is a source and a destination.
type Pair struct{ Src, Dst netip.Prefix }

// Table is a namespace's connection tracking table.
type Table interface {
	Occupancy(ctx context.Context) (entries, limit int, err error)
	Dump(ctx context.Context, status conntrack.Status, f func(*conntrack.Entry)) error
	Close() error
}

// Options describes a Meter.
type Options struct {
	Host   kernel.Host
	Places func() []Place
	// Open opens the connection tracking table of a namespace.
	Open func(netns string) (Table, error)
	// Drops counts what filters in a namespace have dropped, by reason; nil
	// if nobody counts.
	Drops func(ctx context.Context, netns string) (map[string]uint64, error)
	Log   *slog.Logger
}

// Meter samples while it runs. Its methods are safe for concurrent use.
type Meter struct {
	opts Options
	now  func() time.Time

	mu      sync.Mutex
	last    Sample
	failing bool
	growth  growth
}

// New returns a Meter that Run starts.
func New(opts Options) *Meter {
	return &Meter{opts: opts, now: time.Now, growth: growth{}}
}

// Sample is what was read last. Parts that could not be read are missing.
type Sample struct {
	Attachments []Traffic
	Namespaces  []Namespace
}

// Traffic is what passes through one attachment on this node.
type Traffic struct {
	Attachment string
	Tunnel     *kernel.LinkStats // nil: no such device now
	ENI        *kernel.LinkStats // nil: no such device now, or none needed
	// Connections counts tracked flows of any state; -1 before they have
	// been listed.
	Connections int
}

// Namespace is what the attachments in one namespace share.
type Namespace struct {
	Netns      string // "": the agent's own
	Attachment string // the only one here; "" if it is shared
	Entries    int    // of the connection tracking table
	Limit      int    // 0: unknown
	Drops      map[string]uint64
	Sources    []Source
	Busiest    []Destination // most ports first

	connections map[string]int // by attachment
}

// Source is an address that connections are translated to.
type Source struct {
	Attachment  string
	Addr        netip.Addr
	Connections int
}

// Destination is a place that connections of an attachment from one source go
// to. The kernel translates to one source at most PortLimit connections for each.
type Destination struct {
	Attachment string
	Source     netip.Addr
	Protocol   uint8 // IPPROTO_*
	Addr       netip.AddrPort
	Ports      int // used
	// Exhausted is when none is left if their number goes on growing as it
	// does now; 0 if it does not grow.
	Exhausted time.Duration
}

// PortLimit is how many connections one source address carries to one
// destination: the ports 1024 to 65535 (nf_nat_l4proto_unique_tuple in
// net/netfilter/nf_nat_core.c).
const PortLimit = 64512

// Last returns the last sample. The caller must not change what it refers to.
func (m *Meter) Last() Sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// Take samples once, for a Meter that does not run. It lists all connections.
func (m *Meter) Take(ctx context.Context) Sample {
	places := m.opts.Places()
	return m.count(ctx, places, m.listAll(ctx, places))
}

// Run samples until the context ends.
func (m *Meter) Run(ctx context.Context) error {
	var dear time.Time // when connections and filters are looked at again
	var known map[string]Namespace
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		places := m.opts.Places()
		if start := m.now(); !start.Before(dear) {
			known = m.listAll(ctx, places)
			dear = m.now().Add(max(every, share*m.now().Sub(start)) - every/2)
		}
		s := m.count(ctx, places, known)
		m.mu.Lock()
		m.last = s
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// report says that reading fails, once, and that it works again.
func (m *Meter) report(err error) {
	switch {
	case err != nil && !m.failing:
		m.opts.Log.Warn("metrics of traffic are incomplete", "err", err)
	case err == nil && m.failing:
		m.opts.Log.Info("metrics of traffic are complete again")
	}
	m.failing = err != nil
}
