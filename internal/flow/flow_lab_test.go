package flow_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/flow"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// newTable is a namespace that tracks what it sends to itself, in the zone that
// the destination port says.
func newTable(t *testing.T) (in func(f func() error), path string) {
	t.Helper()
	lab.Require(t, lab.NFTables, lab.Conntrack, lab.Program("nft"), lab.Program("ip"))
	path = filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	thread := func(f func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			done <- f()
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	thread(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNET), unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	})
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	in = func(f func() error) {
		t.Helper()
		thread(func() error {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		})
	}
	in(func() error {
		for _, line := range []string{
			"ip link set lo up", "ip addr add 10.244.1.5/32 dev lo", "ip addr add 10.244.1.6/32 dev lo",
			"ip addr add fd00:1::5/128 dev lo nodad", "ip addr add 172.16.101.5/32 dev lo", "ip addr add fd00:2::5/128 dev lo nodad",
			`nft add table inet t; add chain inet t out { type filter hook output priority -300; }; add rule inet t out udp dport 7 ct zone set 7;
			 add rule inet t out udp dport 8 ct zone set 8; add rule inet t out udp dport 9 ct state new accept`,
		} {
			command, args, _ := strings.Cut(line, " ")
			words := strings.Fields(args)
			if command == "nft" {
				words = []string{args}
			}
			if out, err := exec.Command(command, words...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", line, err, out)
			}
		}
		return nil
	})
	return in, path
}

// listed returns the flows that are there, and ends none.
func listed(t *testing.T, table *flow.Table, src netip.Addr) (list []string) {
	t.Helper()
	n, err := table.End(t.Context(), src, func(f flow.Flow) bool {
		list = append(list, fmt.Sprintf("%d %s>%s", f.Zone, f.Src, f.Dst))
		return false
	})
	if n != 0 || err != nil {
		t.Fatalf("ended %d, %v", n, err)
	}
	slices.Sort(list)
	return list
}

func TestFlowsEnd(t *testing.T) {
	in, path := newTable(t)
	in(func() error {
		for _, pair := range [][2]string{{"10.244.1.5", "172.16.101.5"}, {"10.244.1.6", "172.16.101.5"}, {"fd00:1::5", "fd00:2::5"}} {
			for _, port := range []string{"7", "8", "9"} {
				local, err := net.ResolveUDPAddr("udp", net.JoinHostPort(pair[0], "4000"))
				if err != nil {
					return err
				}
				c, err := (&net.Dialer{LocalAddr: local}).Dial("udp", net.JoinHostPort(pair[1], port))
				if err != nil {
					return err
				}
				_, err = c.Write([]byte("x"))
				if err := errors.Join(err, c.Close()); err != nil {
					return err
				}
			}
		}
		return nil
	})
	table, pod := flow.Open(path), netip.MustParseAddr("10.244.1.5")
	var all []string
	// A flow is in the table when its first packet has arrived.
	for start := time.Now(); len(all) < 9; all = listed(t, table, netip.Addr{}) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("flows %q", all)
		}
	}
	want := []string{"0 10.244.1.5>172.16.101.5", "7 10.244.1.5>172.16.101.5", "8 10.244.1.5>172.16.101.5"}
	if got := listed(t, table, pod); !slices.Equal(got, want) {
		t.Errorf("flows of the pod: %q", got)
	}
	if got := listed(t, table, netip.MustParseAddr("fd00:1::5")); len(got) != 3 {
		t.Errorf("flows of the IPv6 pod: %q", got)
	}
	n, err := table.End(t.Context(), pod, func(f flow.Flow) bool { return f.Zone == 7 })
	if n != 1 || err != nil {
		t.Errorf("ended %d, %v", n, err)
	}
	if got := listed(t, table, pod); !slices.Equal(got, []string{want[0], want[2]}) {
		t.Errorf("left of the pod: %q", got)
	}
	n, err = table.End(t.Context(), netip.Addr{}, func(f flow.Flow) bool { return f.Zone != 0 })
	if n != 5 || err != nil {
		t.Errorf("ended %d, %v", n, err)
	}
	if got := listed(t, table, netip.Addr{}); len(got) != len(all)-6 {
		t.Errorf("left: %q", got)
	}
}

func TestTableOfNoNamespace(t *testing.T) {
	if _, err := flow.Open(filepath.Join(t.TempDir(), "gone")).End(t.Context(), netip.Addr{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
