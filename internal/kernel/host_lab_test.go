package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// run starts a program in a namespace and returns what it printed.
func run(t testing.TB, host kernel.Host, netns, program string, args ...string) string {
	t.Helper()
	var out []byte
	err := host.Run(t.Context(), netns, func() (err error) {
		out, err = exec.Command(program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func await(t *testing.T, hints <-chan kernel.Hint, want kernel.Hint) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case h := <-hints:
			if h == want {
				return
			}
		case <-deadline:
			t.Fatalf("no hint %q", want)
		}
	}
}

func in(t *testing.T, host kernel.Host, name string) kernel.Handle {
	t.Helper()
	h, err := host.In(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func tunnel(key uint32) kernel.GRE {
	return kernel.GRE{Local: netip.MustParseAddr("192.0.2.1"), Keyed: true, Key: key}
}

func TestProbeFindsAll(t *testing.T) {
	lab.Require(t, lab.GRE, lab.Clsact, lab.NFTables)
	for _, missing := range kernel.Probe(t.Context()).Missing() {
		t.Errorf("%s: %v", missing.Name, missing.Err)
	}
}

// A namespace that someone else deletes lives on through our handles; it must not.
func TestNamespaceDeletedByAnother(t *testing.T) {
	lab.Require(t, lab.GRE)
	host, ctx := newMachine(t), t.Context()
	own := in(t, host, "")
	hints, err := host.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	await(t, hints, kernel.HintAll)
	if err := host.CreateNamespace(ctx, "vpx-1"); err != nil {
		t.Fatal(err)
	}
	inside, err := host.Watch(ctx, "vpx-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := own.CreateGRE(ctx, "vpx-1", tunnel(7), 0); err != nil {
		t.Fatal(err)
	}
	link, err := own.LinkByName(ctx, "vpx-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := own.MoveLink(ctx, link.Index, "vpx-1"); err != nil {
		t.Fatal(err)
	}
	await(t, hints, kernel.HintNamespaces) // of the creation
	path := filepath.Join(netnsDir(t, host), "vpx-1")
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	await(t, hints, kernel.HintNamespaces)
	if names, err := host.Namespaces(ctx); err != nil || len(names) != 0 {
		t.Fatalf("got %v, %v", names, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range inside {
		}
	}()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the watch goes on in a namespace without a name")
	}
	poll(t, "the tunnel's key is free", func() bool { return own.CreateGRE(ctx, "vpx-1", tunnel(7), 0) == nil })
}

// A creation that was cut short leaves a name without a namespace.
func TestUnfinishedName(t *testing.T) {
	lab.Require(t)
	host, ctx := newMachine(t), t.Context()
	for _, name := range []string{"vpx-1", "vpx-2"} {
		if err := os.WriteFile(filepath.Join(netnsDir(t, host), name), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := host.Namespaces(ctx); err != nil || len(names) != 0 {
		t.Fatalf("got %v, %v", names, err)
	}
	if _, err := host.In("vpx-1"); !errors.Is(err, kernel.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	if err := errors.Join(host.CreateNamespace(ctx, "vpx-1"), host.DeleteNamespace(ctx, "vpx-2")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(netnsDir(t, host))
	if err != nil || len(entries) != 1 || entries[0].Name() != "vpx-1" {
		t.Fatalf("got %v, %v", entries, err)
	}
	if _, err := in(t, host, "vpx-1").LinkByName(ctx, "lo"); err != nil {
		t.Fatal(err)
	}
}

// Names must come and go in every mount namespace that has seen the directory.
func TestNamesAreShared(t *testing.T) {
	lab.Require(t)
	host := newMachine(t)
	if err := host.CreateNamespace(t.Context(), "vpx-1"); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if fields[4] == netnsDir(t, host) && strings.Contains(line, " shared:") {
			return
		}
	}
	t.Errorf("%s is no shared mount:\n%s", netnsDir(t, host), mounts)
}

func TestThreadsAreGivenBack(t *testing.T) {
	lab.Require(t)
	host, ctx := newMachine(t), t.Context()
	if err := host.CreateNamespace(ctx, "vpx-1"); err != nil {
		t.Fatal(err)
	}
	h := in(t, host, "vpx-1")
	inside := func() string {
		var link string
		err := host.Run(ctx, "vpx-1", func() (err error) {
			link, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	want := inside()
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			for range 20 {
				if _, err := h.Sysctl(ctx, "net/ipv4/ip_forward"); err != nil {
					t.Error(err)
				}
			}
		})
		if got := inside(); got != want {
			t.Fatalf("ran in %s, want %s", got, want)
		}
	}
	calls.Wait()
	poll(t, "no thread is left in the namespace", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(tasks, func(task string) bool {
			link, _ := os.Readlink(task) // the thread may be gone
			return link == want
		})
	})
}

// A handle whose namespace goes must fail; it must not work anywhere else.
func TestHandlesNeverStray(t *testing.T) {
	lab.Require(t, lab.GRE)
	host, ctx := newMachine(t), t.Context()
	own := in(t, host, "")
	stop, cancel := context.WithCancel(ctx)
	var writers sync.WaitGroup
	for key := range 3 {
		writers.Go(func() {
			for stop.Err() == nil {
				h, err := host.In("vpx-1")
				if err != nil {
					continue
				}
				for i := range 5 {
					err := h.CreateGRE(ctx, "stray"+string(rune('a'+key)), tunnel(uint32(10*key+i)), 0)
					_ = h.AddRules(ctx, []kernel.Rule{{Priority: 1, Mark: 1, Mask: 1, Table: 4711, Protocol: 176}})
					_ = h.SetSysctl(ctx, "net/ipv4/conf/all/log_martians", "1")
					if err != nil && !errors.Is(err, kernel.ErrNotFound) && !errors.Is(err, kernel.ErrExists) {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 30 {
		if err := errors.Join(host.CreateNamespace(ctx, "vpx-1"), host.DeleteNamespace(ctx, "vpx-1")); err != nil {
			t.Error(err)
		}
	}
	cancel()
	writers.Wait()
	// Threads of this process are in the namespace that it was started in.
	outside, err := kernel.NewHost(kernel.HostOptions{NetnsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Close() })
	for where, h := range map[string]kernel.Handle{"the machine's own namespace": own, "the process's namespace": in(t, outside, "")} {
		links, err := h.Links(ctx)
		if err != nil || slices.ContainsFunc(links, func(l kernel.Link) bool { return strings.HasPrefix(l.Name, "stray") }) {
			t.Errorf("%s has links %+v, %v", where, links, err)
		}
		rules, err := h.Rules(ctx)
		if err != nil || slices.ContainsFunc(rules, func(r kernel.Rule) bool { return r.Table == 4711 }) {
			t.Errorf("%s has rules %v, %v", where, rules, err)
		}
		if value, err := h.Sysctl(ctx, "net/ipv4/conf/all/log_martians"); err != nil || value != "0" {
			t.Errorf("%s logs martians: %s, %v", where, value, err)
		}
	}
}

// othersWork is what a person, or another program, could have set up.
var othersWork = []string{
	"ip link add eth1 type veth peer name port",
	"ip link set port up",
	"ip link add differ type gre local 192.0.2.1 ikey 1 okey 2 ttl 9 nopmtudisc seq csum",
	"ip link add ptp type gre local 192.0.2.1 remote 192.0.2.9 key 5",
	"ip link set eth1 up",
	"ip link set differ up",
	"ip address add 198.51.100.1/24 dev eth1 valid_lft 1000 preferred_lft 1000",
	"ip route add 203.0.113.0/24 tos 0x10 via 198.51.100.2 table 1000",
	"ip route add 203.0.113.0/24 table 1000 nexthop via 198.51.100.2 nexthop via 198.51.100.3",
	"ip route add 2001:db8::/64 via inet6 fe80::1 dev eth1 table 1000",
	"ip route add 192.0.2.128/25 via inet6 fe80::1 dev eth1 table 1000",
	"ip neigh add 198.51.100.2 lladdr 02:00:00:00:00:01 dev eth1",
	"ip neigh add 100.64.0.2 lladdr 192.0.2.2 nud permanent dev differ",
	"ip rule add from 10.0.0.0/8 lookup 1000 priority 5",
	"ip rule add not fwmark 0x1/0xff lookup 1000 priority 6",
	"ip rule add fwmark 0x1/0xff lookup 1000 priority 7 protocol 99",
	"ip rule add priority 8 unreachable",
	"ip rule add lookup main suppress_prefixlength 0 priority 9",
}

func TestListsWhatOthersMade(t *testing.T) {
	lab.Require(t, lab.GRE)
	host, ctx := newMachine(t), t.Context()
	h := in(t, host, "")
	for _, command := range othersWork {
		words := strings.Fields(command)
		run(t, host, "", words[0], words[1:]...)
	}

	links, err := h.Links(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]kernel.Link{}
	for _, l := range links {
		byName[l.Name] = l
	}
	eth1, differ, ptp := byName["eth1"], byName["differ"], byName["ptp"]
	if eth1.Type != "veth" || len(eth1.MAC) != 17 || !eth1.Up || !eth1.Lower || eth1.GRE != nil || eth1.PCI != "" {
		t.Errorf("eth1: %+v", eth1)
	}
	if g := differ.GRE; g == nil || !g.KeysDiffer || !g.Seq || !g.Csum || g.PMTUDisc || g.TTL != 9 || differ.MAC != "" {
		t.Errorf("differ: %+v %+v", differ, g)
	}
	if g := ptp.GRE; g == nil || g.Remote != netip.MustParseAddr("192.0.2.9") || g.KeysDiffer || g.Key != 5 {
		t.Errorf("ptp: %+v %+v", ptp, g)
	}

	addresses, err := h.Addresses(ctx)
	if err != nil || !slices.Contains(addresses, kernel.Address{Link: eth1.Index, Prefix: netip.MustParsePrefix("198.51.100.1/24"), Dynamic: true}) {
		t.Errorf("addresses %+v, %v", addresses, err)
	}

	checkOthersRoutes(t, host, eth1.Index)

	neighbors, err := h.Neighbors(ctx)
	want := kernel.Neighbor{Link: differ.Index, Addr: netip.MustParseAddr("100.64.0.2"), NBMA: netip.MustParseAddr("192.0.2.2"), State: kernel.NeighborPermanent}
	if err != nil || !slices.Equal(neighbors, []kernel.Neighbor{want}) {
		t.Errorf("neighbors %+v, %v", neighbors, err)
	}

	rules, err := h.Rules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.Priority >= 5 && r.Priority <= 9 && r.Other != (r.Priority != 7) {
			t.Errorf("rule %+v", r)
		}
	}
}

func checkOthersRoutes(t *testing.T, host kernel.Host, eth1 int) {
	t.Helper()
	ctx, h := t.Context(), in(t, host, "")
	dst := netip.MustParsePrefix("203.0.113.0/24")
	routes, err := h.Routes(ctx, kernel.RouteFilter{Table: 1000})
	for _, want := range []kernel.Route{
		{Table: 1000, Dst: dst, Type: kernel.RouteUnicast, Link: eth1, Via: netip.MustParseAddr("198.51.100.2"), Protocol: 3, TOS: 0x10},
		{Table: 1000, Dst: dst, Type: kernel.RouteUnicast, Protocol: 3, Multipath: true},
		{Table: 1000, Dst: netip.MustParsePrefix("2001:db8::/64"), Metric: 1024, Type: kernel.RouteUnicast, Link: eth1, Via: netip.MustParseAddr("fe80::1"), Protocol: 3},
		{Table: 1000, Dst: netip.MustParsePrefix("192.0.2.128/25"), Type: kernel.RouteUnicast, Link: eth1, Via: netip.MustParseAddr("fe80::1"), Protocol: 3},
	} {
		if err != nil || !slices.Contains(routes, want) {
			t.Errorf("no %+v among %+v, %v", want, routes, err)
		}
	}
	// A route for one TOS only does not hold our key; a multipath one does.
	mine := kernel.Route{Table: 1000, Dst: dst, Link: eth1, Via: netip.MustParseAddr("198.51.100.2"), Onlink: true, Protocol: 176}
	if err := h.ReplaceRoutes(ctx, []kernel.Route{mine})[0]; !errors.Is(err, kernel.ErrForeign) {
		t.Errorf("over a multipath route: %v", err)
	}
	run(t, host, "", "ip", "route", "del", "203.0.113.0/24", "table", "1000", "tos", "0")
	if err := h.ReplaceRoutes(ctx, []kernel.Route{mine})[0]; err != nil {
		t.Errorf("beside a route for a TOS: %v", err)
	}
}
