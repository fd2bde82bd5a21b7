package kernel

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/lab"
)

// ownMachine returns a host in a network namespace of its own.
func ownMachine(t *testing.T) *host {
	t.Helper()
	var h Host
	err := onNewThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		h, err = NewHost(HostOptions{NetnsDir: t.TempDir()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h.(*host)
}

// A reader that was too slow hears that everything may have changed, and goes on
// hearing what changes then.
func TestWatchSurvivesAnOverrun(t *testing.T) {
	lab.Require(t)
	host := ownMachine(t)
	overruns := 0
	host.overrun = func() { overruns++ }
	own := host.own
	c, err := own.subscribe(sources[0])
	if err != nil {
		t.Fatal(err)
	}
	err = c.raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil { // the kernel's minimum
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var rules []Rule
	for i := range uint32(200) {
		rules = append(rules, Rule{Priority: i + 1, Mark: 1, Mask: 1, Table: 1000, Protocol: 176})
	}
	for _, err := range own.AddRules(t.Context(), rules) {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	in, done := make(chan Hint), make(chan struct{})
	go func() {
		defer close(done)
		own.follow(ctx, sources[0], c, in)
	}()
	next := func() Hint {
		select {
		case h := <-in:
			return h
		case <-done:
			t.Fatal("the watch ended")
		case <-time.After(30 * time.Second):
			t.Fatal("no hint")
		}
		return ""
	}
	for next() != HintAll {
	}
	// What was lost must not be counted as seen: only now is there silence.
	for _, err := range own.DeleteRules(t.Context(), rules[:1]) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if h := next(); h != HintRules {
		t.Errorf("got %q after the overrun", h)
	}
	cancel()
	<-done
	if overruns != 1 {
		t.Errorf("%d overruns were counted", overruns)
	}
}

// A quiet host hears what others do, and nothing of what it does itself.
func TestQuietHostHearsOthers(t *testing.T) {
	lab.Require(t)
	host := ownMachine(t)
	host.quiet = true
	c, err := host.own.subscribe(sources[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	heard := make(chan uint32, 100)
	go func() {
		_ = c.notifications(t.Context(), func(m syscall.NetlinkMessage) []Hint {
			heard <- m.Header.Pid
			return nil
		}, nil)
	}()
	rule := []Rule{{Priority: 1, Mark: 1, Mask: 1, Table: 1000, Protocol: 176}}
	var other *conn
	if err := host.own.visit(func() (err error) {
		other, err = openConn(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	stranger := &handle{host: host, conn: other}
	defer func() { _ = other.Close() }()
	own, err := host.own.conn.port()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(host.own.AddRules(t.Context(), rule)[0], stranger.DeleteRules(t.Context(), rule)[0]); err != nil {
		t.Fatal(err)
	}
	select {
	case port := <-heard:
		if port == own {
			t.Error("it hears of its own rule")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not hear that its rule was deleted")
	}
}
