// Package timerslack lets the sleeps of a program that imports it end late, so that
// the kernel wakes it less often.
//
// The Go runtime's monitor sleeps for 20 µs at a time while anything runs
// (runtime.sysmon), and for each of these naps the kernel wakes a thread that takes
// the processor from the work it watches. On a busy machine, and on a virtual one,
// that costs a short call more than the call itself.
//
// A thread has its slack from the one that made it, and the runtime's are there
// before any package: so the program is executed anew, in the same process and with
// the same arguments, which the slack outlives (execve(2)). That happens while
// packages are initialized, and this one imports little so that its turn comes
// before those that take long: a program would otherwise take twice as long to start.
package timerslack

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

// Slack is how much later than asked a sleep may end (Linux has 50 µs). Nothing of
// the agent is in a hurry within it: adverts come each 10 ms at most.
const Slack = time.Millisecond

// restarted marks, in the environment, a program that was executed anew.
const restarted = "TIMER_SLACK_RAISED"

// Of prctl(2), from linux/prctl.h; golang.org/x/sys would be initialized first.
const (
	prSetTimerSlack = 29
	prGetTimerSlack = 30
)

var raised = raise()

// Err tells why the slack could not be raised, which is no reason not to go on; nil
// where it was, or was as large.
func Err() error { return raised }

func raise() error {
	if os.Getenv(restarted) != "" {
		return os.Unsetenv(restarted)
	}
	runtime.LockOSThread() // the slack is a thread's, and that thread's execve keeps it
	defer runtime.UnlockOSThread()
	have, err := prctl(prGetTimerSlack, 0)
	if err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	if time.Duration(have) >= Slack {
		return nil
	}
	if _, err := prctl(prSetTimerSlack, uintptr(Slack.Nanoseconds())); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	err = syscall.Exec(self, os.Args, append(os.Environ(), restarted+"=1"))
	_, back := prctl(prSetTimerSlack, have)
	return fmt.Errorf("timer slack: start %s anew: %w", self, errors.Join(err, back))
}

func prctl(option, arg uintptr) (uintptr, error) {
	r, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, option, arg, 0)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
