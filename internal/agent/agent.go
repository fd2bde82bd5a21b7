// Package agent puts a node agent together: the tasks that a configuration
// asks for, what they say to each other, and how they start and end.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/pki"
)

// Task is a part of the agent that runs until its context ends.
type Task interface {
	// Run returns nil when the context ends, and an error when the task
	// cannot go on: then the agent stops.
	Run(ctx context.Context) error
	// Ready is closed once the task does what it is for.
	Ready() <-chan struct{}
	// String names the task.
	String() string
}

// Agent is one vpcproxyd.
type Agent struct {
	cfg     *config.Config
	log     *slog.Logger
	version string
	tasks   []Task
	wedged  func() string // nil without a node
	metrics *metrics
	creds   *pki.Credentials // nil before credentials
	close   []func() error
}

// New builds the agent of a configuration. Nothing runs and nothing is written
// to the kernel before Run; Close releases what New has opened.
func New(ctx context.Context, cfg *config.Config, version string, log *slog.Logger) (*Agent, error) {
	a := &Agent{cfg: cfg, log: log, version: version}
	if err := a.build(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Agent) build(ctx context.Context) error {
	for _, dir := range []string{a.cfg.StateDirectory, filepath.Dir(a.cfg.Socket)} {
		// 0700: the state holds GRE keys, the sockets give orders.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	unlock, err := node.Lock(a.cfg.StateDirectory)
	if err != nil {
		return err
	}
	a.close = append(a.close, unlock)
	m := newMetrics(a.version)
	a.metrics = m
	if a.cfg.HasRole(intent.RoleController) {
		c, err := newController(a.cfg, a.credentials, a.version, a.log)
		if err != nil {
			return fmt.Errorf("controller: %w", err)
		}
		a.tasks = append(a.tasks, c)
	}
	if a.cfg.HasRole(intent.RoleFunction) || a.cfg.HasRole(intent.RoleProxy) {
		if err := a.buildNode(ctx, m); err != nil {
			return err
		}
	}
	if a.cfg.HasRole(intent.RoleReflector) && !a.cfg.HasRole(intent.RoleFunction) && !a.cfg.HasRole(intent.RoleProxy) {
		if err := a.buildReflector(ctx, m); err != nil {
			return err
		}
	}
	if a.cfg.Metrics.Address != "" {
		a.tasks = append(a.tasks, m.server(a.cfg.Metrics.Address, health{tasks: func() []Task { return a.tasks }, wedged: a.wedged}))
	}
	return nil
}

// credentials loads the node's certificate, once for all that need it.
func (a *Agent) credentials() (*pki.Credentials, error) {
	if a.creds != nil {
		return a.creds, nil
	}
	c, err := pki.Load(a.cfg.TLS.Directory, a.log)
	if err != nil {
		return nil, fmt.Errorf("tls.directory: %w", err)
	}
	a.creds = c
	a.metrics.certificate(c)
	return c, nil
}

// Close releases what New opened. Run must have returned.
func (a *Agent) Close() error {
	var errs []error
	for i := len(a.close) - 1; i >= 0; i-- {
		errs = append(errs, a.close[i]())
	}
	a.close = nil
	return errors.Join(errs...)
}

// Run runs all tasks until the context ends, or until one of them cannot go
// on. What is in the kernel stays there. ready is called once all tasks are
// ready.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for _, t := range a.tasks {
		running.Go(func() {
			if err := t.Run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", t, err))
			}
		})
	}
	running.Go(func() {
		for _, t := range a.tasks {
			select {
			case <-ctx.Done():
				return
			case <-t.Ready():
			}
		}
		a.log.Info("ready", "node", a.cfg.Node, "roles", a.cfg.Roles, "version", a.version)
		ready()
	})
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
