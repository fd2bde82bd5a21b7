// Package store keeps the controller's records in etcd v3: a server embedded in
// this process, or an external cluster, with the same code.
//
// All keys are below a prefix, by default /vpcproxy/v1alpha1/, and are given
// and returned without it.
package store

import (
	"context"
	"errors"
	"fmt"
)

// DefaultPrefix is what all keys in etcd start with.
const DefaultPrefix = "/vpcproxy/v1alpha1/"

// MaxOps is how many keys one transaction can compare, and how many it can
// change: etcd's default limit (--max-txn-ops).
const MaxOps = 128

var (
	// ErrConflict is returned by Txn when a compared key has changed. Nothing
	// was written.
	ErrConflict = errors.New("the store was changed meanwhile")
	// ErrCompacted is returned by Watch when the revisions asked for are
	// gone: Load again.
	ErrCompacted = errors.New("the store has forgotten the revision asked for")
	// ErrTooLarge is returned by Txn for more than MaxOps keys. Nothing was
	// written.
	ErrTooLarge = fmt.Errorf("a transaction changes at most %d keys", MaxOps)
)

// Entry is a key with its value.
type Entry struct {
	Key   string
	Value []byte
	// Revision is the store's revision in which the key was last written.
	Revision int64
}

// Compare is a condition of a transaction.
type Compare struct {
	Key string
	// Revision is the Entry.Revision that the key must still have; 0 means
	// that there must be no such key.
	Revision int64
}

// Op is a change of one key.
type Op struct {
	Key    string
	Value  []byte
	Delete bool // of a key that may be absent; Value is ignored
}

// Event tells of a key that was written or deleted.
type Event struct {
	Entry        // Revision of a deletion is the one of the deleting transaction
	Deleted bool // Value is nil then
}

// Store is a transactional, watchable map. It is safe for concurrent use. An
// operation that takes longer than its context or a few seconds fails; a write
// that fails otherwise than with ErrConflict or ErrTooLarge may have happened.
type Store interface {
	// Load returns all entries, sorted by key, as of one revision.
	Load(ctx context.Context) (entries []Entry, revision int64, err error)
	// Txn makes all changes, or none if a condition does not hold, and
	// returns the revision in which they were made. A key may appear once.
	// Without changes it asks whether the conditions hold.
	Txn(ctx context.Context, conditions []Compare, changes []Op) (revision int64, err error)
	// Watch calls f with the changes from a revision on, in order: those of
	// one transaction in one call, possibly with those of others. It returns
	// when the context ends, when f returns an error, when the store is
	// lost, or with ErrCompacted; never nil.
	Watch(ctx context.Context, from int64, f func([]Event) error) error
	// String names the store for status and logs.
	String() string
	// Close releases the store. It waits for what it started.
	Close() error
}
