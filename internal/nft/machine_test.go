package nft_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// machine is a set of network namespaces of a test's own.
type machine struct {
	t   testing.TB
	dir string
	// sinks are sockets that await packets, by destination and namespace.
	sinks map[netip.AddrPort]map[string]int
}

func newMachine(t testing.TB, names ...string) *machine {
	t.Helper()
	lab.Require(t, lab.NFTables, lab.Program("ip"), lab.Program("nft"))
	m := &machine{t: t, dir: t.TempDir(), sinks: map[netip.AddrPort]map[string]int{}}
	for _, name := range names {
		m.create(name)
		t.Cleanup(func() { m.remove(name) })
	}
	return m
}

// create makes a namespace.
func (m *machine) create(name string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		m.t.Fatal(err)
	}
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}); err != nil {
		m.t.Fatalf("make namespace %s: %v", name, err)
	}
	m.ip(name, "link set lo up")
}

// remove takes the name of a namespace away, and with it the namespace.
func (m *machine) remove(name string) { _ = unix.Unmount(filepath.Join(m.dir, name), unix.MNT_DETACH) }

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// in calls f in a namespace.
func (m *machine) in(name string, f func() error) error {
	return onThread(func() error {
		file, err := os.Open(filepath.Join(m.dir, name))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", name, err)
		}
		return f()
	})
}

// run runs a command in a namespace and returns its output.
func (m *machine) run(name, command string, args ...string) string {
	m.t.Helper()
	var out []byte
	err := m.in(name, func() (err error) {
		out, err = exec.Command(command, args...).CombinedOutput()
		return err
	})
	if err != nil {
		m.t.Fatalf("%s: %s %s: %v\n%s", name, command, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (m *machine) ip(name, args string) string {
	m.t.Helper()
	return m.run(name, "ip", strings.Fields(args)...)
}

func (m *machine) nft(name, args string) string {
	m.t.Helper()
	return m.run(name, "nft", args)
}

func runNFT(command string) error {
	if out, err := exec.Command("nft", command).CombinedOutput(); err != nil {
		return fmt.Errorf("nft %s: %w\n%s", command, err, out)
	}
	return nil
}

func (m *machine) sysctl(name, key, value string) {
	m.t.Helper()
	if err := m.in(name, func() error {
		return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
	}); err != nil {
		m.t.Fatal(err)
	}
}

// connect joins two namespaces by a veth pair, each end named after the other
// side, with addresses.
func (m *machine) connect(a, addrA, b, addrB string) {
	m.t.Helper()
	m.ip(a, fmt.Sprintf("link add %s type veth peer name %s netns %s", b, a, filepath.Join(m.dir, b)))
	for _, end := range []struct{ ns, dev, addr string }{{a, b, addrA}, {b, a, addrB}} {
		m.ip(end.ns, fmt.Sprintf("addr add %s dev %s nodad", end.addr, end.dev))
		m.ip(end.ns, "link set "+end.dev+" up")
	}
}

func (m *machine) tables(own string) *nft.Tables { return m.tablesWith(own, nil) }

func (m *machine) tablesWith(own string, senders *nft.Senders) *nft.Tables {
	return nft.New(slog.New(slog.NewTextHandler(io.Discard, nil)), nft.Options{
		NetnsDir: m.dir, Own: filepath.Join(m.dir, own), Senders: senders,
		Run: func(_ context.Context, netns string, f func() error) error { return m.in(cmp.Or(netns, own), f) },
	})
}

// socket opens a socket in a namespace.
func (m *machine) socket(name string, family, kind, protocol int) int {
	m.t.Helper()
	var fd int
	err := m.in(name, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		m.t.Fatalf("socket in %s: %v", name, err)
	}
	m.t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		m.t.Fatal(err)
	}
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		m.t.Fatal(err)
	}
	return fd
}

func (m *machine) apply(ts *nft.Tables, netns string, ch nft.Change) {
	m.t.Helper()
	if err := ts.Apply(context.Background(), netns, ch); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) load(ts *nft.Tables, netns string) nft.Contents {
	m.t.Helper()
	c, err := ts.Load(context.Background(), netns)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}
