// Package natlog keeps a log of the connections that a node translates: who
// opened each, as whom the other side saw it, when, and how much passed. It
// answers whose connection an address and port was at some time.
//
// On a function host the opener is a pod, and the translated source the host's
// tunnel address; on a proxy the opener is that tunnel address, and the
// translated source what the user VPC sees.
package natlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/meter"
)

const (
	// settle is how often it is looked whether namespaces have come or gone.
	settle = time.Second
	// gulp is how many events are read at once: a reader that wakes up at
	// each costs the packets more than the event.
	gulp = 4096
	// rest lets events gather.
	rest = 50 * time.Millisecond
)

// Event is what a record tells of.
type Event string

// The events. Lost stands for records that are missing, Count of them: more
// than the rate allows, or more than the kernel kept (Count is 0 then).
const (
	Start Event = "start"
	End   Event = "end"
	Lost  Event = "lost"
)

// Record is one line of the log.
type Record struct {
	Time       time.Time      `json:"time"`
	Event      Event          `json:"event"`
	Attachment string         `json:"attachment,omitempty"`
	Protocol   string         `json:"protocol,omitempty"`
	Source     netip.AddrPort `json:"source,omitzero"` // of the opener, before translation
	To         netip.AddrPort `json:"to,omitzero"`
	Translated netip.AddrPort `json:"translated,omitzero"` // the source after translation
	OutBytes   uint64         `json:"outBytes,omitempty"`  // from the opener; of ended connections
	InBytes    uint64         `json:"inBytes,omitempty"`
	Count      uint64         `json:"count,omitempty"`
}

// Listener tells of new and of ended flows of a namespace.
type Listener interface {
	Wait(ctx context.Context) error
	DrainFlows(limit int, f func(e *conntrack.Entry, ended bool)) (int, error)
	Close() error
}

// Options describes a Log.
type Options struct {
	Directory string
	Size      int64  // bytes that the log may take
	Rate      uint32 // records a second
	// Places says where the attachments' connections are.
	Places func() []meter.Place
	// Listen begins to listen in a namespace; "" is the agent's own.
	Listen func(netns string) (Listener, error)
	Log    *slog.Logger
}

// Log follows the connections of a node while it runs. Its methods are safe for
// concurrent use.
type Log struct {
	opts    Options
	files   *files
	now     func() time.Time
	look    chan struct{} // buffered, 1: the places may be others
	written atomic.Uint64
	left    atomic.Uint64 // out, for the rate's sake

	mu     sync.Mutex
	second int64 // that budget is of
	budget uint32
	told   uint64 // of left, in the log
}

// New opens the log.
func New(opts Options) (*Log, error) {
	f, err := openFiles(opts.Directory, opts.Size)
	if err != nil {
		return nil, fmt.Errorf("natLog.directory: %w", err)
	}
	return &Log{opts: opts, files: f, now: time.Now, look: make(chan struct{}, 1)}, nil
}

// Stats counts since the start: records written, and left out for the rate's
// sake.
func (l *Log) Stats() (written, left uint64) { return l.written.Load(), l.left.Load() }

// Look has the places looked at now: a connection that is opened before anybody
// listens is not logged.
func (l *Log) Look() {
	select {
	case l.look <- struct{}{}:
	default:
	}
}

// Run follows the connections of all namespaces until the context ends, then
// closes the log.
func (l *Log) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var listeners sync.WaitGroup
	following := map[string]context.CancelFunc{}
	var mu sync.Mutex
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		wanted := map[string]bool{}
		for _, p := range l.opts.Places() {
			wanted[p.Netns] = true
		}
		mu.Lock()
		for netns, stop := range following {
			if !wanted[netns] {
				stop()
			}
		}
		for netns := range wanted {
			if following[netns] != nil {
				continue
			}
			inside, stop := context.WithCancel(ctx)
			following[netns] = stop
			listeners.Go(func() {
				l.follow(inside, netns)
				stop()
				mu.Lock()
				delete(following, netns) // tried again at the next tick
				mu.Unlock()
			})
		}
		mu.Unlock()
		l.overflow()
		if err := l.files.flush(); err != nil && ctx.Err() == nil {
			l.opts.Log.Warn("the NAT log cannot be written; connections are not logged", "err", err)
		}
		select {
		case <-ctx.Done():
			listeners.Wait()
			l.overflow()
			return l.files.close()
		case <-l.look:
		case <-tick.C:
		}
	}
}

// follow logs the connections of one namespace until the context or the
// namespace ends.
func (l *Log) follow(ctx context.Context, netns string) {
	listener, err := l.opts.Listen(netns)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.opts.Log.Warn("connections are not logged", "netns", netns, "err", err)
		}
		return
	}
	defer func() { _ = listener.Close() }()
	for {
		err := listener.Wait(ctx)
		if err == nil {
			_, err = l.drain(listener, netns)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, conntrack.ErrLost):
			l.write(&Record{Time: l.now(), Event: Lost})
		case err != nil:
			l.opts.Log.Warn("connections are not logged", "netns", netns, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

func (l *Log) drain(listener Listener, netns string) (int, error) {
	owner := meter.Owners(netns, l.opts.Places())
	return listener.DrainFlows(gulp, func(e *conntrack.Entry, ended bool) {
		name, ok := owner.Of(e)
		if !ok {
			return
		}
		r := recordOf(name, e)
		r.Time, r.Event = l.now(), Start
		if ended {
			r.Event, r.OutBytes, r.InBytes = End, e.OrigBytes, e.ReplyBytes
		}
		if l.allowed(r.Time) {
			l.write(&r)
		}
	})
}

func recordOf(attachment string, e *conntrack.Entry) Record {
	return Record{
		Attachment: attachment, Protocol: meter.ProtocolName(e.Orig.Proto),
		Source: e.Orig.Source(), To: e.Orig.Destination(), Translated: e.Reply.Destination(),
	}
}

// allowed takes one record off this second's budget.
func (l *Log) allowed(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if second := now.Unix(); second != l.second {
		l.second, l.budget = second, l.opts.Rate
	}
	if l.budget == 0 {
		l.left.Add(1)
		return false
	}
	l.budget--
	return true
}

// overflow writes how many records were left out since it was called last.
func (l *Log) overflow() {
	left := l.left.Load()
	l.mu.Lock()
	n := left - l.told
	l.told = left
	l.mu.Unlock()
	if n > 0 {
		l.write(&Record{Time: l.now(), Event: Lost, Count: n})
	}
}

func (l *Log) write(r *Record) {
	l.files.append(r)
	l.written.Add(1)
}
