package ipmasq

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// said is what a Follower has told.
type said struct {
	rules   []desired.Masquerade
	problem string
}

// volume is a directory as kubelet makes it of a ConfigMap: the file is a link
// into ..data, which is a link to a directory that is exchanged as a whole.
type volume struct {
	t       *testing.T
	dir     string
	version int
}

func (v *volume) file() string { return filepath.Join(v.dir, "ip-masq-agent") }

func (v *volume) swap(text string) {
	v.t.Helper()
	v.version++
	data := filepath.Join(v.dir, "..v"+string(rune('0'+v.version)))
	next := filepath.Join(v.dir, "..data_tmp")
	for _, err := range []error{
		os.Mkdir(data, 0o755),
		os.WriteFile(filepath.Join(data, "ip-masq-agent"), []byte(text), 0o644),
		os.Symlink(filepath.Base(data), next),
		os.Rename(next, filepath.Join(v.dir, "..data")),
	} {
		if err != nil {
			v.t.Fatal(err)
		}
	}
	if v.version == 1 {
		if err := os.Symlink("..data/ip-masq-agent", v.file()); err != nil {
			v.t.Fatal(err)
		}
	}
}

type world struct {
	volume
	state string
	told  chan said
}

func newWorld(t *testing.T) *world {
	return &world{volume: volume{t: t, dir: t.TempDir()}, state: filepath.Join(t.TempDir(), "last"), told: make(chan said, 16)}
}

// start begins to follow the file, as after a start of the agent.
func (w *world) start() (stop func()) {
	w.t.Helper()
	f := NewFollower(w.file(), w.state, Options{}, slog.New(slog.DiscardHandler), func(r []desired.Masquerade, p string) { w.told <- said{r, p} })
	f.Load()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// want waits for what is told next.
func (w *world) want(keep, problem string) {
	w.t.Helper()
	select {
	case s := <-w.told:
		var got []netip.Prefix
		if len(s.rules) > 0 {
			got = s.rules[0].Keep
		}
		if len(got) != len(prefixes(keep)) || len(got) > 0 && got[len(got)-1] != prefixes(keep)[len(got)-1] {
			w.t.Errorf("keeps %v, want %s", got, keep)
		}
		if problem == "" && s.problem != "" || !strings.Contains(s.problem, problem) {
			w.t.Errorf("problem %q, want %q", s.problem, problem)
		}
	case <-time.After(10 * time.Second):
		w.t.Fatal("told nothing")
	}
}

func (w *world) wantNothing() {
	w.t.Helper()
	select {
	case s := <-w.told:
		w.t.Errorf("told %+v; nothing has changed", s)
	default:
	}
}

func TestFollowsTheFile(t *testing.T) {
	w := newWorld(t)
	stop := w.start()
	w.want(defaults4, "") // there is no file
	w.swap("nonMasqueradeCIDRs: [10.0.0.0/8]")
	w.want("169.254.0.0/16 10.0.0.0/8", "")
	w.swap("nonMasqueradeCIDRs: [11.0.0.0/8]")
	w.want("169.254.0.0/16 11.0.0.0/8", "")
	w.swap("nonMasqueradeCIDRs: [11.0.0.1/8]")
	w.want("169.254.0.0/16 11.0.0.0/8", "the last good one stays in force: "+w.file()+": nonMasqueradeCIDRs[0]: 11.0.0.1/8 has host bits set")
	w.swap("nonMasqueradeCIDRs: [11.0.0.0/8]")
	w.want("169.254.0.0/16 11.0.0.0/8", "")
	stop()
	w.wantNothing()

	// The same after a restart, and beside a file that is broken by now.
	stop = w.start()
	w.want("169.254.0.0/16 11.0.0.0/8", "")
	stop()
	w.swap("*")
	stop = w.start()
	defer stop()
	w.want("169.254.0.0/16 11.0.0.0/8", "the last good one stays in force")
	if err := os.Remove(w.file()); err != nil {
		t.Fatal(err)
	}
	w.want(defaults4, "")
}

func TestStartsBesideABrokenFile(t *testing.T) {
	w := newWorld(t)
	w.swap("cidrLimit: 1")
	stop := w.start()
	defer stop()
	w.want("", "nothing is masqueraded until it is mended")
	w.swap("cidrLimit: 3")
	w.want(defaults4, "")
}

// TestReadsAtIntervals changes what no notification reaches: a link that leads
// out of the directory.
func TestReadsAtIntervals(t *testing.T) {
	w := newWorld(t)
	far := filepath.Join(t.TempDir(), "file")
	write := func(text string) {
		t.Helper()
		// At once: it is never read while it is empty, which means the defaults.
		if err := os.WriteFile(far+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(far+".new", far); err != nil {
			t.Fatal(err)
		}
	}
	write("resyncInterval: 1s\nnonMasqueradeCIDRs: []")
	if err := os.Symlink(far, w.file()); err != nil {
		t.Fatal(err)
	}
	stop := w.start()
	defer stop()
	w.want("169.254.0.0/16", "")
	write("resyncInterval: 1s\nnonMasqueradeCIDRs: [10.0.0.0/8]")
	w.want("169.254.0.0/16 10.0.0.0/8", "")
}
