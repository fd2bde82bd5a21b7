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

	"github.com/vpcproxy/vpcproxy/internal/binding"
	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/flow"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
)

// BindingOptions is what it takes to bind pods. Without a Store the node binds
// none: it is no function host.
type BindingOptions struct {
	Store *binding.Store
	Flows Flows
	// Linger is how long the path of an attachment stays prepared after its
	// last pod.
	Linger time.Duration
}

// Flows ends tracked connections; see flow.Table.
type Flows interface {
	End(ctx context.Context, src netip.Addr, ends func(flow.Flow) bool) (n int, err error)
}

// exchanger writes steers beside the loop; see route.Steers.Exchange.
type exchanger func(ctx context.Context, remove, add map[desired.SteerKey]desired.Steer) error

// bindings is the pods of this host and what they use. It is the truth that the
// loop asks for (see Node.wantedSteers); whoever changes it writes the kernel
// under the same lock, so that the two never part.
type bindings struct {
	opts     BindingOptions
	exchange exchanger
	ender    *ender

	mu        sync.Mutex
	all       map[netip.Addr]*intent.Binding
	pods      map[string]int // by attachment
	preparing map[string]int // attachments that a Bind under way needs
	lately    map[string]time.Time
	busy      map[netip.Addr]chan struct{}
	// The loop's desired state: its steers, its ways, and the generation that
	// each way came with.
	static map[desired.SteerKey]desired.Steer
	ways   map[string]desired.Way
	since  map[string]uint64
}

func newBindings(opts BindingOptions, exchange exchanger, log *slog.Logger) (*bindings, error) {
	b := &bindings{
		opts: opts, exchange: exchange, ender: newEnder(opts.Flows, log), all: map[netip.Addr]*intent.Binding{}, pods: map[string]int{}, preparing: map[string]int{},
		lately: map[string]time.Time{}, busy: map[netip.Addr]chan struct{}{}, since: map[string]uint64{},
	}
	if opts.Store == nil {
		return b, nil
	}
	list, problems, err := opts.Store.Load()
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		log.Error("binding not restored", "err", p)
	}
	for _, each := range list {
		b.hold(each)
	}
	if len(list) > 0 {
		log.Info("bindings restored", "pods", len(list))
	}
	return b, nil
}

// steers is what the loop wants at a desired state.
func (b *bindings) steers(s desired.State) map[desired.SteerKey]desired.Steer {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) == 0 {
		return s.Steers
	}
	out := maps.Clone(s.Steers)
	for _, each := range b.all {
		maps.Copy(out, effective(s.Steers, s.Ways, each))
	}
	return out
}

// effective is a pod's steers beside the planned ones: what those claim too is
// refused.
func effective(static map[desired.SteerKey]desired.Steer, ways map[string]desired.Way, b *intent.Binding) map[desired.SteerKey]desired.Steer {
	if b == nil {
		return nil
	}
	out := plan.Steers(ways, b)
	for k, v := range out {
		if s, ok := static[k]; ok && s != v {
			out[k] = desired.Steer{Refuse: true}
		}
	}
	return out
}

// take learns of a desired state that set hands to the loop.
func (b *bindings) take(s desired.State, set func() uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gen := set()
	since := make(map[string]uint64, len(s.Ways))
	for name, w := range s.Ways {
		since[name] = gen
		if old, ok := b.ways[name]; ok && old.Steer == w.Steer && slices.Equal(old.CIDRs, w.CIDRs) {
			since[name] = b.since[name]
		}
	}
	b.static, b.ways, b.since = s.Steers, s.Ways, since
}

// way tells whether an attachment's pods can be steered once the loop has
// applied a generation.
func (b *bindings) way(name string) (since uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, ok := b.ways[name]
	return b.since[name], ok && !w.Steer.Refuse
}

// used names the attachments whose paths must be prepared.
func (b *bindings) used(now time.Time) map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]bool{}
	for name := range b.pods {
		out[name] = true
	}
	for name := range b.preparing {
		out[name] = true
	}
	for name, until := range b.lately {
		if now.Before(until) {
			out[name] = true
		} else {
			delete(b.lately, name)
		}
	}
	return out
}

// expiry returns the time until a path is no longer needed.
func (b *bindings) expiry(now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, until := range b.lately {
		if d := until.Sub(now); !ok || d < wait {
			wait, ok = d, true
		}
	}
	return wait, ok
}

// prepare keeps paths prepared until done is called.
func (b *bindings) prepare(names []string) (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		b.preparing[name]++
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, name := range names {
			if b.preparing[name]--; b.preparing[name] > 0 {
				continue
			}
			delete(b.preparing, name)
			if b.pods[name] == 0 {
				b.release(name)
			}
		}
	}
}

// release starts the time for which an attachment lingers. It needs b.mu.
func (b *bindings) release(name string) {
	if b.opts.Linger > 0 {
		b.lately[name] = time.Now().Add(b.opts.Linger)
	}
}

// enter waits until nobody else is about the same pod.
func (b *bindings) enter(ctx context.Context, pod netip.Addr) (leave func(), err error) {
	for {
		b.mu.Lock()
		other := b.busy[pod]
		if other == nil {
			mine := make(chan struct{})
			b.busy[pod] = mine
			b.mu.Unlock()
			return func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				delete(b.busy, pod)
				close(mine)
			}, nil
		}
		b.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another request for pod %s is under way", ErrNotInPlace, pod)
		}
	}
}

func (b *bindings) get(pod netip.Addr) *intent.Binding {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[pod]
}

// onInterfaces returns the bindings that end with an interface.
func (b *bindings) onInterfaces() (list []*intent.Binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, each := range b.all {
		if each.Interface != "" {
			list = append(list, each)
		}
	}
	return list
}

// list returns all bindings, by address.
func (b *bindings) list() []*intent.Binding {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := slices.Collect(maps.Values(b.all))
	slices.SortFunc(list, func(x, y *intent.Binding) int { return x.Pod.Compare(y.Pod) })
	return list
}

// put makes a binding true, in place of what the pod had: on disk, in the
// kernel, here. ok is false, and nothing has changed, if a way of the new one is
// not in place at the generation that the loop has applied. After an error the pod
// has what it had.
func (b *bindings) put(ctx context.Context, want *intent.Binding, applied uint64) (old *intent.Binding, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range want.Attachments {
		if w, ok := b.ways[a.Name]; !ok || w.Steer.Refuse || b.since[a.Name] > applied {
			return nil, false, nil
		}
	}
	old = b.all[want.Pod]
	if err := b.opts.Store.Put(want); err != nil {
		return old, true, err
	}
	if err := b.write(ctx, old, want); err != nil {
		if old != nil && len(old.Attachments) > 0 {
			return old, true, errors.Join(err, b.opts.Store.Put(old))
		}
		return old, true, errors.Join(err, b.opts.Store.Delete(want.Pod))
	}
	b.drop(old)
	b.hold(want)
	return old, true, nil
}

// remove undoes a binding. Also after an error it is no longer wanted.
func (b *bindings) remove(ctx context.Context, old *intent.Binding) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all[old.Pod] != old {
		return nil
	}
	if err := b.opts.Store.Delete(old.Pod); err != nil {
		return err
	}
	b.drop(old)
	return b.write(ctx, old, nil)
}

// hold and drop keep the books. They need b.mu.
func (b *bindings) hold(want *intent.Binding) {
	b.all[want.Pod] = want
	for _, a := range want.Attachments {
		b.pods[a.Name]++
	}
}

func (b *bindings) drop(old *intent.Binding) {
	if old == nil {
		return
	}
	delete(b.all, old.Pod)
	for _, a := range old.Attachments {
		if b.pods[a.Name]--; b.pods[a.Name] == 0 {
			delete(b.pods, a.Name)
			b.release(a.Name)
		}
	}
}

// unused tells whether an attachment of a former binding has no pod any more.
func (b *bindings) unused(old *intent.Binding) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return old != nil && slices.ContainsFunc(old.Attachments, func(a intent.BoundAttachment) bool { return b.pods[a.Name] == 0 })
}

// write exchanges a pod's steers in the kernel. It needs b.mu.
func (b *bindings) write(ctx context.Context, old, want *intent.Binding) error {
	remove, add := effective(b.static, b.ways, old), effective(b.static, b.ways, want)
	if add == nil {
		add = map[desired.SteerKey]desired.Steer{}
	}
	for k := range remove {
		if s, planned := b.static[k]; planned && add[k] == (desired.Steer{}) {
			add[k] = s
		}
	}
	return b.exchange(ctx, remove, add)
}

// zones returns the conntrack zones that a pod's flows are in.
func (b *bindings) zones(of *intent.Binding) map[uint16]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[uint16]bool{}
	for _, v := range effective(b.static, b.ways, of) {
		if v.Zone != 0 {
			out[v.Zone] = true
		}
	}
	return out
}

// carries tells whether flows of a zone are still where they belong. Planned
// steers are looked at as they are now, bindings as they are when it is asked.
func (b *bindings) carries() func(flow.Flow) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	planned := map[uint16][]desired.SteerKey{}
	for k, v := range b.static {
		if k.Src.IsValid() {
			planned[v.Zone] = append(planned[v.Zone], k)
		}
	}
	return func(f flow.Flow) bool {
		if slices.ContainsFunc(planned[f.Zone], func(k desired.SteerKey) bool { return k.Src.Contains(f.Src) && k.Dst.Contains(f.Dst) }) {
			return true
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for k, v := range effective(b.static, b.ways, b.all[f.Src]) {
			if v.Zone == f.Zone && k.Dst.Contains(f.Dst) {
				return true
			}
		}
		return false
	}
}
