package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// batchValid sends one request for each item that passes check, and returns one
// error per item.
func batchValid[T any](ctx context.Context, c *conn, items []T, check func(T) error, put func(T, *message, uint32)) []error {
	errs := make([]error, len(items))
	valid := make([]int, 0, len(items))
	for i, item := range items {
		if errs[i] = check(item); errs[i] == nil {
			valid = append(valid, i)
		}
	}
	sent := c.batch(ctx, len(valid), func(i int, m *message, seq uint32) {
		put(items[valid[i]], m, seq)
	})
	for i, err := range sent {
		errs[valid[i]] = err
	}
	return errs
}

// pick returns the items at the given positions.
func pick[T any](items []T, at []int) []T {
	picked := make([]T, len(at))
	for i, j := range at {
		picked[i] = items[j]
	}
	return picked
}

// failedWith returns the positions of the errors that f accepts.
func failedWith(errs []error, f func(error) bool) []int {
	var at []int
	for i, err := range errs {
		if err != nil && f(err) {
			at = append(at, i)
		}
	}
	return at
}

func isExist(err error) bool { return errors.Is(err, unix.EEXIST) }

func eachAbsentIsSuccess(errs []error) []error {
	for i, err := range errs {
		errs[i] = absentIsSuccess(err)
	}
	return errs
}

func needAddr(what string, a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("%s is missing", what)
	}
	return nil
}
