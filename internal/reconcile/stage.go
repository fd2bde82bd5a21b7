package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// Conflicter is implemented by a Kind whose objects exclude each other by more
// than their key: two GRE devices cannot share (local, remote, key), whatever
// their names.
type Conflicter[K comparable, V any] interface {
	// Conflicts returns the keys in have, other than k, that must be gone
	// before k can be written as want. The engine deletes them first, unless
	// they are wanted just as they are: then k fails, and nothing is deleted.
	Conflicts(k K, want V, have map[K]V) []K
}

// Scoped is implemented by a Kind that must know what is wanted to say what is
// there: of kernel parameters, for example, only the wanted ones are looked at.
type Scoped[K comparable, V any] interface {
	// Want is called with the wanted objects before every List. The map
	// does not change.
	Want(want map[K]V)
}

// Option relates a stage to others. Stages are named by their Kind's Name.
type Option func(*relations)

type relations struct {
	requires    []string
	invalidates []string
}

// Requires names earlier stages that this stage's objects rest on. It works
// both ways, by group (see NewStage), and both ways it fails closed:
//
//   - making: an object is not written while a required kind could not be
//     listed, or has an object of the same group that is not in place;
//   - breaking: an object of a required kind is not deleted while this kind
//     could not be listed, or still has an object of the same group that is to
//     be deleted or differs from what is wanted.
//
// So Requires("nat") on steers says that nothing is steered before its address
// translation stands, and that the translation goes after the steering; and
// Requires("namespaces") on ENIs that no namespace is deleted with an ENI in it.
func Requires(names ...string) Option {
	return func(r *relations) { r.requires = append(r.requires, names...) }
}

// Invalidates names stages to be listed again, in the same pass, after a write
// of this one: recreating a link drops its addresses, neighbors and routes.
func Invalidates(names ...string) Option {
	return func(r *relations) { r.invalidates = append(r.invalidates, names...) }
}

// Stage is a Kind with the part of the desired state S that it makes true.
type Stage[S any] struct {
	make func() stage[S]
}

// NewStage wraps a Kind. want selects its objects from a desired state; the
// map is not changed and must not change. group names the unit within which
// Requires holds things back, such as the namespace; an object of group ""
// concerns every group, and a nil func puts all objects there.
func NewStage[S any, K comparable, V any](kind Kind[K, V], want func(S) map[K]V, group func(K, V) string, opts ...Option) Stage[S] {
	return newStage(kind, want, group, false, opts)
}

// NewLiveStage is NewStage for objects that are wanted beyond what a desired
// state says: want is asked anew after every List, on the loop's goroutine,
// with the desired state that the loop is at. Whoever changes the answer between two passes
// either gives a Hint, or writes the object at once and beside the loop: then
// the Kind must keep the loop from undoing it on the strength of an older list.
func NewLiveStage[S any, K comparable, V any](kind Kind[K, V], want func(S) map[K]V, group func(K, V) string, opts ...Option) Stage[S] {
	return newStage(kind, want, group, true, opts)
}

func newStage[S any, K comparable, V any](kind Kind[K, V], want func(S) map[K]V, group func(K, V) string, live bool, opts []Option) Stage[S] {
	return Stage[S]{make: func() stage[S] {
		t := &typed[S, K, V]{kind: kind, sel: want, live: live, group: group, pending: map[K]*pending{}, equal: equality[V]()}
		t.b.name = kind.Name()
		t.b.stale = true
		t.batch, _ = kind.(Batcher[K, V])
		t.conflicts, _ = kind.(Conflicter[K, V])
		t.scoped, _ = kind.(Scoped[K, V])
		for _, o := range opts {
			o(&t.b.relations)
		}
		return t
	}}
}

// equality returns == for comparable types and deep equality for the rest.
func equality[V any]() func(a, b V) bool {
	if reflect.TypeFor[V]().Comparable() {
		return func(a, b V) bool { return any(a) == any(b) }
	}
	return func(a, b V) bool { return reflect.DeepEqual(a, b) }
}

// stage is a Stage at work, with the types of its keys and values erased. All
// methods are called from the loop's goroutine.
type stage[S any] interface {
	base() *base
	// desire takes over the wanted objects from a new desired state.
	desire(S)
	// list reads the actual objects and compares them with the wanted ones.
	list(ctx context.Context, p *pass) error
	// build writes creations and repairs, except in groups that barred
	// returns an error for; raze writes deletions likewise.
	build(ctx context.Context, p *pass, barred barrier)
	raze(ctx context.Context, p *pass, barred barrier)
	hasDeletions() bool
	// settle turns changes that are still there after the last round into
	// failures.
	settle(p *pass)
	// unbuilt and unrazed say which groups have objects that are not in
	// place, or not gone.
	unbuilt() barrier
	unrazed() barrier
	// hasten brings retries forward to t at the latest, but leaves at least
	// gap between two attempts.
	hasten(t time.Time, gap time.Duration)
	// nextRetry returns the earliest time at which a failed object is due.
	nextRetry() (time.Time, bool)
	waiting() bool
	status() KindStatus
	pendingErrors(limit int) []error
	// plan lists and compares with s, without side effects.
	plan(ctx context.Context, s S) (first, makes, breaks []Change, err error)
}

// base is what the engine knows of every stage.
type base struct {
	relations
	name string
	// required are the stages that this one requires, users those that
	// require it, by position.
	required, users []int

	stale       bool // the list is older than something we know of
	prompt      bool // a write of another kind may have mended what failed
	listed      bool // in this pass
	everListed  bool
	settled     bool // a pass ended with this kind listed and compared
	wantChanged bool // since the last pass
	listErr     error
	listTries   int
	listNext    time.Time // no list before that, after an error
	listedAt    time.Time
	report      KindPass // of this pass
}

// change is a difference between want and have of one object.
type change[K comparable, V any] struct {
	op     Op
	key    K
	text   string // of the key
	want   V      // unless op is Delete
	have   V      // unless op is Create
	reason string
}

// compare finds the changes that turn have into want, sorted by key.
func compare[K comparable, V any](kind Kind[K, V], want, have map[K]V) []change[K, V] {
	// Thousands come and go at once, and each is large.
	cs := make([]change[K, V], 0, max(len(want)-len(have), len(have)-len(want)))
	for k, w := range want {
		h, ok := have[k]
		if !ok {
			cs = append(cs, change[K, V]{op: Create, key: k, want: w, reason: "missing"})
			continue
		}
		if reason := kind.Diff(w, h); reason != "" {
			cs = append(cs, change[K, V]{op: Repair, key: k, want: w, have: h, reason: reason})
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			cs = append(cs, change[K, V]{op: Delete, key: k, have: h, reason: "not wanted"})
		}
	}
	for i := range cs {
		cs[i].text = fmt.Sprint(cs[i].key)
	}
	slices.SortFunc(cs, func(a, b change[K, V]) int { return cmp.Compare(a.text, b.text) })
	return cs
}

// barrier holds the reasons to hold objects back, by group. The reason of group
// "" concerns all groups, and an object of group "" heeds every reason.
type barrier map[string]error

func (b barrier) add(group string, err error) {
	if b[group] == nil {
		b[group] = err
	}
}

// merge adds what is open in another stage.
func (b barrier) merge(of *base, open barrier) {
	if of.listErr != nil {
		b.add("", fmt.Errorf("waits: %w", of.listErr))
	}
	for g, err := range open {
		b.add(g, fmt.Errorf("waits for %w", err))
	}
}

func (b barrier) check(group string) error {
	if err := b[""]; err != nil {
		return err
	}
	if group != "" {
		return b[group]
	}
	for _, g := range slices.Sorted(maps.Keys(b)) {
		return b[g]
	}
	return nil
}
