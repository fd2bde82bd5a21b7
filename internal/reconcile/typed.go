package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// errUnsettled is the error of an object that differs again each time it has
// been written: another program writes it too, or the kernel shows it in
// another form than Diff expects.
var errUnsettled = errors.New("written, but it does not stay; look for another program that manages it")

// typed implements stage for one Kind.
type typed[S any, K comparable, V any] struct {
	b         base
	kind      Kind[K, V]
	batch     Batcher[K, V]    // nil if the Kind has none
	conflicts Conflicter[K, V] // nil if the Kind has none
	scoped    Scoped[K, V]     // nil if the Kind lists all
	sel       func(S) map[K]V
	live      bool // sel is asked after every list
	group     func(K, V) string
	equal     func(a, b V) bool

	state   S // the desired state that want is of
	want    map[K]V
	have    map[K]V
	changes []change[K, V]
	pending map[K]*pending
}

func (t *typed[S, K, V]) base() *base { return &t.b }

func (t *typed[S, K, V]) desire(s S) {
	t.state = s
	if t.adopt(t.sel(s)) {
		t.b.stale, t.b.wantChanged = true, true
		t.b.listNext = time.Time{}
	}
}

// adopt takes over what is wanted and tells whether that is something else.
func (t *typed[S, K, V]) adopt(want map[K]V) (changed bool) {
	old := t.want
	t.want = want
	changed = len(old) != len(t.want)
	for k, w := range t.want {
		if o, ok := old[k]; !ok || !t.equal(o, w) {
			changed = true
			delete(t.pending, k) // its errors were about another wish
		}
	}
	for k := range old {
		if _, ok := t.want[k]; !ok {
			changed = true
			delete(t.pending, k)
		}
	}
	return changed
}

func (t *typed[S, K, V]) list(ctx context.Context, p *pass) error {
	var have map[K]V
	err := p.step(ctx, func(ctx context.Context) (err error) {
		have, err = t.look(ctx, t.want)
		return err
	})
	if err != nil {
		t.have, t.changes = nil, nil
		return err
	}
	if t.live && t.adopt(t.sel(t.state)) {
		t.b.wantChanged = true
	}
	t.have = have
	t.changes = compare(t.kind, t.want, have)
	t.b.report.Listed = len(have)
	t.review(p)
	if first := !t.b.listed; first && t.b.settled && !t.b.wantChanged {
		for _, c := range t.changes {
			if t.pending[c.key] == nil {
				t.b.report.Drift++
			}
		}
	}
	return nil
}

// look lists what is there, for a Kind that needs it with regard to want.
func (t *typed[S, K, V]) look(ctx context.Context, want map[K]V) (map[K]V, error) {
	if t.scoped != nil {
		t.scoped.Want(want)
	}
	return t.kind.List(ctx)
}

// review compares what was pending with a new list: what is as it should be has
// recovered, and what differs in spite of a successful retry has failed again.
func (t *typed[S, K, V]) review(p *pass) {
	if len(t.pending) == 0 {
		return
	}
	differs := make(map[K]bool, len(t.changes))
	for _, c := range t.changes {
		differs[c.key] = true
		if o := t.pending[c.key]; o != nil && o.written {
			t.failed(p, c, fmt.Errorf("%s: %w", c.reason, errUnsettled))
		}
	}
	for k, o := range t.pending {
		if !differs[k] {
			p.logRecovery(t.b.name, o)
			delete(t.pending, k)
		}
	}
}

func (t *typed[S, K, V]) groupOf(k K, v V) string {
	if t.group == nil {
		return ""
	}
	return t.group(k, v)
}

// record returns the pending record of a change, new or old.
func (t *typed[S, K, V]) record(c change[K, V], now time.Time) *pending {
	o := t.pending[c.key]
	if o == nil {
		o = &pending{since: now}
		t.pending[c.key] = o
	}
	o.op, o.key, o.text = c.op, c.key, c.text
	if c.op != Delete {
		o.wantGroup = t.groupOf(c.key, c.want)
	}
	if c.op != Create {
		o.haveGroup = t.groupOf(c.key, c.have)
	}
	return o
}

func (t *typed[S, K, V]) build(ctx context.Context, p *pass, barred barrier) {
	due := make([]change[K, V], 0, len(t.changes))
	now := time.Now()
	for _, c := range t.changes {
		if c.op == Delete || t.pending[c.key].resting(now) {
			continue
		}
		if err := barred.check(t.groupOf(c.key, c.want)); err != nil {
			t.hold(c, err)
			continue
		}
		due = append(due, c)
	}
	t.apply(ctx, p, t.clear(ctx, p, due))
}

func (t *typed[S, K, V]) raze(ctx context.Context, p *pass, barred barrier) {
	var due []change[K, V]
	now := time.Now()
	for _, c := range t.changes {
		if c.op != Delete || t.pending[c.key].resting(now) {
			continue
		}
		if err := barred.check(t.groupOf(c.key, c.have)); err != nil {
			t.hold(c, err)
			continue
		}
		due = append(due, c)
	}
	t.apply(ctx, p, due)
}

func (t *typed[S, K, V]) hasDeletions() bool {
	return slices.ContainsFunc(t.changes, func(c change[K, V]) bool { return c.op == Delete })
}

// hold notes that an object waits for another kind.
func (t *typed[S, K, V]) hold(c change[K, V], err error) {
	o := t.record(c, time.Now())
	*o = pending{op: o.op, key: o.key, text: o.text, err: err, held: true, since: o.since, wantGroup: o.wantGroup, haveGroup: o.haveGroup}
}

// clear deletes what stands in the way of the due changes and returns those
// whose way is clear.
func (t *typed[S, K, V]) clear(ctx context.Context, p *pass, due []change[K, V]) []change[K, V] {
	if t.conflicts == nil {
		return due
	}
	var clear []change[K, V]
	for _, c := range due {
		victims, err := t.victims(c)
		if err == nil && len(victims) > 0 {
			t.apply(ctx, p, victims)
			t.forget(victims)
			for _, v := range victims {
				if o := t.pending[v.key]; o.open() {
					err = fmt.Errorf("%s is in the way and cannot be deleted: %w", v.text, o.err)
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			t.failed(p, c, err)
			continue
		}
		clear = append(clear, c)
	}
	return clear
}

// victims returns the deletions that must precede a change.
func (t *typed[S, K, V]) victims(c change[K, V]) ([]change[K, V], error) {
	if t.conflicts == nil {
		return nil, nil
	}
	var out []change[K, V]
	for _, k := range t.conflicts.Conflicts(c.key, c.want, t.have) {
		h, ok := t.have[k]
		if !ok || k == c.key {
			continue
		}
		if w, wanted := t.want[k]; wanted && t.kind.Diff(w, h) == "" {
			return nil, fmt.Errorf("conflicts with %v, which is wanted as it is", k)
		}
		out = append(out, change[K, V]{op: Delete, key: k, text: fmt.Sprint(k), have: h, reason: "in the way of " + c.text})
	}
	slices.SortFunc(out, func(a, b change[K, V]) int { return cmp.Compare(a.text, b.text) })
	return out, nil
}

// forget drops deleted victims from what is known of the kernel, and the
// deletions that were planned for them anyway.
func (t *typed[S, K, V]) forget(victims []change[K, V]) {
	for _, v := range victims {
		if t.pending[v.key].open() {
			continue
		}
		delete(t.have, v.key)
		t.changes = slices.DeleteFunc(t.changes, func(c change[K, V]) bool { return c.op == Delete && c.key == v.key })
	}
}

// apply writes changes of one direction and records each one's fate.
func (t *typed[S, K, V]) apply(ctx context.Context, p *pass, cs []change[K, V]) {
	if len(cs) == 0 {
		return
	}
	t.b.stale = true
	p.invalidate(&t.b)
	errs := t.write(ctx, p, cs)
	for i, err := range errs {
		if err != nil {
			if ctx.Err() != nil {
				return // stopping is nobody's failure
			}
			t.failed(p, cs[i], err)
			continue
		}
		if o := t.pending[cs[i].key]; o != nil && o.attempts > 0 {
			o.written = true // recovered when a list says so
		} else {
			delete(t.pending, cs[i].key)
		}
		p.writes++
		t.b.report.count(cs[i].op)
		p.logChange(t.b.name, cs[i].op, cs[i].text, cs[i].reason)
	}
}

// write returns one error or nil per change, fewer if the context ended.
func (t *typed[S, K, V]) write(ctx context.Context, p *pass, cs []change[K, V]) []error {
	if t.batch != nil && len(cs) > 1 {
		return t.writeBatch(ctx, p, cs)
	}
	errs := make([]error, 0, len(cs))
	for _, c := range cs {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, p.step(ctx, func(ctx context.Context) error {
			if c.op == Delete {
				return t.kind.Delete(ctx, c.key, c.have)
			}
			return t.kind.Upsert(ctx, c.key, c.want)
		}))
	}
	return errs
}

// writeBatch relies on the changes being all deletions or none.
func (t *typed[S, K, V]) writeBatch(ctx context.Context, p *pass, cs []change[K, V]) []error {
	items := make([]Item[K, V], len(cs))
	for i, c := range cs {
		items[i] = Item[K, V]{Key: c.key, Value: c.want}
		if c.op == Delete {
			items[i].Value = c.have
		}
	}
	var errs []error
	_ = p.step(ctx, func(ctx context.Context) error { // its errors are per item
		if cs[0].op == Delete {
			errs = t.batch.DeleteBatch(ctx, items)
		} else {
			errs = t.batch.UpsertBatch(ctx, items)
		}
		return nil
	})
	for len(errs) < len(cs) { // a Kind that breaks its promise must not pass for success
		errs = append(errs, errors.New("the batch gave no answer for this object"))
	}
	return errs[:len(cs)]
}

func (t *typed[S, K, V]) failed(p *pass, c change[K, V], err error) {
	o := t.record(c, time.Now())
	if o.attempts == 0 {
		p.logFailure(t.b.name, c.op, c.text, err)
	}
	o.fail(time.Now(), err)
	t.b.report.Failed++
}

func (t *typed[S, K, V]) settle(p *pass) {
	for _, c := range t.changes {
		if t.pending[c.key] == nil {
			t.failed(p, c, fmt.Errorf("%s: %w", c.reason, errUnsettled))
		}
	}
}
