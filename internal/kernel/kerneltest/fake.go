// Package kerneltest has a kernel in memory, and the contract that it keeps
// together with the real one: one suite of tests, run on both.
//
// The fake models what code of this product can notice: what depends on what
// (a link that goes down or moves loses things), whose key is taken, and what is
// refused. It models no packets, and none of the routes that the kernel adds for
// addresses by itself.
package kerneltest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

var (
	_ kernel.Host   = (*Fake)(nil)
	_ kernel.Handle = (*handle)(nil)
)

// Fake is a machine in memory. Its methods, and those of its Handles, are safe for
// concurrent use.
type Fake struct {
	mu       sync.Mutex
	spaces   map[string]*space // by name; "" is the agent's own
	watches  []*watch
	asked    []*asked
	kept     []kept
	failures []*failure
	journal  []string
	closed   bool
}

// New returns a machine with one network namespace, which has nothing but lo.
func New() *Fake {
	return &Fake{spaces: map[string]*space{"": newSpace("")}}
}

type failure struct {
	op   string
	left int // occasions before it happens
	err  error
}

// Fail makes the nth next occasion (from 1) of an operation fail with err, once.
// op is the name of a method of kernel.Handle or kernel.Host; in a batch method
// every item is an occasion. An empty op stands for all methods that write.
// Nothing is changed by an operation that fails so.
func (f *Fake) Fail(op string, nth int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, &failure{op: op, left: nth, err: err})
}

// Writes counts the objects that writing methods were called for, also where the
// call changed nothing or failed.
func (f *Fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.journal)
}

// Journal returns a line for each write so far: the method, the namespace in
// brackets and the object.
func (f *Fake) Journal() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.journal)
}

// read begins a reading operation. It needs f.mu.
func (f *Fake) read(ctx context.Context, op string) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	return f.fail(op, false)
}

// write begins a writing operation. It needs f.mu.
func (f *Fake) write(ctx context.Context, op, netns, object string) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	f.journal = append(f.journal, fmt.Sprintf("%s [%s] %s", op, netns, object))
	return f.fail(op, true)
}

func (f *Fake) usable(ctx context.Context) error {
	if f.closed {
		return fmt.Errorf("the host is closed: %w", os.ErrClosed)
	}
	return ctx.Err()
}

func (f *Fake) fail(op string, writes bool) error {
	for i, failure := range f.failures {
		if failure.op != op && (failure.op != "" || !writes) {
			continue
		}
		if failure.left--; failure.left > 0 {
			continue
		}
		f.failures = slices.Delete(f.failures, i, i+1)
		return failure.err
	}
	return nil
}

// watch is one call of Watch.
type watch struct {
	netns  string
	ctx    context.Context //nolint:containedctx // a watch is a call that is still going on
	cancel context.CancelFunc
	in     chan kernel.Hint
}

// Watch implements kernel.Host.
func (f *Fake) Watch(ctx context.Context, name string) (<-chan kernel.Hint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(ctx, "Watch"); err != nil {
		return nil, err
	}
	if f.spaces[name] == nil {
		return nil, noNamespace(name)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{netns: name, ctx: ctx, cancel: cancel, in: make(chan kernel.Hint)}
	out := kernel.MergeHints(ctx, w.in)
	w.send(kernel.HintAll)
	f.watches = append(f.watches, w)
	return out, nil
}

// Overrun tells the watchers of a namespace that notifications were lost.
func (f *Fake) Overrun(netns string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hint(netns, kernel.HintAll)
}

// hint needs f.mu.
func (f *Fake) hint(netns string, hints ...kernel.Hint) {
	f.watches = slices.DeleteFunc(f.watches, func(w *watch) bool { return w.ctx.Err() != nil })
	for _, w := range f.watches {
		if w.netns == netns {
			for _, h := range hints {
				w.send(h)
			}
		}
	}
}

// send does not wait for the reader: MergeHints always takes.
func (w *watch) send(h kernel.Hint) {
	select {
	case w.in <- h:
	case <-w.ctx.Done():
	}
}

// endWatches needs f.mu.
func (f *Fake) endWatches(netns string) {
	for _, a := range f.asked {
		if a.netns == netns {
			a.stop()
		}
	}
	for _, w := range f.watches {
		if w.netns == netns {
			w.cancel()
		}
	}
	for _, k := range f.kept {
		if k.netns == netns {
			k.stop()
			<-k.done
		}
	}
}

// Close implements kernel.Host.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for netns := range f.spaces {
		f.endWatches(netns)
	}
	return nil
}
