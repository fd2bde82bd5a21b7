package kernel_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

func TestKernelKeepsTheContract(t *testing.T) {
	lab.Require(t, lab.GRE, lab.Clsact)
	kerneltest.Contract(t, func(t *testing.T) kernel.Host { return newMachine(t) })
}

// newMachine returns a Host in a network namespace of its own, with its own
// directory of namespaces.
func newMachine(t testing.TB) kernel.Host {
	t.Helper()
	dir := t.TempDir()
	// Mounts below go with this one.
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	outside, err := kernel.NewHost(kernel.HostOptions{NetnsDir: filepath.Join(dir, "machines")})
	if err != nil {
		t.Fatal(err)
	}
	if err := outside.CreateNamespace(t.Context(), "machine"); err != nil {
		t.Fatal(err)
	}
	// As an agent in a container has them.
	sysctls := filepath.Join(dir, "sys")
	if err := errors.Join(os.Mkdir(sysctls, 0o755), unix.Mount("/proc/sys", sysctls, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	host, err := kernel.NewHost(kernel.HostOptions{
		Sysctls:  sysctls,
		NetnsDir: filepath.Join(dir, "netns"),
		Own:      filepath.Join(dir, "machines", "machine"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
		if err := outside.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(filepath.Join(dir, "netns"), 0o755); err != nil {
		t.Fatal(err)
	}
	netnsDirs.Store(host, filepath.Join(dir, "netns"))
	return host
}

var netnsDirs sync.Map // of each machine

func netnsDir(t testing.TB, host kernel.Host) string {
	t.Helper()
	dir, ok := netnsDirs.Load(host)
	if !ok {
		t.Fatal("no machine of this test")
	}
	return dir.(string)
}
