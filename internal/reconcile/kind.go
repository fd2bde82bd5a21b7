// Package reconcile makes actual state equal desired state, one sort of kernel
// object at a time. It knows no object itself: a Kind teaches it one.
package reconcile

import "context"

// Kind teaches the engine one sort of kernel object. Implementations are
// stateless and idempotent; they are called from one goroutine.
type Kind[K comparable, V any] interface {
	// Name is a lower-case plural noun, for logs, metrics and plans.
	Name() string
	// List returns all objects of this kind that we own, read from the
	// kernel now. An error means "unknown", never "none".
	List(ctx context.Context) (map[K]V, error)
	// Diff returns "" if have satisfies want, otherwise the reason it does
	// not, for logs and plans.
	Diff(want, have V) string
	// Upsert creates the object or repairs it in place.
	Upsert(ctx context.Context, k K, want V) error
	// Delete removes the object. One that is absent is success.
	Delete(ctx context.Context, k K, have V) error
}

// Item is one object of a batch.
type Item[K comparable, V any] struct {
	Key   K
	Value V
}

// Batcher is implemented by a Kind that can write many objects at once. The
// returned slice is as long as items and holds each one's error or nil: one
// object's failure does not stop its siblings.
type Batcher[K comparable, V any] interface {
	UpsertBatch(ctx context.Context, items []Item[K, V]) []error
	DeleteBatch(ctx context.Context, items []Item[K, V]) []error
}
