package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const (
	// startTimeout bounds the start of the embedded server: it takes a second,
	// and longer if a long log is replayed.
	startTimeout = time.Minute
	// retention is how long old revisions are kept, for watchers that were
	// away.
	retention = "1h"
	// maxSocketPath is UNIX_PATH_MAX without the final NUL
	// (include/uapi/linux/un.h).
	maxSocketPath = 107
)

// Embedded says where the embedded server keeps its data.
type Embedded struct {
	// Dir is made if it is missing, with mode 0700.
	Dir string
	// Prefix defaults to DefaultPrefix.
	Prefix string
}

// Socket is where the embedded server in a directory can be reached while it
// runs, for example by `etcdctl --endpoints unix://… snapshot save`.
func Socket(dir string) string { return filepath.Join(dir, "client.sock") }

// Open starts an etcd server in this process and returns the store in it. It
// listens on a unix socket in its directory only. ctx bounds the start; the
// server runs until Close.
func Open(ctx context.Context, e Embedded, log *slog.Logger) (*Etcd, error) {
	cfg, core, err := embedConfig(e, log)
	if err != nil {
		return nil, err
	}
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd in %s: %w", e.Dir, err)
	}
	stop := func() {
		core.quiet(true) // it reports its own closing as four errors
		server.Close()
	}
	timeout, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-server.Server.ReadyNotify():
	case <-server.Server.StopNotify():
		err = errors.New("stopped while it started")
	case err = <-server.Err():
	case <-timeout.Done():
		err = fmt.Errorf("not ready: %w", context.Cause(timeout))
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("embedded etcd in %s: %w", e.Dir, err)
	}
	s, err := Dial(External{Endpoints: []string{"unix://" + Socket(e.Dir)}, Prefix: e.Prefix}, log)
	if err != nil {
		stop()
		return nil, err
	}
	core.quiet(false)
	s.stop, s.name = stop, "embedded etcd in "+e.Dir
	return s, nil
}

func embedConfig(e Embedded, log *slog.Logger) (*embed.Config, *core, error) {
	if !filepath.IsAbs(e.Dir) {
		return nil, nil, fmt.Errorf("data directory %q is not an absolute path", e.Dir)
	}
	if n := len(Socket(e.Dir)); n > maxSocketPath {
		return nil, nil, fmt.Errorf("data directory %s: the path is too long by %d characters for a unix socket in it", e.Dir, n-maxSocketPath)
	}
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the data directory: %w", err)
	}
	// The socket has no other guard than its directory.
	if err := os.Chmod(e.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the data directory private: %w", err)
	}
	core := newCore(log)
	core.quiet(true) // it warns of choices that are right for one member
	cfg := embed.NewConfig()
	cfg.Name = "embedded"
	cfg.Dir = filepath.Join(e.Dir, "member")
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core))
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = retention
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: Socket(e.Dir)}}
	// A cluster of one has no peers, and listens for none. The addresses that
	// it advertises must be well-formed, no more.
	nobody := []url.URL{{Scheme: "http", Host: "localhost:0"}}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = nobody, nobody
	cfg.ListenPeerUrls = []url.URL{}
	cfg.InitialCluster = cfg.Name + "=" + nobody[0].String()
	return cfg, core, nil
}
