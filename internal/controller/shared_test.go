package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// Two controllers on one store never allocate the same, nor accept what
// collides.
func TestTwoControllers(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	var mu sync.Mutex
	draws := uint32(0)
	few := func(c *Controller) {
		// Every key is drawn at least twice.
		c.key = func() uint32 {
			mu.Lock()
			defer mu.Unlock()
			draws++
			return draws / 2
		}
	}
	a, b := startOn(t, prefix, few), startOn(t, prefix, few)
	a.platform(t)
	const each = 15
	var wg sync.WaitGroup
	for i, r := range []*rig{a, b} {
		wg.Go(func() {
			for n := range each {
				number := 1 + 2*n + i
				group := fmt.Sprintf(`{"kind":"ProxyGroup","metadata":{"name":"g%d"},"spec":{"members":[{"node":"p1"}]}}`, number)
				if _, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, numberedAttachment(number), group))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// Both try to take the same subnet for the same pods.
	results := make(chan error, 2)
	for i, r := range []*rig{a, b} {
		wg.Go(func() {
			o := attach(fmt.Sprintf("rival%d", i), "pods", `["10.244.1.200"]`, "enis", fmt.Sprintf(`[{"name":"rival%d"}]`, i), "greKey", fmt.Sprint(1000000+i))
			_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, o)))
			results <- err
		})
	}
	wg.Wait()
	refused := 0
	for range 2 {
		if err := <-results; connect.CodeOf(err) == connect.CodeAlreadyExists {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused != 1 {
		t.Errorf("%d of two rivals were refused; want 1", refused)
	}
	eventually(t, "both see the same", func() bool {
		return a.status(t).GetRevision() == b.status(t).GetRevision()
	})
	set := b.view.Load().set
	if n := len(set.Attachments); n != 2*each+1 {
		t.Errorf("%d attachments; want %d", n, 2*each+1)
	}
	keys, tunnels := map[uint32]string{}, map[string]string{}
	for _, at := range set.Attachments {
		k, _ := at.Key()
		if other, taken := keys[k]; taken {
			t.Errorf("%s and %s have the key %d", at.ObjectName(), other, k)
		}
		keys[k] = at.ObjectName()
	}
	for _, g := range set.Groups {
		if other, taken := tunnels[g.Tunnel().String()]; taken {
			t.Errorf("%s and %s have the address %s", g.ObjectName(), other, g.Tunnel())
		}
		tunnels[g.Tunnel().String()] = g.ObjectName()
	}
}

// flaky is a store that can be lost.
type flaky struct {
	store.Store
	mu   sync.Mutex
	err  error
	lost chan struct{} // closed to end watches
	end  error         // of such watches
}

func (f *flaky) lose(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.lost)
	f.lost = make(chan struct{})
}

func (f *flaky) state() (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost, f.err
}

// String implements store.Store.
func (f *flaky) String() string { return "flaky store" }

func (f *flaky) Load(ctx context.Context) ([]store.Entry, int64, error) {
	if _, err := f.state(); err != nil {
		return nil, 0, err
	}
	return f.Store.Load(ctx)
}

func (f *flaky) Txn(ctx context.Context, c []store.Compare, o []store.Op) (int64, error) {
	if _, err := f.state(); err != nil {
		return 0, err
	}
	return f.Store.Txn(ctx, c, o)
}

func (f *flaky) Watch(ctx context.Context, from int64, fn func([]store.Event) error) error {
	lost, err := f.state()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-lost:
			cancel(f.end)
		case <-ctx.Done():
		}
	}()
	return f.Store.Watch(ctx, from, fn)
}

// While the store is away the last intent is served, and what happened
// meanwhile is taken over when it is back.
func TestStoreIsAway(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	f := &flaky{Store: dialStore(t, prefix), lost: make(chan struct{}), end: errors.New("connection lost")}
	r := startOn(t, prefix, func(c *Controller) {
		c.deps.OpenStore = func(context.Context) (store.Store, error) { return f, nil }
	})
	r.platform(t)
	f1 := r.watch(t, nodeF1)
	f1.next()
	f.lose(errors.New("no leader"))
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, orders)))
	wantCode(t, err, connect.CodeUnavailable, "no leader", "repeating is safe")
	eventually(t, "the loss is logged", func() bool { return strings.Contains(r.log.String(), "store is away") })
	if s := r.watch(t, nodeP1).next(); s.Node("p1") == nil {
		t.Error("a node that connects is not served from memory")
	}
	if _, err := f.Store.Txn(t.Context(), nil, []store.Op{{Key: "attachment/orders", Value: stored(t, attach("orders", "greKey", "5"))}}); err != nil {
		t.Fatal(err)
	}
	f.lose(nil)
	if s := f1.next(); s.Attachment("orders") == nil {
		t.Error("what was written meanwhile is not served")
	}
	if log := r.log.String(); strings.Count(log, "store is away") != 1 || strings.Count(log, "store is back") != 1 {
		t.Errorf("one line for the loss and one for the recovery are wanted:\n%s", log)
	}
}

func stored(t *testing.T, o string) []byte {
	t.Helper()
	b, err := encodeObject(decoded[*intent.Attachment](t, object(t, o)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A controller that was away for longer than the store remembers lists again,
// at once and without alarm.
func TestCompactedRevision(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	f := &flaky{Store: dialStore(t, prefix), lost: make(chan struct{}), end: store.ErrCompacted}
	r := startOn(t, prefix, func(c *Controller) {
		c.deps.OpenStore = func(context.Context) (store.Store, error) { return f, nil }
	})
	r.platform(t)
	f.lose(nil)
	eventually(t, "the list is read again", func() bool { return strings.Contains(r.log.String(), "store is listed again") })
	r.apply(t, orders)
	if strings.Contains(r.log.String(), "store is away") {
		t.Error("a compaction counts as a loss of the store")
	}
}

func TestTombstonesAreForgotten(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	prefix := "/" + t.Name() + "/"
	withClock := func(c *Controller) { c.now = clock }
	r := startOn(t, prefix, withClock)
	r.platform(t)
	r.apply(t, numberedAttachment(1), numberedAttachment(2), numberedAttachment(3))
	r.delete(t, intent.KindAttachment, "a001")
	r.delete(t, intent.KindAttachment, "a002")
	r.stop()
	r = startOn(t, prefix, withClock) // they outlive the controller
	if got := attachmentNames(r.view.Load().set.Removed); len(got) != 2 {
		t.Errorf("removed: %v; want both", got)
	}
	// One that is created again is removed no more.
	r.apply(t, numberedAttachment(1))
	if got := attachmentNames(r.view.Load().set.Removed); len(got) != 1 || got[0] != "a002" {
		t.Errorf("removed: %v; want a002", got)
	}
	if err := r.sweepTombstones(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(r.view.Load().tombstones); got != 1 {
		t.Errorf("%d tombstones; want the fresh one kept", got)
	}
	mu.Lock()
	now = now.Add(tombstoneAge + time.Second)
	mu.Unlock()
	if err := r.sweepTombstones(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(r.view.Load().tombstones); got != 0 {
		t.Errorf("%d tombstones after an hour; want none", got)
	}
	if held := r.status(t).GetHeld(); held != "" {
		t.Errorf("held: %q", held)
	}
}

func TestExpiredTombstones(t *testing.T) {
	now := time.Now()
	c := &Controller{now: func() time.Time { return now }}
	v := &view{tombstones: map[string]tombstone{}}
	for i := range tombstoneMax + 30 {
		v.tombstones[fmt.Sprintf("t%04d", i)] = tombstone{RemovedAt: now.Add(time.Duration(i) * time.Millisecond)}
	}
	got := c.expired(v)
	if len(got) != 30 || got[0] != "t0000" || got[29] != "t0029" {
		t.Errorf("expired: %v; want the 30 oldest beyond the limit", got)
	}
	now = now.Add(2 * tombstoneAge)
	if got := c.expired(v); len(got) != sweepMax {
		t.Errorf("%d expired at once; want %d, which fit in a transaction", len(got), sweepMax)
	}
}

func TestRunFails(t *testing.T) {
	addr, err := transport.ParseAddress("unix://" + t.TempDir() + "/c.sock")
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk full")
	open := func(context.Context) (store.Store, error) { return nil, broken }
	log := slog.New(slog.DiscardHandler)
	c, err := New(Config{Listen: []transport.Address{addr}}, Deps{OpenStore: open, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Run: %v; want the store's error", err)
	}
	if got, want := c.String(), "controller on "+addr.String(); got != want {
		t.Errorf("String() = %q; want %q", got, want)
	}
	tcp, err := transport.ParseAddress("https://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err = New(Config{Listen: []transport.Address{addr, tcp}}, Deps{OpenStore: open, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "needs a certificate bundle") {
		t.Errorf("Run without certificates: %v", err)
	}
	if _, err := New(Config{}, Deps{Log: log}); err == nil {
		t.Error("a controller without an address was made")
	}
}

func TestPoolsThatAreRefused(t *testing.T) {
	for pool, want := range map[string]string{
		"100.64.0.1/16":  "did you mean 100.64.0.0/16?",
		"100.64.0.0/31":  "is too small",
		"0.0.0.0/0":      "is not a range of unicast addresses",
		"127.0.0.0/8":    "is not a range of unicast addresses",
		"169.254.0.0/16": "is not a range of unicast addresses",
		"224.0.0.0/8":    "is not a range of unicast addresses",
		"2001:db8::/64":  "is not IPv4",
	} {
		c := Config{Listen: make([]transport.Address, 1)}
		if err := c.Pool.UnmarshalText([]byte(pool)); err != nil {
			t.Fatal(err)
		}
		if _, err := New(c, Deps{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pool %s: %v; want %q", pool, err, want)
		}
	}
}

// Before the store has been read, requests are refused and nothing is empty.
func TestNotReadYet(t *testing.T) {
	c, err := New(Config{Listen: make([]transport.Address, 1)}, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.store = &flaky{}
	s := &control{c}
	for name, call := range map[string]func() error{
		"List": func() error {
			_, err := s.List(t.Context(), connect.NewRequest(&apiv1.ListRequest{Kind: "Node"}))
			return err
		},
		"Apply": func() error {
			_, err := s.Apply(t.Context(), connect.NewRequest(request(t, nodeF1)))
			return err
		},
		"Status": func() error {
			_, err := s.Status(t.Context(), connect.NewRequest(&apiv1.StatusRequest{}))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), connect.CodeUnavailable, "has not been read yet") })
	}
}

func TestNothingLeaks(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r := start(t)
	r.platform(t)
	r.watch(t, nodeF1).next()
	r.stop()
	goleak.VerifyNone(t, before)
}
