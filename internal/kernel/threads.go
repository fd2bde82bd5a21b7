package kernel

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// A network namespace belongs to a thread, and goroutines move between threads.
// There are two ways to work in another one:
//
//   - visit: the thread goes there and comes back, and lives on. A thread is dearer
//     to make than most of what is done there.
//   - onNewThread, for what there is no way back from, such as unshare(2): a
//     goroutine that stays locked to its thread. The Go runtime ends a thread whose
//     goroutine ends locked, so nothing can leak out of it.
//
// While a goroutine is locked the runtime starts new threads from a clean one,
// never from the visiting one (runtime.LockOSThread).

// visit calls f in a goroutine of its own, on a thread that is in the namespace ns,
// and takes the thread back to where it was. A thread that cannot be taken back is
// ended.
func visit(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := enter(ns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if failed := back(); failed != nil {
			err = errors.Join(err, failed)
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter takes the calling thread to a namespace, and returns what takes it back.
// setns needs CAP_SYS_ADMIN even for the namespace that the thread is in, so there is
// none where there is no way to go: an agent without namespaces does without it.
func enter(ns int) (back func() error, err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	same, err := sameFile(home, ns)
	if err == nil && !same {
		err = unix.Setns(ns, unix.CLONE_NEWNET)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("enter a network namespace: %w", err), unix.Close(home))
	}
	return func() error {
		defer func() { _ = unix.Close(home) }()
		if same {
			return nil
		}
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("return from a network namespace: %w", err)
		}
		return nil
	}, nil
}

func sameFile(a, b int) (bool, error) {
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Fstat(a, &sa), unix.Fstat(b, &sb)); err != nil {
		return false, err
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}

// onNewThread calls f on a thread that ends with it.
func onNewThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		done <- f()
	}()
	return <-done
}
