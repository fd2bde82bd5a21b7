package source

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const nodeManifest = `apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: host-1}
spec:
  roles: [function]
  underlayAddress: 192.168.80.8
  tunnelAddress: 100.64.0.3
`

// eventually polls: inotify has no clock that a test could advance.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

func TestDirectoryFollowsItsFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "intent.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "node.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(nodeManifest)
	sets := make(chan *intent.Set, 10)
	gate := NewGate(filepath.Join(t.TempDir(), "intent.json"), discard(), func(s *intent.Set) { sets <- s })
	d := NewDirectory(dir, intent.DefaultPool, gate, discard())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()

	if s := <-sets; s.Node("host-1") == nil {
		t.Fatalf("first set: %+v", s)
	}
	write(nodeManifest + "  podCIDRs: [10.244.1.0/24]\n")
	if s := <-sets; len(s.Node("host-1").Spec.PodCIDRs) != 1 {
		t.Error("a change was not seen")
	}
	write(nodeManifest + "  podCIDR: [10.244.1.0/24]\n")
	eventually(t, "a problem is reported", func() bool { return d.Problem() != nil })
	if len(gate.Accepted().Node("host-1").Spec.PodCIDRs) != 1 {
		t.Error("a bad file replaced the last good intent")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a lost directory is reported", func() bool { return d.Problem() != nil })
	if gate.Accepted().Node("host-1") == nil {
		t.Error("a lost directory was taken for an empty one")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(nodeManifest)
	if s := <-sets; len(s.Node("host-1").Spec.PodCIDRs) != 0 {
		t.Error("a directory that was made anew is not followed")
	}
	eventually(t, "the problem is over", func() bool { return d.Problem() == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFiles: whatever somebody does to a directory's files can be seen without
// reading them.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(t.TempDir(), "other")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.WriteFile(other, []byte("a"), 0o600))
	file := filepath.Join(dir, "node.yaml")
	seen := map[string]string{files(dir): "empty"}
	for _, step := range []struct {
		name string
		act  func() error
	}{
		{"a file", func() error { return os.WriteFile(file, []byte("one"), 0o600) }},
		{"a longer file", func() error { return os.WriteFile(file, []byte("three"), 0o600) }},
		{"a file as long", func() error { return os.Chtimes(file, time.Time{}, time.Unix(1, 0)) }},
		{"a file that was put there", func() error {
			if err := os.WriteFile(file+".new", []byte("three"), 0o600); err != nil {
				return err
			}
			if err := os.Chtimes(file+".new", time.Time{}, time.Unix(1, 0)); err != nil {
				return err
			}
			return os.Rename(file+".new", file)
		}},
		{"a link", func() error { return os.Symlink(other, filepath.Join(dir, "link.yaml")) }},
		{"what a link leads to", func() error { return os.WriteFile(other, []byte("ab"), 0o600) }},
		{"what is not there", func() error { return os.Remove(other) }},
		{"no directory", func() error { return os.RemoveAll(dir) }},
	} {
		do(step.act())
		now := files(dir)
		if before, ok := seen[now]; ok {
			t.Errorf("%s looks like %s:\n%s", step.name, before, now)
		}
		if files(dir) != now {
			t.Errorf("%s looks different when nothing has changed", step.name)
		}
		seen[now] = step.name
	}
}
