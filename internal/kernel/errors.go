package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// What a failed call can mean to its caller. Test with errors.Is; the kernel's
// own errno stays in the chain as well.
var (
	// ErrNotFound: the object, its link or its namespace does not exist.
	ErrNotFound = errors.New("not found")
	// ErrIncomplete: some of an object's parts are gone, so that it does not
	// do its work. It is also an ErrNotFound: putting the object in place
	// repairs it.
	ErrIncomplete = fmt.Errorf("incomplete: %w", ErrNotFound)
	// ErrExists: another object has the name or the key.
	ErrExists = errors.New("exists")
	// ErrForeign: the object that has the key belongs to someone else and
	// was not touched.
	ErrForeign = errors.New("belongs to someone else")
	// ErrNotSupported: this kernel lacks the feature, or it is not loaded.
	// Probe tells the fix.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// meaning gives an error of the kernel one of the meanings above.
type meaning struct {
	kind error
	err  error
}

func (m meaning) Error() string   { return m.err.Error() }
func (m meaning) Unwrap() []error { return []error{m.kind, m.err} }

// classify adds to an error what it means. The errno values are the ones that
// rtnetlink, sysctl and the mount calls return (net/core/rtnetlink.c,
// net/core/neighbour.c, net/core/fib_rules.c, net/ipv4/fib_trie.c,
// net/ipv4/devinet.c).
func classify(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrExists), errors.Is(err, ErrForeign), errors.Is(err, ErrNotSupported):
		return err
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV),
		errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist),
		errors.Is(err, os.ErrClosed):
		kind = ErrNotFound
	case errors.Is(err, unix.EEXIST), errors.Is(err, fs.ErrExist):
		kind = ErrExists
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		kind = ErrNotSupported
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (CAP_NET_ADMIN is needed, and CAP_SYS_ADMIN for namespaces)", err)
	default:
		return err
	}
	return meaning{kind: kind, err: err}
}

// absentIsSuccess turns ErrNotFound into success, for deletions.
func absentIsSuccess(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
