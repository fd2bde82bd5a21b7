// Package lab connects a test to the kernel that scripts/lab gives it: what
// the test needs of that kernel, where the built programs are, and where to
// leave what helps to understand a failure.
//
//	func TestTunnelCarriesPackets(t *testing.T) {
//		lab.Require(t, lab.GRE)
//		...
//	}
//
// Outside the lab such a test is skipped, since it would change the machine's
// own network; make test and make test-netns run it inside. There a missing need
// is a failure: a test that cannot run has not passed.
package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The environment that scripts/lab and the Makefile set.
const (
	insideEnv    = "VPCPROXY_LAB_KERNEL"
	guestEnv     = "VPCPROXY_LAB_GUEST"
	binEnv       = "VPCPROXY_BIN"
	artifactsEnv = "VPCPROXY_ARTIFACTS"
)

// Need is something that a test wants of the kernel or of the machine.
type Need struct {
	name  string
	probe string // shell commands for a network namespace of their own; all must succeed
	fix   string
}

// String names the need as a person would.
func (n Need) String() string { return n.name }

const stockKernel = "load the module, or use a distribution's stock kernel (VPCPROXY_LAB=qemu)"

// What tests need beyond a network namespace. A stock kernel has all of it.
var (
	GRE            = Need{"GRE tunnels", "ip link add probe type gre local 192.0.2.1 key 7", stockKernel}
	FoU            = Need{"GRE in UDP", "ip fou add port 5555 ipproto 47", stockKernel}
	VXLAN          = Need{"VXLAN", "ip link add probe type vxlan dstport 4789 external", stockKernel}
	VRF            = Need{"VRF", "ip link add probe type vrf table 7", stockKernel}
	Dummy          = Need{"dummy devices", "ip link add probe type dummy", stockKernel}
	Netem          = Need{"netem", "tc qdisc add dev lo root netem delay 1ms", stockKernel}
	Clsact         = Need{"clsact", "tc qdisc add dev lo clsact", stockKernel}
	NFTables       = Need{"nftables NAT", nftProbe, stockKernel}
	IPTablesNFT    = Need{"iptables-nft", "iptables-nft -t nat -A POSTROUTING -m comment --comment probe -j MASQUERADE", stockKernel}
	IPTablesLegacy = Need{"iptables-legacy", "iptables-legacy -t nat -A POSTROUTING -m comment --comment probe -j MASQUERADE", stockKernel}
	IPSet          = Need{"ipset", "ipset create probe hash:ip", stockKernel}
	Conntrack      = Need{"conntrack over netlink", "conntrack -L", stockKernel}
)

const nftProbe = `nft 'add table ip probe; add chain ip probe c { type nat hook postrouting priority 100; }; add rule ip probe c masquerade'`

// Program is the need of a program on the machine's PATH.
func Program(name string) Need {
	return Need{"the program " + name, "command -v " + name, "run sudo scripts/setup, or install " + name}
}

// Require ends the test unless it runs in the lab and the lab meets its needs:
// outside with a skip that says how to run it, inside with a failure.
func Require(tb testing.TB, needs ...Need) {
	tb.Helper()
	require(tb, os.Getenv(insideEnv) != "", met, needs)
}

// require is Require with the world passed in.
func require(tb testing.TB, inside bool, met func(Need) error, needs []Need) {
	tb.Helper()
	if !inside {
		tb.Skipf("changes the kernel's network, so it runs in the lab only: make test-netns RUN='^%s$'", topLevel(tb.Name()))
	}
	for _, n := range needs {
		if err := met(n); err != nil {
			tb.Fatalf("the lab has no %s: %v. To fix it, %s", n, err, n.fix)
		}
	}
}

// RequireGuest is Require for a test that changes what no namespace has of its own,
// such as the clock: on this machine's kernel it is skipped.
func RequireGuest(tb testing.TB, needs ...Need) {
	tb.Helper()
	requireGuest(tb, os.Getenv(insideEnv) != "", os.Getenv(guestEnv) != "", met, needs)
}

// requireGuest is RequireGuest with the world passed in.
func requireGuest(tb testing.TB, inside, guest bool, met func(Need) error, needs []Need) {
	tb.Helper()
	require(tb, inside, met, needs)
	if !guest {
		tb.Skipf("changes what the whole kernel has one of, so it runs in a guest only: VPCPROXY_LAB=uml make test-netns RUN='^%s$'", topLevel(tb.Name()))
	}
}

func topLevel(test string) string {
	name, _, _ := strings.Cut(test, "/")
	return name
}

var (
	probedMu sync.Mutex
	probed   = map[Need]error{}
)

// met probes a need, once in a process: under emulation a probe costs 100 ms.
func met(n Need) error {
	probedMu.Lock()
	defer probedMu.Unlock()
	if err, ok := probed[n]; ok {
		return err
	}
	err := probe(n)
	probed[n] = err
	return err
}

// probeError is a failed probe and what it printed.
type probeError struct {
	err    error
	output string
}

func (e *probeError) Error() string {
	if e.output == "" {
		return e.err.Error()
	}
	return e.output
}

func (e *probeError) Unwrap() error { return e.err }

func probe(n Need) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "unshare", "--net", "sh", "-ec", n.probe).CombinedOutput()
	if err != nil {
		return &probeError{err, strings.TrimSpace(string(out))}
	}
	return nil
}

// Binary returns the path of a built program, such as vpcproxyd.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv(binEnv)
	if dir == "" {
		tb.Fatalf("%s does not say where %s is: make test-netns sets it, or run make build and set it to bin", binEnv, name)
	}
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err != nil {
		tb.Fatalf("no built program: %v. Run make build", err)
	} else if info.Mode()&0o111 == 0 {
		tb.Fatalf("%s is not executable. Run make build", path)
	}
	return path
}

// Artifacts returns a directory of the test's own for logs, captures and the
// like. The make targets keep it in build/artifacts; without them it is the
// testing package's artifact directory.
func Artifacts(tb testing.TB) string {
	tb.Helper()
	root := os.Getenv(artifactsEnv)
	if root == "" {
		return tb.ArtifactDir()
	}
	dir := filepath.Join(root, safe(tb.Name()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatalf("cannot make the artifact directory: %v", err)
	}
	return dir
}

// safe turns a test's name into a path: subtests become directories, and what
// a file name should not hold becomes an underscore.
func safe(test string) string {
	clean := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("/-_=", r):
			return r
		}
		return '_'
	}
	return strings.Map(clean, test)
}
