package lab

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asked reads a clock by a system call: the vDSO has no part in it.
func asked(t *testing.T, clock int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if _, _, errno := unix.Syscall(unix.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		t.Fatal(errno)
	}
	return time.Duration(ts.Nano())
}

// TestClocks: what programs read in the vDSO, which the lab's own kernel brings, is
// what the kernel says, before and after idle time.
func TestClocks(t *testing.T) {
	Require(t)
	var last time.Duration
	for _, idle := range []time.Duration{0, 300 * time.Millisecond, 2500 * time.Millisecond} {
		time.Sleep(idle)
		for range 1000 {
			before := asked(t, unix.CLOCK_REALTIME)
			read := time.Duration(time.Now().UnixNano())
			after := asked(t, unix.CLOCK_REALTIME)
			// A clock may count in steps, the User-Mode Linux kernel's in 256 ns.
			if read < before-time.Microsecond || read > after+time.Microsecond {
				t.Fatalf("after %v of sleep: read %v, between %v and %v", idle, read, before, after)
			}
			if read < last {
				t.Fatalf("after %v of sleep: the clock went back by %v", idle, last-read)
			}
			last = read
		}
	}
}

// TestClockIsSet: a clock that is set is read as it was set.
func TestClockIsSet(t *testing.T) {
	RequireGuest(t)
	step := func(by time.Duration) {
		ts := unix.NsecToTimespec(int64(asked(t, unix.CLOCK_REALTIME) + by))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			t.Fatal(err)
		}
	}
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		wall, began := time.Now().UnixNano(), time.Now()
		step(by)
		stepped := time.Duration(time.Now().UnixNano() - wall)
		if off := stepped - by; off < 0 || off > time.Second {
			t.Errorf("set by %v, it is read as set by %v", by, stepped)
		}
		if passed := time.Since(began); passed < 0 || passed > time.Second {
			t.Errorf("the monotonic clock passed %v when the other was set by %v", passed, by)
		}
	}
}
