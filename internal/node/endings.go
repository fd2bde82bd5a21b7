package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/flow"
)

const (
	// walkShare is how much longer the ender rests than a walk took: looking for
	// flows takes a walk through the kernel's whole table, 20 ms on a host with
	// 262,144 buckets, and pods may end fifty times a second.
	walkShare = 4
	// unhurried is how long flows that nobody waits for may go on: the kernel
	// keeps an exchange of steers waiting while it walks.
	unhurried = time.Second
	// fewPods is up to how many pods are each looked for by a walk that the
	// kernel filters. Beyond, all flows are listed once.
	fewPods = 3
)

// ender ends flows of pods, of many in one walk.
type ender struct {
	flows Flows
	log   *slog.Logger

	mu      sync.Mutex
	waiting map[netip.Addr]*ending
	walking map[netip.Addr]*ending
	wake    chan struct{} // buffered, 1: there is something to end
	hurry   chan struct{} // buffered, 1: somebody waits for it
}

// ending is what a pod's flows must go by.
type ending struct {
	zones map[uint16]bool
	done  chan struct{} // closed when they are gone
	err   error         // why they may not be; to be read after done
}

func newEnder(flows Flows, log *slog.Logger) *ender {
	return &ender{flows: flows, log: log, waiting: map[netip.Addr]*ending{}, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
}

// end has a pod's flows in the zones ended soon.
func (e *ender) end(pod netip.Addr, zones map[uint16]bool) {
	e.mu.Lock()
	w := e.waiting[pod]
	if w == nil {
		w = &ending{zones: map[uint16]bool{}, done: make(chan struct{})}
		e.waiting[pod] = w
	}
	maps.Copy(w.zones, zones)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // awake already
	}
}

// await returns when nothing of a pod is left that end was called for.
func (e *ender) await(ctx context.Context, pod netip.Addr) error {
	e.mu.Lock()
	pending := []*ending{e.walking[pod], e.waiting[pod]}
	e.mu.Unlock()
	for _, w := range pending {
		if w == nil {
			continue
		}
		select {
		case e.hurry <- struct{}{}:
		default:
		}
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-ctx.Done():
			return fmt.Errorf("%w: connections of the pod before are being ended", ErrNotInPlace)
		}
	}
	return nil
}

// run works until the context ends.
func (e *ender) run(ctx context.Context) {
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-e.hurry:
		case <-time.After(unhurried):
		}
		start := time.Now()
		err := e.walk(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			e.log.Warn("connections of pods that are unbound may go on", "err", err)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(walkShare * time.Since(start)):
		}
	}
}

func (e *ender) walk(ctx context.Context) error {
	e.mu.Lock()
	pods := e.waiting
	e.waiting, e.walking = map[netip.Addr]*ending{}, pods
	e.mu.Unlock()
	ends := func(f flow.Flow) bool {
		w := pods[f.Src]
		return w != nil && w.zones[f.Zone]
	}
	sources := []netip.Addr{{}}
	if len(pods) <= fewPods {
		sources = slices.Collect(maps.Keys(pods))
	}
	var errs []error
	for _, src := range sources {
		_, err := e.flows.End(ctx, src, ends)
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	e.mu.Lock()
	e.walking = nil
	e.mu.Unlock()
	for _, w := range pods {
		w.err = err
		close(w.done)
	}
	return err
}
