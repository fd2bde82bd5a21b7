package agent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/controller"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// newController makes the task of the role controller.
func newController(cfg *config.Config, load func() (*pki.Credentials, error), version string, log *slog.Logger) (Task, error) {
	socket, err := transport.ParseAddress("unix://" + cfg.Controller.Socket)
	if err != nil {
		return nil, fmt.Errorf("controller.socket: %w", err)
	}
	listen := []transport.Address{socket}
	var creds *pki.Credentials
	if cfg.Controller.Listen != "" {
		// No host means every address, of both families.
		tcp, err := transport.ParseAddress("https://" + cfg.Controller.Listen)
		if err != nil {
			return nil, fmt.Errorf("controller.listen: %w", err)
		}
		listen = append(listen, tcp)
		if creds, err = load(); err != nil {
			return nil, err
		}
	}
	return controller.New(
		controller.Config{Listen: listen, Pool: cfg.Tunnel.Pool, Version: version},
		controller.Deps{Credentials: creds, Log: log, OpenStore: func(ctx context.Context) (store.Store, error) {
			return openStore(ctx, cfg.Etcd, log)
		}},
	)
}

// openStore opens the etcd inside this process, or a connection to an external
// cluster.
func openStore(ctx context.Context, cfg config.Etcd, log *slog.Logger) (store.Store, error) {
	if len(cfg.Endpoints) == 0 {
		return store.Open(ctx, store.Embedded{Dir: cfg.Directory}, log)
	}
	e := store.External{Endpoints: cfg.Endpoints}
	if dir := cfg.TLS.Directory; dir != "" {
		e.CAFile, e.CertFile, e.KeyFile = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	}
	return store.Dial(e, log)
}
