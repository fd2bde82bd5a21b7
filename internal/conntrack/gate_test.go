package conntrack

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newPipe(t *testing.T) (g *gate, r, w int) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	g, err := newGate(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.close()
		_, _ = unix.Close(ends[0]), unix.Close(ends[1])
	})
	return g, ends[0], ends[1]
}

func put(t *testing.T, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		t.Fatal(err)
	}
}

// wakes tells whether the gate's epoll instance would wake the runtime.
func wakes(t *testing.T, g *gate) bool {
	t.Helper()
	var n int
	err := g.raw.Control(func(at uintptr) {
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(at), Events: unix.POLLIN}}, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

func TestAGateWakesNobodyWhoDoesNotWait(t *testing.T) {
	g, r, w := newPipe(t)
	put(t, w)
	if wakes(t, g) {
		t.Error("what comes before anybody waits wakes the runtime")
	}
	for range 3 {
		if err := g.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		put(t, w)
		if wakes(t, g) {
			t.Error("what comes after a wait wakes the runtime")
		}
	}
	if _, err := unix.Read(r, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with nothing there: %v", err)
	}
}

func TestAGateWaitsForWhatComes(t *testing.T) {
	g, _, w := newPipe(t)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("a wait that was given up: %v", err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- g.wait(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("the wait ended without anything there: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	put(t, w)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAClosedGateEndsItsWait(t *testing.T) {
	g, _, _ := newPipe(t)
	done := make(chan error, 1)
	go func() { done <- g.wait(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("the wait ended at once: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the wait ended as if there were something")
	}
}
