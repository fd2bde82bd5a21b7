package kernel

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestClassify(t *testing.T) {
	tests := map[error]error{
		unix.ENOENT:          ErrNotFound,
		unix.ESRCH:           ErrNotFound,
		unix.ENODEV:          ErrNotFound,
		unix.EADDRNOTAVAIL:   ErrNotFound,
		os.ErrClosed:         ErrNotFound,
		unix.EEXIST:          ErrExists,
		unix.EOPNOTSUPP:      ErrNotSupported,
		unix.EPROTONOSUPPORT: ErrNotSupported,
		ErrForeign:           ErrForeign,
		ErrIncomplete:        ErrNotFound,
	}
	kinds := []error{ErrNotFound, ErrExists, ErrForeign, ErrNotSupported}
	for err, want := range tests {
		wrapped := fmt.Errorf("do something: %w", err)
		got := classify(wrapped)
		for _, kind := range kinds {
			if errors.Is(got, kind) != (kind == want) {
				t.Errorf("%v is %v: %v, want %v", err, kind, errors.Is(got, kind), kind == want)
			}
		}
		if !errors.Is(got, err) || got.Error() != wrapped.Error() {
			t.Errorf("%v became %v", wrapped, got)
		}
	}
	if got := classify(unix.EINVAL); got != unix.EINVAL {
		t.Errorf("EINVAL became %v", got)
	}
	if classify(nil) != nil {
		t.Error("nil became an error")
	}
	if got := classify(unix.EPERM); !errors.Is(got, unix.EPERM) || got.Error() == unix.EPERM.Error() {
		t.Errorf("EPERM became %v, which does not name the capability", got)
	}
}
