package owned

import (
	"context"
	"fmt"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Batch splits items by the namespace that they are in, and calls write once for
// each. It returns one error or nil per item, and so must write.
func Batch[T any](ctx context.Context, host kernel.Host, items []T, netns func(T) string, write func(h kernel.Handle, items []T) []error) []error {
	if len(items) > 0 && !slices.ContainsFunc(items, func(it T) bool { return netns(it) != netns(items[0]) }) {
		return in(host, netns(items[0]), items, write)
	}
	errs := make([]error, len(items))
	at := map[string][]int{} // indexes of items
	for i, it := range items {
		at[netns(it)] = append(at[netns(it)], i)
	}
	for name, indexes := range at {
		part := make([]T, len(indexes))
		for i, j := range indexes {
			part[i] = items[j]
		}
		for i, err := range in(host, name, part, write) {
			errs[indexes[i]] = err
		}
	}
	return errs
}

// in is Batch for items of one namespace.
func in[T any](host kernel.Host, name string, items []T, write func(h kernel.Handle, items []T) []error) []error {
	var errs []error
	if h, err := host.In(name); err != nil {
		errs = Repeat(err, len(items))
	} else {
		errs = write(h, items)
	}
	for i, err := range errs {
		if err != nil && name != "" {
			errs[i] = fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	return errs
}

// Repeat returns n times the same error.
func Repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// Translate turns items into what the kernel takes, writes those that can be
// translated in one call, and returns one error or nil per item.
func Translate[T, U any](items []T, translate func(T) (U, error), write func([]U) []error) []error {
	errs := make([]error, len(items))
	out, at := make([]U, 0, len(items)), make([]int, 0, len(items))
	for i, it := range items {
		u, err := translate(it)
		if err != nil {
			errs[i] = err
			continue
		}
		out, at = append(out, u), append(at, i)
	}
	if len(out) == 0 {
		return errs
	}
	for i, err := range write(out) {
		errs[at[i]] = err
	}
	return errs
}
