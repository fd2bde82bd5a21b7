package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

const (
	// persistence bounds how long a write is worked out anew because other
	// controllers were faster.
	persistence = 15 * time.Second
	// A tombstone is kept for tombstoneAge, so that nodes that were away
	// learn of the deletion; more than tombstoneMax are not kept.
	tombstoneAge = time.Hour
	tombstoneMax = 1000
	// sweep is how often old tombstones are looked for, and sweepMax how
	// many are forgotten at once: fewer than a transaction's limit.
	sweep    = 5 * time.Minute
	sweepMax = 100
)

// commit stores what work makes of the newest view, and returns the revision
// and the view that it was made of. If the store moves on meanwhile, work is
// called again. A transaction without operations stores nothing.
func (c *Controller) commit(ctx context.Context, work func(*view) (transaction, error)) (int64, *view, error) {
	select {
	case c.write <- struct{}{}:
		defer func() { <-c.write }()
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
	for start := time.Now(); time.Since(start) < persistence; {
		v, err := c.current()
		if err != nil {
			return 0, nil, err
		}
		t, err := work(v)
		if err != nil && c.outdated(ctx, v) {
			if err := newer(ctx, v); err != nil {
				return 0, nil, err
			}
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		if len(t.ops) == 0 && !t.reindex {
			return v.set.Revision, v, nil
		}
		revision, err := c.send(ctx, v, t)
		if errors.Is(err, store.ErrConflict) {
			if err := newer(ctx, v); err != nil {
				return 0, nil, err
			}
			continue
		}
		if err != nil {
			return 0, nil, fmt.Errorf("%w; it may be stored all the same, repeating is safe", err)
		}
		return revision, v, c.reach(ctx, revision)
	}
	return 0, nil, connect.NewError(connect.CodeAborted, fmt.Errorf("other controllers changed the store without pause for %v; try again", persistence))
}

// outdated tells whether another controller has written since the view: then
// what is missing may be there, and what is taken may be free. A store that
// does not answer knows no better than the view.
func (c *Controller) outdated(ctx context.Context, v *view) bool {
	_, err := c.store.Txn(ctx, []store.Compare{{Key: indexKey, Revision: v.indexRev}}, nil)
	return errors.Is(err, store.ErrConflict)
}

// send writes a transaction together with the index, whose revision makes it
// one of a sequence: what was checked against the view holds for the store, and
// allocations are unique among all controllers.
func (c *Controller) send(ctx context.Context, v *view, t transaction) (int64, error) {
	b, err := json.Marshal(index{Attachments: v.count + v.lost + t.added})
	if err != nil {
		return 0, fmt.Errorf("encode the index: %w", err)
	}
	return c.store.Txn(ctx,
		append(slices.Clone(t.conditions), store.Compare{Key: indexKey, Revision: v.indexRev}),
		append(slices.Clone(t.ops), store.Op{Key: indexKey, Value: b}))
}

// newer waits for a view after v. If there is none soon, the store is away, or
// was changed by hand without the index.
func newer(ctx context.Context, v *view) error {
	select {
	case <-v.newer:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(retryMax):
		return connect.NewError(connect.CodeUnavailable, errors.New("the store has changed, but does not tell how; try again"))
	}
}

// forgetTombstones removes old tombstones until the context ends.
func (c *Controller) forgetTombstones(ctx context.Context) error {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.sweepTombstones(ctx); err != nil && ctx.Err() == nil {
			c.log.Debug("old tombstones stay for now", "err", err)
		}
	}
}

func (c *Controller) sweepTombstones(ctx context.Context) error {
	_, _, err := c.commit(ctx, func(v *view) (transaction, error) {
		var t transaction
		for _, name := range c.expired(v) {
			t.ops = append(t.ops, store.Op{Key: removedDir + name, Delete: true})
		}
		return t, nil
	})
	return err
}

// expired lists tombstones to forget, the oldest first.
func (c *Controller) expired(v *view) []string {
	names := make([]string, 0, len(v.tombstones))
	for name := range v.tombstones {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := v.tombstones[a].RemovedAt.Compare(v.tombstones[b].RemovedAt); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	n := max(0, len(names)-tombstoneMax)
	for n < len(names) && c.now().Sub(v.tombstones[names[n]].RemovedAt) > tombstoneAge {
		n++
	}
	return names[:min(n, sweepMax)]
}

// concerned names the nodes that have a part in an attachment.
func concerned(set *intent.Set, a *intent.Attachment) (functions, proxies []string) {
	for _, n := range set.Nodes {
		if a.Uses(n) {
			functions = append(functions, n.ObjectName())
		}
	}
	for _, g := range set.GroupsOf(a) {
		for _, m := range g.Spec.Members {
			proxies = append(proxies, m.Node)
		}
	}
	return functions, proxies
}
