package session

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// standby returns a group of one namespace with nobody to follow, on standby, and
// the context of what would work for it.
func standby(t *testing.T) (*group, *stream, *conntrack.Conn, context.Context) {
	t.Helper()
	lab.Require(t, lab.Conntrack)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	host, err := kernel.NewHost(kernel.HostOptions{NetnsDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	if err := host.CreateNamespace(t.Context(), "vpx-db"); err != nil {
		t.Fatal(err)
	}
	conn, err := conntrack.Open(filepath.Join(dir, "vpx-db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	g := newGroup(Group{Name: "g", Namespaces: []string{"vpx-db"}}, false, &Options{NetnsDir: dir, Log: slog.New(slog.DiscardHandler)}, &pacer{})
	ctx, ok := g.turn(t.Context(), false)
	if !ok {
		t.Fatal("not on standby")
	}
	s := g.open("vpx-db")
	t.Cleanup(s.release)
	return g, s, conn, ctx
}

func flows(from, to int) (out []conntrack.Entry) {
	for i := from; i < to; i++ {
		out = append(out, flow(i))
	}
	return out
}

func has(t *testing.T, conn *conntrack.Conn) map[conntrack.Tuple]bool {
	t.Helper()
	all := map[conntrack.Tuple]bool{}
	if err := conn.Dump(t.Context(), conntrack.Assured, func(e *conntrack.Entry) { all[e.Orig] = true }); err != nil {
		t.Fatal(err)
	}
	return all
}

// A member becomes active between finding out what its kernel has other than the
// last active one, and doing something about it. By now a connection has ended
// here, and another has begun.
func TestWhatAStandbyWasAboutToWriteIsNotWritten(t *testing.T) {
	g, s, conn, ctx := standby(t)
	const known, ended, begun = 20, 5, 3
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range flows(0, known) {
		s.table.put(&e)
	}
	s.from.whole = true
	for _, err := range conn.Create(t.Context(), append(flows(ended, known), flows(100, 100+begun)...)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := has(t, conn)
	w, err := s.difference(ctx, conn)
	if err != nil || len(w.create) != ended || len(w.remove) != begun {
		t.Fatalf("%d to create, %d to remove, %v; want %d and %d", len(w.create), len(w.remove), err, ended, begun)
	}

	g.setActive(true)
	if err := s.write(ctx, w); !errors.Is(err, context.Canceled) {
		t.Errorf("written: %v", err)
	}
	if after := has(t, conn); len(after) != len(before) {
		t.Errorf("%d entries became %d", len(before), len(after))
	}
	if yes, _, _ := g.sends(); yes {
		t.Error("the tables are sent before they are this member's own")
	}
	if ctx, ok := g.turn(t.Context(), true); !ok || ctx.Err() != nil {
		t.Error("it does not turn")
	}
	if yes, _, _ := g.sends(); !yes {
		t.Error("nothing is sent")
	}
}

// The same with changes that arrive late: one of them renews a flow that has ended here.
func TestLateChangesAreNotWritten(t *testing.T) {
	g, s, conn, ctx := standby(t)
	var b batch
	for _, e := range flows(0, 10) {
		b.changes = append(b.changes, change{entry: e})
	}
	b.epoch, b.seq, b.first, b.last = 1, 10, true, true
	if err := s.apply(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if n := len(has(t, conn)); n != 10 {
		t.Fatalf("%d entries", n)
	}
	gone := flow(0)
	for _, err := range conn.Delete(t.Context(), []conntrack.Tuple{gone.Orig}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	g.setActive(true)
	late := batch{epoch: 1, after: 10, seq: 11, changes: b.changes[:1]}
	if err := s.apply(ctx, &late); err != nil {
		t.Fatal(err)
	}
	if has(t, conn)[gone.Orig] {
		t.Error("a flow that had ended is there again")
	}
}

// A role that changes twice before anybody has noticed is begun anew all the
// same: what worked for the first time has ended.
func TestARoleThatChangesTwiceBeginsAnew(t *testing.T) {
	g, _, _, ctx := standby(t)
	g.setActive(true)
	g.setActive(false)
	if ctx.Err() == nil {
		t.Error("the first turn goes on")
	}
	g.mu.Lock()
	turned := g.turned
	g.mu.Unlock()
	if turned {
		t.Error("no new turn is due")
	}
}
