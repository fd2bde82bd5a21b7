package kernel

import "testing"

func TestDeviceAt(t *testing.T) {
	const mounts = `22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
80 22 0:21 /sys /proc/sys ro - proc proc rw
90 22 0:44 / /proc rw - proc proc rw
`
	if got, err := deviceAt(mounts, "/proc"); err != nil || got != "0:44" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := deviceAt("nonsense\n", "/proc"); err == nil {
		t.Errorf("nonsense has %q at /proc", got)
	}
}
