package tunnel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Namespaces are the network namespaces of ours, one per attachment that a
// proxy serves.
type Namespaces struct {
	host kernel.Host
}

var _ reconcile.Kind[string, desired.Namespace] = (*Namespaces)(nil)

// NewNamespaces returns the Kind.
func NewNamespaces(host kernel.Host) *Namespaces {
	return &Namespaces{host: host}
}

// Name implements [reconcile.Kind].
func (*Namespaces) Name() string { return "namespaces" }

// List implements [reconcile.Kind].
func (n *Namespaces) List(ctx context.Context) (map[string]desired.Namespace, error) {
	names, err := owned.Namespaces(ctx, n.host)
	if err != nil {
		return nil, err
	}
	out := make(map[string]desired.Namespace, len(names))
	for _, name := range names {
		out[name] = desired.Namespace{}
	}
	return out, nil
}

// Diff implements [reconcile.Kind]. A namespace is all key.
func (*Namespaces) Diff(_, _ desired.Namespace) string { return "" }

// Upsert implements [reconcile.Kind].
func (n *Namespaces) Upsert(ctx context.Context, name string, _ desired.Namespace) error {
	return n.host.CreateNamespace(ctx, name)
}

// Delete implements [reconcile.Kind]. It refuses while an ENI is inside: a
// virtual interface would die with the namespace, and a physical one would come
// out without its addresses. Deleting ENIs gives them back first.
func (n *Namespaces) Delete(ctx context.Context, name string, _ desired.Namespace) error {
	h, err := n.host.In(name)
	if err == nil {
		err = refuseENIs(ctx, h, name)
	}
	if err != nil && !errors.Is(err, kernel.ErrNotFound) {
		return err
	}
	return n.host.DeleteNamespace(ctx, name)
}

func refuseENIs(ctx context.Context, h kernel.Handle, name string) error {
	links, err := h.Links(ctx)
	if err != nil {
		return err
	}
	for _, l := range links {
		if owned.ENI(l) {
			return fmt.Errorf("namespace %s still holds interface %s, which must be given back first", name, l.Name)
		}
	}
	return nil
}
