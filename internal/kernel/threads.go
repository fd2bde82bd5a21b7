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
//   - visit, for a few quick calls of our own (open a socket, read a file): the
//     thread goes there and comes back, and lives on.
//   - Host.Run and CreateNamespace, for anything longer: a goroutine that stays
//     locked to its thread. The Go runtime ends a thread whose goroutine
//     ends locked, so nothing can leak out of it.
//
// While a goroutine is locked the runtime starts new threads from a clean one,
// never from the visiting one (runtime.LockOSThread).

// visit calls f on a thread that is in the namespace ns, and takes the thread back to
// where it was. A thread that cannot be taken back is ended.
func visit(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's network namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(home) }()
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("return from a network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
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
