// Package controller is the role that operators talk to: it checks and stores
// intent, allocates GRE keys and tunnel addresses, streams to each node what
// that node may know, and tells how far the nodes are.
//
// The store is the only truth. One goroutine mirrors it and publishes immutable
// views; requests read the newest view, and write by transactions that fail
// when the store has moved on, so that several controllers may share a store.
package controller

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// heartbeat is how often a node that has nothing to learn hears from the
// controller. Agents give a stream up after three of them.
const heartbeat = 10 * time.Second

// Config is what an operator decides.
type Config struct {
	// Listen is where the API is served: a unix socket, and possibly https.
	Listen []transport.Address
	// Pool is the range of tunnel addresses; the zero value is
	// intent.DefaultPool. Changing it keeps what is allocated.
	Pool netip.Prefix
	// Version is reported by Status.
	Version string
}

// Deps is what a controller works with.
type Deps struct {
	// OpenStore opens the store; Run closes it.
	OpenStore func(ctx context.Context) (store.Store, error)
	// Credentials are needed to listen on https.
	Credentials *pki.Credentials
	Log         *slog.Logger
}

// Controller is a task: Run it once.
type Controller struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	now   func() time.Time
	key   func() uint32
	beat  time.Duration
	ready chan struct{}

	store  store.Store
	view   atomic.Pointer[view] // nil until the store was read once
	first  chan struct{}        // closed then
	mirror *mirror              // of the goroutine that follows the store
	verify chan confirmation    // asks that goroutine to accept a loss
	write  chan struct{}        // capacity 1: held while writing
	agents *registry
	// questions wait for nodes' answers.
	questions questions
}

// New returns a controller; Run starts it.
func New(cfg Config, deps Deps) (*Controller, error) {
	if !cfg.Pool.IsValid() {
		cfg.Pool = intent.DefaultPool
	}
	if err := checkPool(cfg.Pool); err != nil {
		return nil, err
	}
	if len(cfg.Listen) == 0 {
		return nil, errors.New("controller: no address to listen on is given; want unix:///PATH")
	}
	return &Controller{
		cfg: cfg, deps: deps, log: deps.Log, now: time.Now, key: randomKey, beat: heartbeat,
		ready: make(chan struct{}), first: make(chan struct{}), verify: make(chan confirmation),
		write:  make(chan struct{}, 1),
		mirror: newMirror(cfg.Pool),
		agents: newRegistry(),
	}, nil
}

// randomKey draws from all 32 bits, because a key that cannot be guessed is one
// of the things that keep strangers out of a tunnel.
func randomKey() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return binary.BigEndian.Uint32(b[:])
}

// String names the task and where it listens.
func (c *Controller) String() string {
	addrs := make([]string, len(c.cfg.Listen))
	for i, a := range c.cfg.Listen {
		addrs[i] = a.String()
	}
	return "controller on " + strings.Join(addrs, ", ")
}

// Ready is closed when the store has been read and the API is served.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Run serves until the context ends. It fails if it cannot listen or open the
// store; a store that is lost later is waited for.
func (c *Controller) Run(ctx context.Context) (err error) {
	var listeners []*transport.Listener
	closeAll := func() {
		for _, l := range listeners {
			_ = l.Close() // nothing was accepted yet
		}
	}
	for _, a := range c.cfg.Listen {
		l, err := transport.Listen(ctx, a, c.deps.Credentials, c.log)
		if err != nil {
			closeAll()
			return fmt.Errorf("controller: %w", err)
		}
		listeners = append(listeners, l)
	}
	c.store, err = c.deps.OpenStore(ctx)
	if err != nil {
		closeAll()
		return fmt.Errorf("controller: open the store: %w", err)
	}
	defer func() { err = errors.Join(err, c.store.Close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.follow(ctx) })
	g.Go(func() error { return transport.Serve(ctx, c.Handler(), c.log, listeners...) })
	g.Go(func() error { return c.forgetTombstones(ctx) })
	g.Go(func() error {
		select {
		case <-c.first:
			close(c.ready)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// Handler serves both services. Callers must be known to package transport.
func (c *Controller) Handler() http.Handler {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{transport.HandlerOptions(), connect.WithInterceptors(authorizer{})}
	mux.Handle(vpcproxyv1alpha1connect.NewControlServiceHandler(&control{c}, opts...))
	mux.Handle(vpcproxyv1alpha1connect.NewAgentServiceHandler(&agentAPI{c}, opts...))
	return mux
}

// current returns the newest view, once there is one.
func (c *Controller) current() (*view, error) {
	if v := c.view.Load(); v != nil {
		return v, nil
	}
	return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("%s has not been read yet; try again soon", c.store))
}
