// Package kube follows the pods of this node in the Kubernetes API, and has
// those bound that an annotation gives an attachment. It is the only importer
// of client-go.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/vpcproxy/vpcproxy/internal/kube/names"
)

const (
	// firstRetry and lastRetry bound the wait after a binding has failed.
	firstRetry, lastRetry = time.Second, time.Minute
	// refresh is how often bindings are compared with no event: somebody else
	// may have removed one.
	refresh = time.Minute
	// bindLimit bounds one call.
	bindLimit = 10 * time.Second
)

// Binder makes bindings.
type Binder interface {
	// Bind gives an address the attachments, in place of what it has.
	Bind(ctx context.Context, b Bound) error
	// Unbind removes an address's binding if it is that owner's; absent is
	// success.
	Unbind(ctx context.Context, pod netip.Addr, owner string) error
	Bindings(ctx context.Context) ([]Bound, error)
}

// Options sets up a Follower.
type Options struct {
	Node       string // as Kubernetes names it
	Kubeconfig string // "": as the pod that we are in
	Binder     Binder
	Log        *slog.Logger
}

// Follower follows the pods of one node. While the API server is away, all
// stays as it is. It is safe for concurrent use.
type Follower struct {
	opts       Options
	client     rest.Interface
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	wake       chan struct{} // buffered, 1
	ready      chan struct{}

	mu      sync.Mutex
	lost    map[string]error // by resource: why it is not followed
	problem map[string]string
}

// New returns a Follower. It sends nothing before Run.
func New(o Options) (*Follower, error) {
	client, err := newClient(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	f := &Follower{opts: o, client: client, wake: make(chan struct{}, 1), ready: make(chan struct{}), lost: map[string]error{}}
	f.pods = f.informer("pods", &corev1.Pod{}, "spec.nodeName="+o.Node, slimPod)
	f.namespaces = f.informer("namespaces", &corev1.Namespace{}, "", slimNamespace)
	return f, nil
}

// informer keeps a copy of one kind of object.
func (f *Follower) informer(resource string, object runtime.Object, selector string, slim cache.TransformFunc) cache.SharedIndexInformer {
	lw := cache.NewFilteredListWatchFromClient(f.client, resource, metav1.NamespaceAll, func(o *metav1.ListOptions) { o.FieldSelector = selector })
	watched := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContextFunc(ctx, o)
			f.reached(resource, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchFuncWithContext(ctx, o)
			f.reached(resource, err)
			return w, err
		},
	}
	i := cache.NewSharedIndexInformer(watched, object, 0, cache.Indexers{})
	changed := func(any) { f.poke() }
	// These fail on an informer that runs already only.
	_ = i.SetTransform(slim)
	_ = i.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}) // reached has told it
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(_, o any) { changed(o) },
	})
	return i
}

func (f *Follower) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// reached notes whether the API server answered.
func (f *Follower) reached(resource string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	f.mu.Lock()
	before := f.lost[resource]
	f.lost[resource] = err
	f.mu.Unlock()
	switch {
	case err != nil && before == nil:
		f.opts.Log.Warn("Kubernetes API not reached; bindings stay as they are", "resource", resource, "err", err)
	case err == nil && before != nil:
		f.opts.Log.Info("Kubernetes API reached again", "resource", resource)
	}
}

// String names the task.
func (f *Follower) String() string { return "pods of node " + f.opts.Node }

// Ready is closed when the pods known at the start have been bound, as far as
// they could be.
func (f *Follower) Ready() <-chan struct{} { return f.ready }

// Connected reports whether the API is being followed.
func (f *Follower) Connected() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost["pods"] == nil && f.lost["namespaces"] == nil && f.pods.HasSynced() && f.namespaces.HasSynced()
}

// Problems tells what keeps pods from their attachments, sorted.
func (f *Follower) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for resource, err := range f.lost {
		if err != nil {
			out = append(out, fmt.Sprintf("Kubernetes API not reached, bindings stay as they are: %s: %v", resource, err))
		}
	}
	for pod, text := range f.problem {
		out = append(out, "pod "+pod+": "+text)
	}
	slices.Sort(out)
	return out
}

// Waiting is how many addresses could not be bound or unbound.
func (f *Follower) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.problem)
}

// Run follows the API until the context ends. Bindings stay as they are then.
func (f *Follower) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for _, i := range []cache.SharedIndexInformer{f.pods, f.namespaces} {
		tasks.Go(func() { i.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), f.pods.HasSynced, f.namespaces.HasSynced) {
		return nil
	}
	retry := firstRetry
	for first := true; ; first = false {
		wait := refresh
		if f.bind(ctx) {
			retry = firstRetry
		} else {
			wait, retry = retry, min(2*retry, lastRetry)
		}
		if first {
			close(f.ready)
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-f.wake:
		case <-again.C:
		}
		again.Stop()
	}
}

// bind makes bindings what pods ask for, and says whether all are.
func (f *Follower) bind(ctx context.Context) bool {
	bound, err := f.opts.Binder.Bindings(ctx)
	if err != nil {
		f.tell(map[string]string{"*": fmt.Sprintf("bindings cannot be listed: %v", err)})
		return false
	}
	failed := map[string]string{}
	for _, c := range changes(f.known(), f.defaults(), bound) {
		if err := f.apply(ctx, c); err != nil {
			failed[strings.TrimSpace(c.Pod+" ("+c.Address.String()+")")] = err.Error()
		}
		if ctx.Err() != nil {
			return false
		}
	}
	f.tell(failed)
	return len(failed) == 0
}

func (f *Follower) apply(ctx context.Context, c Change) error {
	ctx, cancel := context.WithTimeout(ctx, bindLimit)
	defer cancel()
	if len(c.Attachments) == 0 {
		return f.opts.Binder.Unbind(ctx, c.Address, c.Owner)
	}
	return f.opts.Binder.Bind(ctx, c.Bound)
}

// tell replaces the problems and logs what is new or solved.
func (f *Follower) tell(now map[string]string) {
	f.mu.Lock()
	before := f.problem
	f.problem = now
	f.mu.Unlock()
	for pod, text := range now {
		if before[pod] != text {
			f.opts.Log.Warn("pod not bound as its annotation says", "pod", pod, "err", text)
		}
	}
	for pod := range before {
		if _, ok := now[pod]; !ok {
			f.opts.Log.Info("pod bound as its annotation says", "pod", pod)
		}
	}
}

func (f *Follower) known() []Pod {
	var out []Pod
	for _, o := range f.pods.GetStore().List() {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, podOf(p))
		}
	}
	return out
}

func (f *Follower) defaults() map[string]string {
	out := map[string]string{}
	for _, o := range f.namespaces.GetStore().List() {
		if n, ok := o.(*corev1.Namespace); ok && n.Annotations[names.Annotation] != "" {
			out[n.Name] = n.Annotations[names.Annotation]
		}
	}
	return out
}

// ErrNotSynced says that the API has not been read yet.
var ErrNotSynced = errors.New("the pods and namespaces of Kubernetes are not known yet")

// Attachments returns those of a pod that is about to start. own is the pod's
// annotation, if the caller knows whether it has one; otherwise the pod is
// looked up, at the API server if need be.
func (f *Follower) Attachments(ctx context.Context, namespace, name, uid string, own *string, ownKnown bool) ([]string, error) {
	if !f.namespaces.HasSynced() {
		return nil, ErrNotSynced
	}
	if !ownKnown {
		p, err := f.pod(ctx, namespace, name, uid)
		if err != nil {
			return nil, err
		}
		own = p.Annotation
	}
	if own != nil {
		return attachments(own, ""), nil
	}
	o, ok, err := f.namespaces.GetStore().GetByKey(namespace)
	if n, isNamespace := o.(*corev1.Namespace); err == nil && ok && isNamespace {
		return attachments(nil, n.Annotations[names.Annotation]), nil
	}
	n := &corev1.Namespace{}
	if err := f.client.Get().Resource("namespaces").Name(namespace).Do(ctx).Into(n); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return attachments(nil, n.Annotations[names.Annotation]), nil
}

func (f *Follower) pod(ctx context.Context, namespace, name, uid string) (Pod, error) {
	o, ok, err := f.pods.GetStore().GetByKey(namespace + "/" + name)
	if p, isPod := o.(*corev1.Pod); err == nil && ok && isPod && (uid == "" || string(p.UID) == uid) {
		return podOf(p), nil
	}
	// The watch may be behind what starts pods.
	p := &corev1.Pod{}
	if err := f.client.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(p); err != nil {
		return Pod{}, fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	}
	return podOf(p), nil
}
