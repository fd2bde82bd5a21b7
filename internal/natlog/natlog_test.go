package natlog

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/meter"
)

func port(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func entry(src, to, as string) conntrack.Entry {
	return conntrack.Entry{
		Orig:  conntrack.MakeTuple(unix.IPPROTO_TCP, port(src), port(to)),
		Reply: conntrack.MakeTuple(unix.IPPROTO_TCP, port(to), port(as)),
	}
}

// event is one that a listener tells of.
type event struct {
	entry conntrack.Entry
	ended bool
	lost  bool
}

// queue is a listener whose events a test makes.
type queue struct {
	events chan event
	ready  []event
}

func (q *queue) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case e := <-q.events:
		if e.lost {
			return conntrack.ErrLost
		}
		q.ready = append(q.ready, e)
		return nil
	}
}

func (q *queue) DrainFlows(_ int, f func(*conntrack.Entry, bool)) (int, error) {
	n := len(q.ready)
	for i := range q.ready {
		f(&q.ready[i].entry, q.ready[i].ended)
	}
	q.ready = nil
	return n, nil
}

func (q *queue) Close() error { return nil }

func newLog(t *testing.T, rate uint32) (*Log, *queue) {
	t.Helper()
	q := &queue{events: make(chan event)}
	l, err := New(Options{
		Directory: t.TempDir(), Size: 8 << 20, Rate: rate,
		Places: func() []meter.Place { return []meter.Place{{Attachment: "red", Netns: "vpx-red"}} },
		Listen: func(string) (Listener, error) { return q, nil },
		Log:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, q
}

// run runs a log until the test's function returns.
func run(t *testing.T, l *Log, during func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	during()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestWhoseConnectionItWas(t *testing.T) {
	l, q := newLog(t, 100)
	start := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	now := start
	l.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	step := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	seen := func() uint64 { n, _ := l.Stats(); return n }
	run(t, l, func() {
		first := entry("100.64.0.80:1111", "172.16.101.5:80", "172.16.101.10:40000")
		q.events <- event{entry: first}
		until(t, "the start is written", func() bool { return seen() == 1 })
		step(time.Minute)
		first.OrigBytes, first.ReplyBytes = 10, 20
		q.events <- event{entry: first, ended: true}
		until(t, "the end is written", func() bool { return seen() == 2 })
		step(time.Minute)
		// The same port again, for another.
		q.events <- event{entry: entry("100.64.0.81:2222", "172.16.101.5:80", "172.16.101.10:40000")}
		until(t, "the second start is written", func() bool { return seen() == 3 })

		for _, tc := range []struct {
			after time.Duration
			want  string
		}{
			{-time.Second, ""}, {30 * time.Second, "100.64.0.80:1111"}, {90 * time.Second, ""}, {3 * time.Minute, "100.64.0.81:2222"},
		} {
			found, err := l.Logged(t.Context(), port("172.16.101.10:40000"), start.Add(tc.after))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, c := range found {
				got += c.Source.String()
			}
			if got != tc.want {
				t.Errorf("after %v it was %q, want %q", tc.after, got, tc.want)
			}
		}
		found, err := l.Logged(t.Context(), port("100.64.0.80:1111"), start)
		if err != nil || len(found) != 1 || found[0].Attachment != "red" || found[0].OutBytes != 10 || found[0].InBytes != 20 ||
			found[0].Protocol != "tcp" || !found[0].Ended.Equal(start.Add(time.Minute)) {
			t.Errorf("got %+v, %v", found, err)
		}
	})
}

func TestRateIsKeptAndTold(t *testing.T) {
	l, q := newLog(t, 2)
	now := time.Unix(1e9, 0)
	l.now = func() time.Time { return now }
	run(t, l, func() {
		for i := range 5 {
			q.events <- event{entry: entry("100.64.0.80:1111", "172.16.101.5:80", netip.AddrPortFrom(netip.MustParseAddr("172.16.101.10"), uint16(1024+i)).String())}
		}
		q.events <- event{lost: true}
		until(t, "all have been looked at", func() bool { written, left := l.Stats(); return written >= 3 && left == 3 })
	})
	b, err := os.ReadFile(filepath.Join(l.files.dir, current))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); strings.Count(text, `"start"`) != 2 || !strings.Contains(text, `"lost","count":3`) || strings.Count(text, `"lost"`) != 2 {
		t.Errorf("the log is\n%s", text)
	}
}

func TestLogStaysSmall(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 10
	write := func(n int) {
		f, err := openFiles(dir, size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			f.append(&Record{Event: Start, Count: uint64(i)})
		}
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
	}
	write(3000)
	write(3000) // goes on where it was
	var sum int64
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		st, err := n.Info()
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", n.Name(), st.Mode())
		}
		sum += st.Size()
	}
	if len(names) != parts || sum > size || sum < size/2 {
		t.Errorf("%d files with %d bytes, want %d with at most %d", len(names), sum, parts, size)
	}
	f, err := openFiles(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := f.paths()
	if err != nil {
		t.Fatal(err)
	}
	newest, err := os.ReadFile(paths[len(paths)-1])
	if err != nil || !strings.Contains(string(newest), `"count":2999`) {
		t.Errorf("the newest record is not in %s: %v", paths[len(paths)-1], err)
	}
}

// table is a connection tracking table in memory.
type table []conntrack.Entry

func (t table) Occupancy(context.Context) (int, int, error) { return len(t), 0, nil }
func (t table) Close() error                                { return nil }
func (t table) Dump(_ context.Context, _ conntrack.Status, f func(*conntrack.Entry)) error {
	for i := range t {
		f(&t[i])
	}
	return nil
}

func TestWhoseConnectionItIs(t *testing.T) {
	places := []meter.Place{{Attachment: "red", Netns: "vpx-red"}, {Attachment: "gone", Netns: "vpx-gone"}}
	open := func(netns string) (meter.Table, error) {
		if netns == "vpx-gone" {
			return nil, os.ErrNotExist
		}
		return table{
			entry("100.64.0.80:1111", "172.16.101.5:80", "172.16.101.10:40000"),
			entry("100.64.0.80:1112", "172.16.101.5:80", "172.16.101.10:40001"),
		}, nil
	}
	for _, who := range []string{"100.64.0.80:1111", "172.16.101.10:40000"} {
		found, err := Living(t.Context(), port(who), places, open)
		if err != nil || len(found) != 1 || found[0].Source != port("100.64.0.80:1111") || found[0].Attachment != "red" {
			t.Errorf("%s: got %+v, %v", who, found, err)
		}
	}
}
