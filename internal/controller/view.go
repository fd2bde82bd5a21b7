package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

const (
	// retryMin and retryMax bound the wait between attempts to read a store
	// that is away.
	retryMin = 100 * time.Millisecond
	retryMax = 10 * time.Second
)

// view is the state of things at one revision. It is immutable.
type view struct {
	set    *intent.Set // what the store holds
	served *intent.Set // what nodes may see of it; nil: nothing yet
	held   string      // why served is not set, or not all of it
	lossy  bool        // held for a loss

	tombstones map[string]tombstone
	unreadable map[string]broken
	indexRev   int64
	// count is how many attachments the store holds, readable or not; lost
	// is how many it should hold in addition.
	count, lost int
	at          int64
	// newer is closed when there is a newer view.
	newer chan struct{}
}

// revisionOf returns the store's revision of an object's key; 0 if it is
// absent.
func (v *view) revisionOf(kind intent.Kind, name string) int64 {
	if b, ok := v.unreadable[objectKey(kind, name)]; ok {
		return b.revision
	}
	if o, ok := v.set.Get(kind, name); ok {
		return o.Meta().Revision
	}
	return 0
}

// confirmation asks to accept a loss.
type confirmation struct {
	lost chan<- []string // receives the names that are given up
}

// follow mirrors the store until the context ends.
func (c *Controller) follow(ctx context.Context) error {
	var g guard
	wait, away := retryMin, false
	for ctx.Err() == nil {
		err := c.readAndWatch(ctx, &g, func() {
			if away {
				c.log.Info("store is back", "store", c.store)
			}
			wait, away = retryMin, false
		})
		switch {
		case ctx.Err() != nil:
			continue // the end
		case errors.Is(err, store.ErrCompacted):
			c.log.Info("store is listed again", "store", c.store, "because", err)
			continue
		case !away:
			c.log.Warn("store is away; what was read stays in force", "store", c.store, "err", err)
		}
		away = true
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)): // jitter: ±50 %
		}
		wait = min(2*wait, retryMax)
	}
	return nil
}

// readAndWatch reads the whole store, calls back, and follows its changes until
// that fails.
func (c *Controller) readAndWatch(ctx context.Context, g *guard, read func()) error {
	entries, revision, err := c.store.Load(ctx)
	if err != nil {
		return err
	}
	read()
	c.mirror.load(entries, revision, c.log)
	c.publish(g)
	return c.watch(ctx, revision+1, g)
}

// watch follows changes. Events come from a goroutine of the store; they are
// handed over, so that the mirror has one owner.
func (c *Controller) watch(ctx context.Context, from int64, g *guard) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan []store.Event)
	result := make(chan error, 1)
	go func() {
		result <- c.store.Watch(ctx, from, func(e []store.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for {
		select {
		case e := <-events:
			c.mirror.apply(e, c.log)
			c.publish(g)
		case q := <-c.verify:
			lost := g.confirm(c.mirror.set)
			c.publish(g)
			q.lost <- lost
		case err := <-result:
			return err
		}
	}
}

// publish makes a view of the mirror, as far as the guard lets it.
func (c *Controller) publish(g *guard) {
	m := c.mirror
	count := m.attachments()
	wasHeld := g.held
	g.offer(m.set, count, m.index.Attachments)
	loss := g.reason(count)
	switch {
	case g.held && !wasHeld:
		c.log.Error("intent held back", "reason", loss)
	case !g.held && wasHeld:
		c.log.Info("intent is complete again, nothing is held back")
	}
	missing, _ := g.missing(count)
	v := &view{
		set: m.set, served: g.served, lossy: g.held,
		held:       strings.Join(nonEmpty(loss, m.problem()), "; "),
		tombstones: m.tombstones, unreadable: m.unreadable, indexRev: m.indexRev,
		count: count, lost: missing, at: m.at, newer: make(chan struct{}),
	}
	if old := c.view.Swap(v); old != nil {
		close(old.newer)
	} else {
		close(c.first)
	}
}

func nonEmpty(list ...string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// reach waits until the view reflects a revision.
func (c *Controller) reach(ctx context.Context, revision int64) error {
	for {
		v, err := c.current()
		if err != nil {
			return err
		}
		if v.at >= revision {
			return nil
		}
		select {
		case <-v.newer:
		case <-ctx.Done():
			return fmt.Errorf("stored as revision %d, but not seen yet: %w", revision, context.Cause(ctx))
		}
	}
}
