package owned

import (
	"context"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Batch splits items by the namespace that they are in, and calls write once for
// each. It returns one error or nil per item, and so must write.
func Batch[T any](ctx context.Context, host kernel.Host, items []T, netns func(T) string, write func(h kernel.Handle, items []T) []error) []error {
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
		var results []error
		if h, err := host.In(name); err != nil {
			results = Repeat(err, len(part))
		} else {
			results = write(h, part)
		}
		for i, err := range results {
			if err != nil && name != "" {
				err = fmt.Errorf("namespace %s: %w", name, err)
			}
			errs[indexes[i]] = err
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
	var out []U
	var at []int
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
