package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
)

// reflectorTask is the role reflector on a machine that does nothing else.
type reflectorTask struct {
	routing *routing
	socket  *transport.Listener
	log     *slog.Logger
	ready   chan struct{}
}

func (a *Agent) buildReflector(ctx context.Context, m *metrics) error {
	r, err := newRouting(ctx, a.cfg, nil, a.log)
	if err != nil {
		return err
	}
	m.routing(r)
	address, err := transport.ParseAddress("unix://" + a.cfg.Socket)
	if err != nil {
		return err
	}
	socket, err := transport.Listen(ctx, address, nil, a.log)
	if err != nil {
		return err
	}
	a.tasks = append(a.tasks, &reflectorTask{routing: r, socket: socket, log: a.log, ready: make(chan struct{})})
	return nil
}

// String implements Task.
func (*reflectorTask) String() string { return "reflector" }

// Ready implements Task.
func (t *reflectorTask) Ready() <-chan struct{} { return t.ready }

// Run implements Task.
func (t *reflectorTask) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		tasks sync.WaitGroup
		mu    sync.Mutex
		errs  []error
	)
	run := func(f func(context.Context) error) {
		tasks.Go(func() {
			defer cancel()
			if err := f(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	t.routing.start(ctx, run)
	run(t.routing.follow)
	run(func(ctx context.Context) error {
		mux := http.NewServeMux()
		mux.Handle(vpcproxyv1alpha1connect.NewNodeServiceHandler(bgpOnly{routing: t.routing}, transport.HandlerOptions()))
		return transport.Serve(ctx, mux, t.log, t.socket)
	})
	if ctx.Err() == nil {
		close(t.ready)
	}
	tasks.Wait()
	return errors.Join(errs...)
}
