package store_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vpcproxy/vpcproxy/internal/store"
	"github.com/vpcproxy/vpcproxy/internal/store/storetest"
)

func open(t *testing.T, dir, prefix string, log *slog.Logger) *store.Etcd {
	t.Helper()
	s, err := store.Open(t.Context(), store.Embedded{Dir: dir, Prefix: prefix}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func prefixOf(t *testing.T) string { return "/" + strings.ReplaceAll(t.Name(), "/", "-") + "/" }

// The contract, on the embedded server and on the same as an external one.
func TestContract(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	open(t, dir, "", log)
	t.Run("External", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store {
			s, err := store.Dial(store.External{Endpoints: []string{"unix://" + store.Socket(dir)}, Prefix: prefixOf(t)}, log)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		})
	})
	t.Run("Embedded", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir(), prefixOf(t), log) })
	})
}

func TestWatchOfCompactedRevision(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "", slog.New(slog.DiscardHandler))
	var last int64
	for range 5 {
		var err error
		if last, err = s.Txn(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("v")}}); err != nil {
			t.Fatal(err)
		}
	}
	compact(t, dir, last)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := s.Watch(ctx, 2, func([]store.Event) error { return errors.New("an event came") })
	if !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch from a compacted revision: %v; want ErrCompacted", err)
	}
}

func compact(t *testing.T, dir string, rev int64) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + store.Socket(dir)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEmbeddedSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.Embedded{Dir: dir}, log)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.Txn(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("kept")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, _, err := open(t, dir, "", log).Load(t.Context())
	if err != nil || len(got) != 1 || string(got[0].Value) != "kept" || got[0].Revision != rev {
		t.Errorf("after a restart: %v, %v; want the entry of revision %d", got, err, rev)
	}
}

func TestEmbeddedIsPrivateAndQuiet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	var out strings.Builder
	s, err := store.Open(t.Context(), store.Embedded{Dir: dir}, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v; want mode 0700", st.Mode(), err)
	}
	if got := listeningPorts(t); len(got) > 0 {
		t.Errorf("this process listens on TCP ports: %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 {
		t.Errorf("log of a start and a stop without trouble:\n%s", out.String())
	}
}

// listeningPorts returns the lines of /proc/net/tcp{,6} of sockets of this
// process that listen.
func listeningPorts(t *testing.T) (lines []string) {
	t.Helper()
	mine := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
			mine[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, f := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // no IPv6 here
		}
		for line := range strings.Lines(string(b)) {
			// Columns of proc_pid_net(5): 3 is the state, 0A is LISTEN, 9 the
			// inode.
			if c := strings.Fields(line); len(c) > 9 && c[3] == "0A" && mine[c[9]] {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestBadConfiguration(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]struct {
		open func() error
		want string
	}{
		"relative": {func() error {
			_, err := store.Open(t.Context(), store.Embedded{Dir: "data"}, log)
			return err
		}, "not an absolute path"},
		"too long": {func() error {
			_, err := store.Open(t.Context(), store.Embedded{Dir: "/tmp/" + strings.Repeat("x", 100)}, log)
			return err
		}, "too long by 10 characters"},
		"no endpoints": {func() error {
			_, err := store.Dial(store.External{}, log)
			return err
		}, "no etcd endpoint"},
		"no TLS file": {func() error {
			_, err := store.Dial(store.External{Endpoints: []string{"https://127.0.0.1:1"}, CAFile: "/none", CertFile: "/none", KeyFile: "/none"}, log)
			return err
		}, "etcd's TLS files"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.open(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}
