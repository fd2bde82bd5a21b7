package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

func (t *typed[S, K, V]) unbuilt() barrier {
	b := barrier{}
	for _, o := range t.pending {
		if o.op != Delete && o.open() {
			b.add(o.wantGroup, o.describe(t.b.name))
		}
	}
	return b
}

// unrazed counts repairs too: what is there still may rest on what the repair
// would let go of.
func (t *typed[S, K, V]) unrazed() barrier {
	b := barrier{}
	for _, o := range t.pending {
		if o.op != Create && o.open() {
			b.add(o.haveGroup, o.describe(t.b.name))
		}
	}
	return b
}

func (p *pending) describe(kind string) error {
	return fmt.Errorf("%s %s: %w", kind, p.text, p.err)
}

func (t *typed[S, K, V]) hasten(at time.Time, gap time.Duration) {
	for _, o := range t.pending {
		if o.attempts == 0 {
			continue
		}
		soonest := o.last.Add(gap)
		if soonest.Before(at) {
			soonest = at
		}
		if soonest.Before(o.next) {
			o.next = soonest
		}
	}
}

func (t *typed[S, K, V]) nextRetry() (time.Time, bool) {
	if t.b.listErr != nil {
		return t.b.listNext, true
	}
	var at time.Time
	found := false
	for _, o := range t.pending {
		if o.attempts > 0 && (!found || o.next.Before(at)) {
			at, found = o.next, true
		}
	}
	return at, found
}

func (t *typed[S, K, V]) waiting() bool {
	for _, o := range t.pending {
		if o.held {
			return true
		}
	}
	return false
}

// sorted returns the pending objects, failures before those that wait.
func (t *typed[S, K, V]) sorted() []*pending {
	out := make([]*pending, 0, len(t.pending))
	for _, o := range t.pending {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *pending) int {
		if a.held != b.held {
			if b.held {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.text, b.text)
	})
	return out
}

func (t *typed[S, K, V]) status() KindStatus {
	s := KindStatus{
		Name: t.b.name, Wanted: len(t.want), Actual: len(t.have), Pending: len(t.pending),
		ListErr: t.b.listErr, ListedAt: t.b.listedAt,
	}
	for i, o := range t.sorted() {
		if i == maxObjects {
			break
		}
		s.Objects = append(s.Objects, ObjectStatus{
			Object: o.key, Key: o.text, Op: o.op, Err: o.err, Waiting: o.held, Attempts: o.attempts, Since: o.since, Next: o.next,
		})
	}
	return s
}

func (t *typed[S, K, V]) pendingErrors(limit int) []error {
	var errs []error
	for _, o := range t.sorted() {
		if len(errs) == limit {
			break
		}
		errs = append(errs, fmt.Errorf("%s %s %s: %w", o.op, t.b.name, o.text, o.err))
	}
	return errs
}

func (t *typed[S, K, V]) plan(ctx context.Context, s S) (first, makes, breaks []Change, err error) {
	want := t.sel(s)
	have, err := t.look(ctx, want)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list %s: %w", t.b.name, err)
	}
	if t.live {
		want = t.sel(s)
	}
	dry := &typed[S, K, V]{b: base{name: t.b.name}, kind: t.kind, conflicts: t.conflicts, want: want, have: have}
	doomed := map[K]bool{}
	changes := compare(t.kind, want, have)
	for _, c := range changes {
		if c.op == Delete {
			continue
		}
		victims, err := dry.victims(c)
		if err != nil {
			c.reason += "; " + err.Error()
		}
		for _, v := range victims {
			if !doomed[v.key] {
				doomed[v.key] = true
				first = append(first, v.erase(t.b.name, true))
			}
		}
		makes = append(makes, c.erase(t.b.name, false))
	}
	for _, c := range changes {
		if c.op == Delete && !doomed[c.key] {
			breaks = append(breaks, c.erase(t.b.name, false))
		}
	}
	return first, makes, breaks, nil
}

func (c change[K, V]) erase(kind string, disruptive bool) Change {
	out := Change{Kind: kind, Op: c.op, Key: c.key, Reason: c.reason, Disruptive: disruptive}
	if c.op != Delete {
		out.Want = c.want
	}
	if c.op != Create {
		out.Have = c.have
	}
	return out
}
