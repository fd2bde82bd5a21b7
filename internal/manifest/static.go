package manifest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// LoadDir reads static intent: the whole platform in the files of a directory,
// with no controller to allocate what is left out. Every object is checked
// against the others, and must say what a controller would otherwise give it:
// GRE keys and tunnel addresses. The zero pool means intent.DefaultPool.
//
// On an error the set is nil: the caller keeps the last one that was good. An
// empty directory is an empty set. The revision is left 0.
func LoadDir(dir string, pool netip.Prefix) (*intent.Set, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory; static intent is read from a directory of manifests", dir)
	}
	docs, err := Load(dir, nil)
	if err != nil {
		return nil, err
	}
	if !pool.IsValid() {
		pool = intent.DefaultPool
	}
	set := &intent.Set{Pool: pool}
	for _, d := range docs {
		set.Put(d.Object)
	}
	var errs []error
	for _, d := range docs {
		if _, err := set.Check(d.Object); err != nil {
			errs = append(errs, d.Locate(err))
		}
		for _, fe := range unallocated(set, d.Object) {
			errs = append(errs, d.Locate(fe))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return set, nil
}

// unallocated returns what an object must say where no controller allocates.
func unallocated(set *intent.Set, o intent.Object) []*intent.FieldError {
	var errs []*intent.FieldError
	missing := func(field, format string, args ...any) {
		errs = append(errs, &intent.FieldError{
			Object: string(o.ObjectKind()) + "/" + o.ObjectName(), Field: field, Problem: fmt.Sprintf(format, args...),
		})
	}
	switch o := o.(type) {
	case *intent.Attachment:
		if _, keyed := o.Key(); !keyed && o.EffectiveScope() == intent.ScopePods {
			missing("spec.greKey", "is missing, and without a controller nobody draws one; give a number that no other attachment has")
		}
	case *intent.ProxyGroup:
		if !o.Tunnel().IsValid() {
			missing("spec.tunnelAddress", "is missing, and without a controller nobody allocates one; give a free address of %s", set.Pool)
		}
		for i, m := range o.Spec.Members {
			if set.Node(m.Node) == nil {
				missing(fmt.Sprintf("spec.members[%d].node", i), "no Node is named %q, and without a controller no node registers itself; add its manifest", m.Node)
			}
		}
	case *intent.Node:
		if o.HasRole(intent.RoleFunction) && !o.Tunnel().IsValid() {
			missing("spec.tunnelAddress", "is missing, and without a controller nobody allocates one; give a free address of %s", set.Pool)
		}
	}
	return errs
}
