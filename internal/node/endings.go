package node

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/flow"
)

const (
	// walkShare is how much longer the ender rests than a walk took: looking for
	// flows takes a walk through the kernel's whole table, 20 ms on a host with
	// 262,144 buckets, and pods may end fifty times a second.
	walkShare = 4
	// fewPods is up to how many pods are each looked for by a walk that the
	// kernel filters. Beyond, all flows are listed once.
	fewPods = 3
)

// ender ends flows of pods, of many in one walk.
type ender struct {
	flows Flows

	mu      sync.Mutex
	waiting map[netip.Addr]*ending
	wake    chan struct{} // buffered, 1
}

// ending is what a pod's flows must go by.
type ending struct {
	zones map[uint16]bool
	done  []chan<- error
}

func newEnder(flows Flows) *ender {
	return &ender{flows: flows, waiting: map[netip.Addr]*ending{}, wake: make(chan struct{}, 1)}
}

// end returns when a pod's flows in the zones have ended.
func (e *ender) end(ctx context.Context, pod netip.Addr, zones map[uint16]bool) error {
	done := make(chan error, 1)
	e.mu.Lock()
	w := e.waiting[pod]
	if w == nil {
		w = &ending{zones: map[uint16]bool{}}
		e.waiting[pod] = w
	}
	for zone := range zones {
		w.zones[zone] = true
	}
	w.done = append(w.done, done)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // awake already
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(errors.New("its connections may go on"), ctx.Err())
	}
}

// run serves end until the context ends. Who waits then is told by its own.
func (e *ender) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		}
		start := time.Now()
		e.walk(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(walkShare * time.Since(start)):
		}
	}
}

func (e *ender) walk(ctx context.Context) {
	e.mu.Lock()
	pods := e.waiting
	e.waiting = map[netip.Addr]*ending{}
	e.mu.Unlock()
	ends := func(f flow.Flow) bool {
		w := pods[f.Src]
		return w != nil && w.zones[f.Zone]
	}
	sources := []netip.Addr{{}}
	if len(pods) <= fewPods {
		sources = sources[:0]
		for pod := range pods {
			sources = append(sources, pod)
		}
	}
	var errs []error
	for _, src := range sources {
		_, err := e.flows.End(ctx, src, ends)
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	for _, w := range pods {
		for _, done := range w.done {
			done <- err // buffered
		}
	}
}
