package agent

import (
	"context"
	"errors"
	"sync"
)

// reflectorTask is the role reflector on a machine that does nothing else.
type reflectorTask struct {
	routing *routing
	ready   chan struct{}
}

func (a *Agent) buildReflector(ctx context.Context, m *metrics) error {
	r, err := newRouting(ctx, a.cfg, nil, a.log)
	if err != nil {
		return err
	}
	m.routing(r)
	a.tasks = append(a.tasks, &reflectorTask{routing: r, ready: make(chan struct{})})
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
	if ctx.Err() == nil {
		close(t.ready)
	}
	tasks.Wait()
	return errors.Join(errs...)
}
