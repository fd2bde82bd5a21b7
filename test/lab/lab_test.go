package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// witness is a testing.TB that records how a test ended.
type witness struct {
	testing.TB
	name    string
	outcome string
	message string
}

func (w *witness) Helper()      {}
func (w *witness) Name() string { return w.name }

func (w *witness) Skipf(format string, args ...any) { w.end("skip", format, args...) }

func (w *witness) Fatalf(format string, args ...any) { w.end("fail", format, args...) }

func (w *witness) end(outcome, format string, args ...any) {
	w.outcome, w.message = outcome, fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// observe runs f as a test would run and returns how it ended.
func observe(t *testing.T, name string, f func(tb testing.TB)) *witness {
	w := &witness{TB: t, name: name, outcome: "pass"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(w)
	}()
	<-done
	return w
}

func TestRequireGuest(t *testing.T) {
	present := func(Need) error { return nil }
	for _, c := range []struct {
		inside, guest bool
		outcome, says string
	}{
		{false, false, "skip", "make test-netns RUN='^TestX$'"},
		{false, true, "skip", "make test-netns RUN='^TestX$'"},
		{true, false, "skip", "VPCPROXY_LAB=uml make test-netns RUN='^TestX$'"},
		{true, true, "pass", ""},
	} {
		w := observe(t, "TestX", func(tb testing.TB) { requireGuest(tb, c.inside, c.guest, present, nil) })
		if w.outcome != c.outcome || !strings.Contains(w.message, c.says) {
			t.Errorf("inside %v, guest %v: %s, %q; want %s, %q", c.inside, c.guest, w.outcome, w.message, c.outcome, c.says)
		}
	}
}

func TestRequire(t *testing.T) {
	want := Need{"moon dust", "false", "fly there"}
	absent := func(Need) error { return errors.New("none found") }
	present := func(Need) error { return nil }
	for _, c := range []struct {
		name    string
		inside  bool
		met     func(Need) error
		needs   []Need
		outcome string
		says    []string
	}{
		{"outside it skips and says how to run it", false, present, []Need{want}, "skip", []string{"make test-netns RUN='^TestX$'"}},
		{"outside nothing is probed", false, nil, []Need{want}, "skip", nil},
		{"inside without needs it passes", true, absent, nil, "pass", nil},
		{"inside with needs met it passes", true, present, []Need{want}, "pass", nil},
		{"inside a missing need fails, naming need, evidence and fix", true, absent, []Need{want}, "fail", []string{"moon dust", "none found", "fly there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := observe(t, "TestX/sub", func(tb testing.TB) { require(tb, c.inside, c.met, c.needs) })
			if got.outcome != c.outcome {
				t.Fatalf("outcome %s (%s), want %s", got.outcome, got.message, c.outcome)
			}
			for _, s := range c.says {
				if !strings.Contains(got.message, s) {
					t.Errorf("message %q lacks %q", got.message, s)
				}
			}
		})
	}
}

// TestNeeds probes every need for real, and one that nothing can meet.
func TestNeeds(t *testing.T) {
	Require(t, GRE, FoU, VXLAN, VRF, Dummy, Netem, Clsact, NFTables, IPTablesNFT, IPTablesLegacy, IPSet, Conntrack, Program("ip"))
	impossible := Need{"a device that no kernel has", "ip link add probe type philosophers-stone", "give up"}
	got := observe(t, "TestX", func(tb testing.TB) { Require(tb, impossible) })
	if got.outcome != "fail" || !strings.Contains(got.message, impossible.name) {
		t.Errorf("outcome %s (%s), want a failure that names the need", got.outcome, got.message)
	}
}

func TestBinary(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"vpcproxyd": 0o755, "notes": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ dir, name, outcome, says string }{
		{dir, "vpcproxyd", "pass", ""},
		{dir, "notes", "fail", "not executable"},
		{dir, "absent", "fail", "make build"},
		{"", "vpcproxyd", "fail", binEnv},
	} {
		t.Setenv(binEnv, c.dir)
		var path string
		got := observe(t, "TestX", func(tb testing.TB) { path = Binary(tb, c.name) })
		if got.outcome != c.outcome || !strings.Contains(got.message, c.says) {
			t.Errorf("Binary(%q) in %q: %s (%s), want %s with %q", c.name, c.dir, got.outcome, got.message, c.outcome, c.says)
		}
		if c.outcome == "pass" && path != filepath.Join(c.dir, c.name) {
			t.Errorf("path %s", path)
		}
	}
}

func TestArtifacts(t *testing.T) {
	root := t.TempDir()
	t.Setenv(artifactsEnv, root)
	var dir string
	got := observe(t, "TestX/a_case:_1.2.3.4..", func(tb testing.TB) { dir = Artifacts(tb) })
	if got.outcome != "pass" {
		t.Fatal(got.message)
	}
	if want := filepath.Join(root, "TestX", "a_case__1_2_3_4__"); dir != want {
		t.Errorf("directory %s, want %s", dir, want)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		t.Errorf("not a directory: %v", err)
	}

	t.Setenv(artifactsEnv, "")
	if dir := Artifacts(t); !filepath.IsAbs(dir) {
		t.Errorf("without %s: %q", artifactsEnv, dir)
	}

	// A file where the directory should be.
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(artifactsEnv, blocked)
	if got := observe(t, "TestX", func(tb testing.TB) { Artifacts(tb) }); got.outcome != "fail" {
		t.Errorf("a file as %s: %s, want fail", artifactsEnv, got.outcome)
	}
}
