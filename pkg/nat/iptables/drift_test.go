package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

const testNetns = "vpx-drift"

// newNetns makes an empty namespace and a Backend.
func newNetns(t *testing.T, m Mode) (kernel.Host, *Backend) {
	t.Helper()
	lab.Require(t, lab.IPTablesNFT, lab.IPTablesLegacy)
	h := newHost(t)
	if err := h.CreateNamespace(t.Context(), testNetns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.DeleteNamespace(context.Background(), testNetns); err != nil {
			t.Error(err)
		}
	})
	b, err := New(t.Context(), h, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return h, b
}

func inside(t *testing.T, script string) string {
	t.Helper()
	return shell(t, "ip netns exec "+testNetns+" sh -ec '"+script+"'")
}

func mustWrite(t *testing.T, b *Backend, want nat.RuleSet) {
	t.Helper()
	if err := b.Write(t.Context(), testNetns, want); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, b *Backend) nat.RuleSet {
	t.Helper()
	s, err := b.Read(t.Context(), testNetns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFingerprint(t *testing.T) {
	_, b := newNetns(t, Legacy)
	sum := func() uint64 {
		t.Helper()
		n, err := b.Fingerprint(t.Context(), testNetns)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := sum(); n != 0 {
		t.Errorf("fingerprint %d where there is no legacy table, want 0", n)
	}
	inside(t, "ip link set lo up; iptables-legacy -A OUTPUT -m limit --limit 1/s -j ACCEPT;"+
		"iptables-legacy -A OUTPUT -m statistic --mode nth --every 2 --packet 0 -j ACCEPT;"+
		"iptables-legacy -A OUTPUT -m hashlimit --hashlimit-upto 1/s --hashlimit-name x -j ACCEPT")
	mustWrite(t, b, proxyNAT)
	last := sum()
	inside(t, "ping -c 3 -i 0.2 -q 127.0.0.1; ping -c 1 -q ::1")
	if n := sum(); n != last {
		t.Error("fingerprint changed with packets")
	}
	for _, script := range []string{
		"iptables-legacy -t nat -F",
		"iptables-legacy -A OUTPUT -o eth9 -j ACCEPT",
		"iptables-legacy -R OUTPUT 4 -o eth8 -j ACCEPT",
		"iptables-legacy -P FORWARD DROP",
		"iptables-legacy -N EMPTY",
		"ip6tables-legacy -t mangle -F FORWARD",
		"ip6tables-legacy -D INPUT 1",
		"iptables-legacy -t raw -A OUTPUT -j ACCEPT",
	} {
		inside(t, script)
		n := sum()
		if n == last {
			t.Errorf("fingerprint is the same after %q", script)
		}
		if n != sum() {
			t.Errorf("fingerprint is not stable after %q", script)
		}
		last = n
	}
	// Too large to be read whole: its size still counts.
	inside(t, `{ echo "*raw"; seq 7000 | sed "s/.*/-A OUTPUT -p tcp -m tcp --dport & -j ACCEPT/"; echo COMMIT; } | iptables-legacy-restore -w`)
	last = sum()
	inside(t, "iptables-legacy -t raw -F")
	if sum() == last {
		t.Error("fingerprint is the same after a large table was flushed")
	}
}

// TestReadRemembers takes the programs away: what has not changed is known, and
// what has changed is not.
func TestReadRemembers(t *testing.T) {
	for _, m := range []Mode{NFT, Legacy} {
		t.Run(string(m), func(t *testing.T) {
			_, b := newNetns(t, m)
			mustWrite(t, b, proxyNAT)
			if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
				t.Fatal(d)
			}
			programs := b.inUse.programs
			b.inUse.programs = nil
			if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
				t.Errorf("unchanged rules read differently: %s", d)
			}
			for _, other := range []Mode{NFT, Legacy} {
				inside(t, fmt.Sprintf("iptables-%s -A OUTPUT -j ACCEPT", other))
				if _, err := b.Read(t.Context(), testNetns); err == nil {
					t.Errorf("a change in %s went unnoticed", other)
				}
				b.inUse.programs = programs
				mustRead(t, b)
				b.inUse.programs = nil
			}
			b.inUse.programs = programs
			// The same name, another namespace.
			shell(t, "ip netns del "+testNetns+"; ip netns add "+testNetns)
			if s := mustRead(t, b); !s.Empty() {
				t.Errorf("a new namespace reads as %v", s)
			}
		})
	}
}

func TestReadCreatesNothing(t *testing.T) {
	_, b := newNetns(t, NFT)
	mustRead(t, b)
	if got := inside(t, "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list ruleset"); got != "" {
		t.Errorf("reading made tables, which every packet passes:\n%s", got)
	}
}

// TestShadowedJumpIsMovedWithPauses is the policy of the package comment.
func TestShadowedJumpIsMovedWithPauses(t *testing.T) {
	_, b := newNetns(t, NFT)
	now := time.Now()
	b.now = func() time.Time { return now }
	var log strings.Builder
	b.log = slog.New(slog.NewTextHandler(&log, nil))
	mustWrite(t, b, proxyNAT)
	for i, pause := range []time.Duration{1, 2, 4, 8} {
		inside(t, "iptables-nft -I FORWARD -j ACCEPT")
		if d := nat.Diff(proxyNAT, mustRead(t, b)); !strings.Contains(d, `VPCPROXY-FORWARD comes after "-j ACCEPT"`) {
			t.Fatalf("move %d: Diff = %q, want the rule that shadows", i, d)
		}
		mustWrite(t, b, proxyNAT)
		if got := inside(t, "iptables-nft -S FORWARD 1"); !strings.Contains(got, "VPCPROXY-FORWARD") {
			t.Fatalf("move %d: first rule is %s", i, got)
		}
		inside(t, "iptables-nft -I FORWARD -j ACCEPT")
		now = now.Add(pause*time.Second - 1)
		if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
			t.Fatalf("move %d: Diff = %q within the pause of %d s", i, d, pause)
		}
		before := inside(t, "iptables-nft-save | grep -v ^#")
		mustWrite(t, b, proxyNAT)
		if after := inside(t, "iptables-nft-save | grep -v ^#"); after != before {
			t.Fatalf("move %d: wrote within the pause", i)
		}
		now = now.Add(1)
	}
	if n := strings.Count(log.String(), "another program"); n != 1 {
		t.Errorf("%d warnings, want one, with the fourth move:\n%s", n, log.String())
	}
}

func TestWriteReportsLock(t *testing.T) {
	_, b := newNetns(t, Legacy)
	f, err := os.OpenFile("/run/xtables.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), testNetns, proxyNAT); !errors.Is(err, ErrBusy) {
		t.Errorf("Write while the lock is held: %v, want %v", err, ErrBusy)
	}
	// The next namespaces do not wait as well.
	soon, cancel := context.WithTimeout(t.Context(), lockWait/2)
	defer cancel()
	if err := b.Write(soon, testNetns, proxyNAT); !errors.Is(err, ErrBusy) {
		t.Errorf("second Write while the lock is held: %v, want %v without waiting", err, ErrBusy)
	}
	if s := mustRead(t, b); !s.Empty() {
		t.Errorf("rules appeared without the lock: %v", s)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.now = func() time.Time { return time.Now().Add(lockPause) }
	mustWrite(t, b, proxyNAT)
}

func TestReadRefusesTablesItCannotSee(t *testing.T) {
	_, b := newNetns(t, NFT)
	mustWrite(t, b, proxyNAT)
	inside(t, `nft add rule ip filter FORWARD ct state vmap "{ new : accept }"`)
	if s, err := b.Read(t.Context(), testNetns); !errors.Is(err, errIncompatible) {
		t.Errorf("Read = %v, %v; want %v: unknown is not none", s, err, errIncompatible)
	}
}

func TestWritesRunConcurrently(t *testing.T) {
	h, b := newNetns(t, Legacy)
	const n = 4
	errs := make(chan error, n)
	for i := range n {
		name := fmt.Sprintf("%s%d", testNetns, i)
		if err := h.CreateNamespace(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.DeleteNamespace(context.Background(), name); err != nil {
				t.Error(err)
			}
		})
		go func() {
			err := b.Write(t.Context(), name, proxyNAT)
			if err == nil {
				var have nat.RuleSet
				have, err = b.Read(t.Context(), name)
				if d := nat.Diff(proxyNAT, have); d != "" {
					err = errors.New(d)
				}
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
