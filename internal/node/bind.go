package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/flow"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

var (
	// ErrNotInPlace is returned by Bind and Unbind if the kernel could not be
	// made ready in time. The pod has what it had.
	ErrNotInPlace = errors.New("not in place in time")
	// ErrNoFunctionHost is returned by Bind on a node that has not the role.
	ErrNoFunctionHost = errors.New("this node has not the role function")
)

const (
	// bindPatience bounds a Bind whose caller does not.
	bindPatience = 10 * time.Second
	// bindPoll is how often a Bind that waits looks again without having heard
	// of a pass: a plan that asks for nothing new causes none.
	bindPoll = 100 * time.Millisecond
)

// BindRequest asks for a binding.
type BindRequest struct {
	Pod         netip.Addr
	Attachments []string
	Interface   string // "" if the binding does not end with an interface
	Owner       string // may be ""
}

// BindingStatus is a binding and how it fares.
type BindingStatus struct {
	*intent.Binding
	// Attachments say of each whether packets take its path. Otherwise they
	// are refused.
	Attachments []AttachmentStatus
}

func (r BindRequest) validate() error {
	fail := func(field, format string, args ...any) error {
		return &intent.FieldError{Object: "binding", Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case !r.Pod.IsValid() || r.Pod.IsUnspecified() || r.Pod.IsMulticast() || r.Pod.IsLoopback() || r.Pod.Zone() != "" || r.Pod.Is4In6():
		return fail("podIP", "%s is not a pod's address, such as 10.244.1.5", r.Pod)
	case len(r.Attachments) == 0:
		return fail("attachments", "is empty; name at least one, or unbind the pod")
	case len(r.Interface) > 15: // IFNAMSIZ-1 (include/uapi/linux/if.h)
		return fail("interface", "%q is not an interface name: at most 15 characters", r.Interface)
	}
	for i, a := range r.Attachments {
		if slices.Contains(r.Attachments[:i], a) {
			return fail(fmt.Sprintf("attachments[%d]", i), "%s appears twice", a)
		}
	}
	return nil
}

// Bind makes a pod use attachments, and no others. When it returns, the pod's
// packets take the right path or are refused. The error is an *intent.FieldError if
// the request cannot be granted, or wraps ErrNotInPlace or ErrNoFunctionHost;
// after it the pod has what it had, unless it is the connections of the address's
// former pod that could not be ended. It is idempotent.
func (n *Node) Bind(ctx context.Context, r BindRequest) (BindingStatus, error) {
	if n.bindings.opts.Store == nil {
		return BindingStatus{}, ErrNoFunctionHost
	}
	if err := r.validate(); err != nil {
		return BindingStatus{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	if err := n.checkInterface(ctx, r.Interface); err != nil {
		return BindingStatus{}, err
	}
	leave, err := n.bindings.enter(ctx, r.Pod)
	if err != nil {
		return BindingStatus{}, err
	}
	defer leave()
	done := n.bindings.prepare(r.Attachments)
	s, unused, err := n.bind(ctx, r)
	done()
	if unused || err != nil {
		n.replan()
	}
	return s, err
}

// bind is Bind for a request that is valid and alone. unused tells whether
// attachments may have lost their last pod.
func (n *Node) bind(ctx context.Context, r BindRequest) (s BindingStatus, unused bool, err error) {
	for {
		list, applied, err := n.await(ctx, r)
		if err != nil {
			return s, false, err
		}
		want := r.binding(list)
		old, ok, err := n.bindings.put(ctx, want, applied)
		if !ok {
			continue // the plan has changed meanwhile
		}
		if err != nil {
			n.loop.Hint("steers")
			return s, false, fmt.Errorf("bind pod %s: %w", r.Pod, err)
		}
		n.endFlows(old, want)
		if err := n.bindings.ender.await(ctx, r.Pod); err != nil {
			return s, false, fmt.Errorf("bind pod %s: %w", r.Pod, err)
		}
		return n.bindingStatus(want), n.bindings.unused(old), nil
	}
}

func (r BindRequest) binding(list []*intent.Attachment) *intent.Binding {
	b := &intent.Binding{Pod: r.Pod, Interface: r.Interface, Owner: r.Owner, Bound: time.Now().UTC()}
	for _, a := range list {
		b.Attachments = append(b.Attachments, intent.BoundAttachment{Name: a.ObjectName(), CIDRs: a.Spec.CIDRs})
	}
	return b
}

func (n *Node) checkInterface(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	h, err := n.opts.Host.In("")
	if err == nil {
		_, err = h.LinkByName(ctx, name)
	}
	if errors.Is(err, kernel.ErrNotFound) {
		return &intent.FieldError{Object: "binding", Field: "interface", Problem: fmt.Sprintf("there is no interface %s on this host; give the host's end of the pod's interface", name)}
	}
	return err
}

// await waits until the pods of all attachments can be steered: to their paths,
// or to be refused.
func (n *Node) await(ctx context.Context, r BindRequest) (list []*intent.Attachment, applied uint64, err error) {
	for first := true; ; first = false {
		passed := n.loop.Passed()
		list, applied, why, err := n.steerable(r)
		if err != nil || why == "" {
			return list, applied, err
		}
		if first {
			n.replan()
		}
		select {
		case <-passed:
		case <-time.After(bindPoll):
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("bind pod %s: %w: %s", r.Pod, ErrNotInPlace, why)
		}
	}
}

// steerable says why pods of the attachments cannot be steered yet; "" if they
// can.
func (n *Node) steerable(r BindRequest) (list []*intent.Attachment, applied uint64, why string, err error) {
	loop := n.loop.Status()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.set == nil {
		return nil, 0, "no intent has been received yet", nil
	}
	self := n.set.Node(n.opts.Name)
	if self == nil {
		return nil, 0, fmt.Sprintf("the intent knows no node %s yet", n.opts.Name), nil
	}
	if list, err = n.set.CheckBinding(self, r.Pod, r.Attachments); err != nil {
		return nil, 0, "", err
	}
	for _, a := range list {
		if why := n.pending(a.ObjectName(), loop); why != "" {
			return nil, 0, "attachment " + a.ObjectName() + ": " + why, nil
		}
	}
	return list, loop.Applied, "", nil
}

// pending says why packets with an attachment's mark might go astray; "" if
// they cannot. It needs n.mu.
func (n *Node) pending(name string, loop reconcile.Status) string {
	since, ok := n.bindings.way(name)
	f, found := n.footprint(name)
	switch {
	case n.problem != nil && (!ok || !found):
		return n.problem.Error()
	case !ok || !found:
		for _, p := range n.current.Problems {
			if p.Attachment == name {
				return p.Message
			}
		}
		return "its path is being planned"
	case loop.Waiting != "":
		return loop.Waiting
	case loop.Applied < since:
		return "its path is being prepared"
	}
	for _, k := range loop.Kinds {
		if k.Name != "rules" && k.Name != "steers" {
			continue
		}
		if k.ListErr != nil {
			return k.ListErr.Error()
		}
		if k.Pending > len(k.Objects) {
			return fmt.Sprintf("%d %s are not in place", k.Pending, k.Name)
		}
		for _, o := range k.Objects {
			if o.Op != reconcile.Delete && f.Owns(o.Object) {
				return fmt.Sprintf("%s %s is not in place", k.Name, o.Key)
			}
		}
	}
	return ""
}

func (n *Node) footprint(name string) (plan.Footprint, bool) {
	i := slices.IndexFunc(n.current.Footprints, func(f plan.Footprint) bool {
		return f.Attachment == name && f.Role == intent.RoleFunction
	})
	if i < 0 {
		return plan.Footprint{}, false
	}
	return n.current.Footprints[i], true
}

// endFlows has ended what a pod had under way by attachments that it no longer
// uses; by all, if the address has a new owner.
func (n *Node) endFlows(old, want *intent.Binding) {
	if old == nil {
		return
	}
	zones := n.bindings.zones(old)
	if want != nil && want.Owner == old.Owner {
		for zone := range n.bindings.zones(want) {
			delete(zones, zone)
		}
	}
	if len(zones) > 0 {
		n.bindings.ender.end(old.Pod, zones)
	}
}

// Unbind undoes a pod's binding; its flows end within a second, and before
// another Bind for the address returns. removed is false if there
// is none, or one of another owner while owner is not "". It is idempotent.
func (n *Node) Unbind(ctx context.Context, pod netip.Addr, owner string) (removed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	return n.unbind(ctx, pod, func(b *intent.Binding) bool { return owner == "" || b.Owner == "" || b.Owner == owner })
}

func (n *Node) unbind(ctx context.Context, pod netip.Addr, when func(*intent.Binding) bool) (removed bool, err error) {
	leave, err := n.bindings.enter(ctx, pod)
	if err != nil {
		return false, err
	}
	defer leave()
	old := n.bindings.get(pod)
	if old == nil || !when(old) {
		return false, nil
	}
	if err := n.bindings.remove(ctx, old); err != nil {
		n.loop.Hint("steers")
		return false, fmt.Errorf("unbind pod %s: %w", pod, err)
	}
	if n.bindings.unused(old) {
		n.replan()
	}
	n.endFlows(old, nil)
	return true, nil
}

// Bindings lists all bindings, by address, or that of one pod.
func (n *Node) Bindings(pod netip.Addr) []BindingStatus {
	var out []BindingStatus
	for _, b := range n.bindings.list() {
		if !pod.IsValid() || b.Pod == pod {
			out = append(out, n.bindingStatus(b))
		}
	}
	return out
}

// BindingCount returns the number of bindings.
func (n *Node) BindingCount() int {
	n.bindings.mu.Lock()
	defer n.bindings.mu.Unlock()
	return len(n.bindings.all)
}

func (n *Node) bindingStatus(b *intent.Binding) BindingStatus {
	loop := n.loop.Status()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := BindingStatus{Binding: b}
	for _, a := range b.Attachments {
		at := AttachmentStatus{Name: a.Name, Role: intent.RoleFunction}
		if f, found := n.footprint(a.Name); found {
			since, ok := n.bindings.way(a.Name)
			at = attachment(f, firstProblems(n.current), loop, ok && loop.Applied >= since)
		} else {
			at.Message = "the attachment is not for this node any more"
		}
		s.Attachments = append(s.Attachments, at)
	}
	return s
}

// prune ends bindings whose interface is gone: those that were there before the
// interfaces were listed.
func (n *Node) prune(ctx context.Context, before []*intent.Binding, tasks *sync.WaitGroup) {
	var gone []*intent.Binding
	for _, b := range before {
		if !n.facts.hasLink(b.Interface) {
			gone = append(gone, b)
		}
	}
	if len(gone) == 0 {
		return
	}
	// Beside the planner, which a Bind for the same pod may be waiting for.
	tasks.Go(func() {
		for _, b := range gone {
			removed, err := n.unbind(ctx, b.Pod, func(now *intent.Binding) bool { return now == b })
			switch {
			case err != nil && ctx.Err() == nil:
				n.opts.Log.Warn("binding of a pod that is gone not removed", "pod", b.Pod, "err", err)
			case removed:
				n.opts.Log.Info("binding removed: its interface is gone", "pod", b.Pod, "interface", b.Interface)
			}
		}
	})
}

// sweep ends flows that are in a zone of ours and steered there no longer, each
// time that something has been taken away, and after a start.
func (n *Node) sweep(ctx context.Context) {
	failed := false
	first, last := n.opts.Plan.Zones()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.sweeps:
		}
		carries := n.bindings.carries()
		ended, err := n.bindings.opts.Flows.End(ctx, netip.Addr{}, func(f flow.Flow) bool {
			return f.Zone >= first && f.Zone <= last && !carries(f)
		})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failed:
			n.opts.Log.Warn("connections of what was detached may go on", "err", err)
		case err == nil && ended > 0:
			n.opts.Log.Info("ended connections of what was detached", "connections", ended)
		}
		failed = err != nil
	}
}

// swept asks for a sweep after a pass that has taken steers away or changed
// them, and after the first.
func (n *Node) swept(p reconcile.Pass) {
	for _, k := range p.Kinds {
		if k.Name == "steers" && k.ListErr == nil && (n.unswept || k.Deleted+k.Repaired > 0) {
			n.unswept = false
			select {
			case n.sweeps <- struct{}{}:
			default:
			}
		}
	}
}
