package kernel

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// initialPIDNamespace is the inode of the machine's first PID namespace
// (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const initialPIDNamespace = 0xEFFFFFFC

// procIsInits tells whether /proc is the mount that the machine's init has, and with it
// nearly everything that is no container. A container has one of its own, and so has a
// service with ProtectProc= or ProcSubset=: what others write is not heard of there.
func procIsInits() bool {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &namespace); err != nil || namespace.Ino != initialPIDNamespace {
		return false
	}
	own, err := procDevice("self")
	if err != nil {
		return false
	}
	inits, err := procDevice("1")
	return err == nil && own == inits
}

// procDevice is the device of the /proc that a process has.
func procDevice(pid string) (string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return "", err
	}
	return deviceAt(string(b), "/proc")
}

// deviceAt finds what is mounted last at a place, in a mountinfo of proc(5): identifier,
// parent, device, root, place.
func deviceAt(mountinfo, place string) (device string, err error) {
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == place {
			device = f[2]
		}
	}
	if device == "" {
		return "", fmt.Errorf("nothing is mounted at %s", place)
	}
	return device, nil
}
