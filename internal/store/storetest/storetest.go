// Package storetest is the contract of store.Store as a test suite.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/store"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// Run runs the suite. open returns an empty store; closing it is up to open.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"EmptyLoad":             emptyLoad,
		"LoadIsSorted":          loadIsSorted,
		"LoadManyPages":         loadManyPages,
		"LoadIsOfOneRevision":   loadIsOfOneRevision,
		"TxnIsAtomic":           txnIsAtomic,
		"CompareAbsent":         compareAbsent,
		"CompareOnly":           compareOnly,
		"DeleteAbsent":          deleteAbsent,
		"TooLarge":              tooLarge,
		"WatchGroupsByTxn":      watchGroupsByTxn,
		"WatchFromPast":         watchFromPast,
		"WatchEndsWithContext":  watchEndsWithContext,
		"WatchEndsWithCallback": watchEndsWithCallback,
		"OneWinner":             oneWinner,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }
func del(key string) store.Op        { return store.Op{Key: key, Delete: true} }

func mustTxn(t *testing.T, s store.Store, conditions []store.Compare, changes ...store.Op) int64 {
	t.Helper()
	rev, err := s.Txn(t.Context(), conditions, changes)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func mustLoad(t *testing.T, s store.Store) ([]store.Entry, int64) {
	t.Helper()
	entries, rev, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return entries, rev
}

func emptyLoad(t *testing.T, s store.Store) {
	entries, rev := mustLoad(t, s)
	if len(entries) != 0 || rev <= 0 {
		t.Errorf("Load() = %v, %d; want nothing, as of a positive revision", entries, rev)
	}
}

func loadIsSorted(t *testing.T, s store.Store) {
	r1 := mustTxn(t, s, nil, put("b/2", "x"), put("a/1", "y"))
	r2 := mustTxn(t, s, nil, put("a/2", ""))
	if r2 <= r1 {
		t.Errorf("revisions %d, %d do not grow", r1, r2)
	}
	got, rev := mustLoad(t, s)
	want := []store.Entry{{Key: "a/1", Value: []byte("y"), Revision: r1}, {Key: "a/2", Revision: r2}, {Key: "b/2", Value: []byte("x"), Revision: r1}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })); diff != "" {
		t.Errorf("Load() (-want +got):\n%s", diff)
	}
	if rev != r2 {
		t.Errorf("Load() is of revision %d; want that of the last change, %d", rev, r2)
	}
}

func loadManyPages(t *testing.T, s store.Store) {
	const n = 2345
	var ops []store.Op
	for i := range n {
		if ops = append(ops, put(fmt.Sprintf("k/%05d", i), "v")); len(ops) == store.MaxOps || i == n-1 {
			mustTxn(t, s, nil, ops...)
			ops = nil
		}
	}
	got, _ := mustLoad(t, s)
	if len(got) != n {
		t.Fatalf("Load() returned %d entries; want %d", len(got), n)
	}
	for i, e := range got {
		if want := fmt.Sprintf("k/%05d", i); e.Key != want {
			t.Fatalf("entry %d is %s; want %s", i, e.Key, want)
		}
	}
}

// loadIsOfOneRevision moves a key from the first page to the last and back
// while the store is read: each reading must find it once.
func loadIsOfOneRevision(t *testing.T, s store.Store) {
	loadManyPages(t, s)
	here, there := "a", "z"
	mustTxn(t, s, nil, put(here, "v"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := s.Txn(t.Context(), nil, []store.Op{del(here), put(there, "v")}); err != nil {
				done <- err
				return
			}
			here, there = there, here
		}
		done <- nil
	}()
	for range 40 {
		entries, rev := mustLoad(t, s)
		found := 0
		for _, e := range entries {
			if e.Key == "a" || e.Key == "z" {
				found++
			}
			if e.Revision > rev {
				t.Errorf("%s is of revision %d in a list of %d", e.Key, e.Revision, rev)
			}
		}
		if found != 1 {
			t.Errorf("the key was found %d times", found)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func txnIsAtomic(t *testing.T, s store.Store) {
	rev := mustTxn(t, s, nil, put("a", "1"), put("b", "1"))
	_, err := s.Txn(t.Context(), []store.Compare{{Key: "a", Revision: rev}, {Key: "b", Revision: rev - 1}}, []store.Op{put("a", "2"), del("b")})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("Txn with a stale revision: %v; want ErrConflict", err)
	}
	got, now := mustLoad(t, s)
	if len(got) != 2 || string(got[0].Value) != "1" || now != rev {
		t.Errorf("after a refused Txn: %v at %d; want both keys untouched at %d", got, now, rev)
	}
	mustTxn(t, s, []store.Compare{{Key: "a", Revision: rev}, {Key: "b", Revision: rev}}, put("a", "2"), del("b"))
	got, _ = mustLoad(t, s)
	if len(got) != 1 || string(got[0].Value) != "2" {
		t.Errorf("after the Txn: %v; want a=2 alone", got)
	}
}

func compareAbsent(t *testing.T, s store.Store) {
	mustTxn(t, s, []store.Compare{{Key: "new"}}, put("new", "1"))
	if _, err := s.Txn(t.Context(), []store.Compare{{Key: "new"}}, []store.Op{put("new", "2")}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Txn that wants an existing key absent: %v; want ErrConflict", err)
	}
}

func compareOnly(t *testing.T, s store.Store) {
	rev := mustTxn(t, s, nil, put("a", "1"))
	if got := mustTxn(t, s, []store.Compare{{Key: "a", Revision: rev}}); got != rev {
		t.Errorf("a Txn without changes went from revision %d to %d", rev, got)
	}
	if _, err := s.Txn(t.Context(), []store.Compare{{Key: "a", Revision: rev - 1}}, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Txn without changes and with a stale revision: %v; want ErrConflict", err)
	}
}

func deleteAbsent(t *testing.T, s store.Store) {
	mustTxn(t, s, nil, put("a", "1"), del("never"))
}

func tooLarge(t *testing.T, s store.Store) {
	ops := make([]store.Op, store.MaxOps+1)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("k%d", i), "v")
	}
	mustTxn(t, s, nil, ops[:store.MaxOps]...)
	_, before := mustLoad(t, s)
	if _, err := s.Txn(t.Context(), nil, ops); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("Txn of %d keys: %v; want ErrTooLarge", len(ops), err)
	}
	if _, after := mustLoad(t, s); after != before {
		t.Errorf("a Txn that was refused changed the revision from %d to %d", before, after)
	}
}

// watch collects batches until stop returns true for all events so far.
func watch(t *testing.T, s store.Store, from int64, stop func([]store.Event) bool) (batches [][]store.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := errors.New("seen enough")
	var all []store.Event
	err := s.Watch(ctx, from, func(e []store.Event) error {
		batches = append(batches, e)
		if all = append(all, e...); stop(all) {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("Watch: %v after %v", err, all)
	}
	return batches
}

func watchGroupsByTxn(t *testing.T, s store.Store) {
	_, rev := mustLoad(t, s)
	r1 := mustTxn(t, s, nil, put("a", "1"), put("b", "1"), put("c", "1"))
	r2 := mustTxn(t, s, nil, del("a"), put("b", "2"))
	var all []store.Event
	for _, batch := range watch(t, s, rev+1, func(e []store.Event) bool { return len(e) == 5 }) {
		all = append(all, batch...)
		if n := len(all); n != 3 && n != 5 {
			t.Errorf("a batch ends after event %d, within a transaction", n)
		}
	}
	want := []string{"a", "b", "c", "a", "b"}
	for i, e := range all {
		wantRev := r1
		if i >= 3 {
			wantRev = r2
		}
		if e.Key != want[i] || e.Revision != wantRev || e.Deleted != (i == 3) {
			t.Errorf("event %d = %+v; want %s at %d", i, e, want[i], wantRev)
		}
	}
	if string(all[4].Value) != "2" || all[3].Value != nil {
		t.Errorf("values %q, %q; want the new one, and none of a deletion", all[4].Value, all[3].Value)
	}
}

func watchFromPast(t *testing.T, s store.Store) {
	r1 := mustTxn(t, s, nil, put("a", "1"))
	mustTxn(t, s, nil, put("a", "2"))
	batches := watch(t, s, r1, func(e []store.Event) bool { return string(e[len(e)-1].Value) == "2" })
	if first := batches[0][0]; first.Revision != r1 || string(first.Value) != "1" {
		t.Errorf("first event = %+v; want a=1 at %d", first, r1)
	}
}

func watchEndsWithContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.Watch(ctx, 0, func([]store.Event) error { return nil }) }()
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v; want context.Canceled", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch goes on after its context")
	}
}

func watchEndsWithCallback(t *testing.T, s store.Store) {
	_, rev := mustLoad(t, s)
	mustTxn(t, s, nil, put("a", "1"))
	stop := errors.New("stop")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Watch(ctx, rev+1, func([]store.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Watch: %v; want the callback's error", err)
	}
}

// oneWinner has several writers guard their writes by one key, as controllers
// on one store do.
func oneWinner(t *testing.T, s store.Store) {
	rev := mustTxn(t, s, nil, put("guard", "0"))
	const writers = 8
	results := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := s.Txn(t.Context(), []store.Compare{{Key: "guard", Revision: rev}},
				[]store.Op{put("guard", "1"), put(fmt.Sprintf("k%d", i), "v")})
			results <- err
		}()
	}
	won := 0
	for range writers {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, store.ErrConflict):
			t.Error(err)
		}
	}
	if entries, _ := mustLoad(t, s); won != 1 || len(entries) != 2 {
		t.Errorf("%d writers won and left %d keys; want 1 and 2", won, len(entries))
	}
}
