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
func newNetns(t testing.TB, m Mode) (kernel.Host, *Backend, func(script string) string) {
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
	return h, b, func(script string) string {
		t.Helper()
		return sh(h)(t, testNetns, script)
	}
}

// again makes the namespace anew.
func again(t *testing.T, h kernel.Host) {
	t.Helper()
	if err := h.DeleteNamespace(t.Context(), testNetns); err != nil {
		t.Fatal(err)
	}
	if err := h.CreateNamespace(t.Context(), testNetns); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t testing.TB, b *Backend, want nat.RuleSet) {
	t.Helper()
	if err := b.Write(t.Context(), testNetns, want); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, b *Backend) nat.RuleSet {
	t.Helper()
	s, err := b.Read(t.Context(), testNetns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFingerprint(t *testing.T) {
	_, b, inside := newNetns(t, Legacy)
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
	inside("ip link set lo up; iptables-legacy -A OUTPUT -m limit --limit 1/s -j ACCEPT;" +
		"iptables-legacy -A OUTPUT -m statistic --mode nth --every 2 --packet 0 -j ACCEPT;" +
		"iptables-legacy -A OUTPUT -m hashlimit --hashlimit-upto 1/s --hashlimit-name x -j ACCEPT")
	mustWrite(t, b, proxyNAT)
	last := sum()
	inside("ping -c 3 -i 0.2 -q 127.0.0.1; ping -c 1 -q ::1")
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
		inside(script)
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
	inside(`{ echo "*raw"; seq 7000 | sed "s/.*/-A OUTPUT -p tcp -m tcp --dport & -j ACCEPT/"; echo COMMIT; } | iptables-legacy-restore -w`)
	last = sum()
	inside("iptables-legacy -t raw -D OUTPUT 7")
	if sum() == last {
		t.Error("fingerprint is the same after a large table lost a rule")
	}
}

// TestReadRemembers takes the programs away: what has not changed is known, and
// what has changed is not.
func TestReadRemembers(t *testing.T) {
	for _, m := range []Mode{NFT, Legacy} {
		t.Run(string(m), func(t *testing.T) {
			_, b, inside := newNetns(t, m)
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
				inside(fmt.Sprintf("iptables-%s -A OUTPUT -j ACCEPT", other))
				if _, err := b.Read(t.Context(), testNetns); err == nil {
					t.Errorf("a change in %s went unnoticed", other)
				}
				b.inUse.programs = programs
				mustRead(t, b)
				b.inUse.programs = nil
			}
			b.inUse.programs = programs
		})
	}
}

// TestFirstWriteReadsNothing takes the programs that read away.
func TestFirstWriteReadsNothing(t *testing.T) {
	for _, m := range []Mode{NFT, Legacy} {
		t.Run(string(m), func(t *testing.T) {
			_, b, _ := newNetns(t, m)
			mustRead(t, b)
			all := b.inUse.programs
			b.inUse.programs = map[nat.Family]programs{}
			for f, p := range all {
				b.inUse.programs[f] = programs{save: "/nonexistent", restore: p.restore}
			}
			mustWrite(t, b, proxyNAT)
			b.inUse.programs = all
			if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestReadKnowsNamespacesApart makes two of the same name, with as many
// transactions in both.
func TestReadKnowsNamespacesApart(t *testing.T) {
	h, b, inside := newNetns(t, NFT)
	inside("iptables-nft -N VPCPROXY-OLD")
	if s := mustRead(t, b); len(s.Strays) != 1 {
		t.Fatalf("Read = %v, want the old chain", s)
	}
	again(t, h)
	inside("iptables-nft -N OTHER")
	if s := mustRead(t, b); !s.Empty() {
		t.Errorf("a new namespace reads as %v: what its predecessor held", s)
	}
}

func TestReadCreatesNothing(t *testing.T) {
	_, b, inside := newNetns(t, NFT)
	mustRead(t, b)
	if got := inside("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list ruleset"); got != "" {
		t.Errorf("reading made tables, which every packet passes:\n%s", got)
	}
}

// TestShadowedJumpIsMovedWithPauses is the policy of the package comment.
func TestShadowedJumpIsMovedWithPauses(t *testing.T) {
	_, b, inside := newNetns(t, NFT)
	now := time.Now()
	b.now = func() time.Time { return now }
	mustWrite(t, b, proxyNAT)
	inside("iptables-nft -I FORWARD -j ACCEPT")
	if d := nat.Diff(proxyNAT, mustRead(t, b)); !strings.Contains(d, `VPCPROXY-FORWARD comes after "-j ACCEPT"`) {
		t.Fatalf("Diff = %q, want the rule that shadows", d)
	}
	mustWrite(t, b, proxyNAT)
	if got := inside("iptables-nft -S FORWARD 1"); !strings.Contains(got, "VPCPROXY-FORWARD") {
		t.Fatalf("first rule is %s", got)
	}

	inside("iptables-nft -I FORWARD -j ACCEPT")
	now = now.Add(firstPause - 1)
	before, err := stampIn(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
		t.Errorf("Diff = %q within the pause", d)
	}
	mustWrite(t, b, proxyNAT)
	if after, err := stampIn(t, b); err != nil || after != before {
		t.Errorf("wrote within the pause: %v, %v, before %v", after, err, before)
	}
	now = now.Add(1)
	if d := nat.Diff(proxyNAT, mustRead(t, b)); d == "" {
		t.Error("no difference after the pause")
	}
}

func stampIn(t *testing.T, b *Backend) (s stamp, err error) {
	err = b.in(t.Context(), testNetns, "", func() (err error) {
		s, err = takeStamp()
		return err
	})
	return s, err
}

func TestWriteReportsLock(t *testing.T) {
	_, b, _ := newNetns(t, Legacy)
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

func TestTablesThatCannotBeSeen(t *testing.T) {
	const script = `nft 'add rule ip filter FORWARD ct state vmap { new : accept }'`
	_, b, inside := newNetns(t, NFT)
	mustWrite(t, b, proxyNAT)
	inside(script)
	if s, err := b.Read(t.Context(), testNetns); !errors.Is(err, errHidden) {
		t.Errorf("Read = %v, %v; want %v: unknown is not none", s, err, errHidden)
	}
	if err := b.Write(t.Context(), testNetns, proxyNAT); !errors.Is(err, errHidden) {
		t.Errorf("Write = %v, want %v", err, errHidden)
	}
	if _, err := b.Counters(t.Context(), testNetns); !errors.Is(err, errHidden) {
		t.Errorf("Counters = %v, want %v", err, errHidden)
	}
}

func TestTheOtherVariantDoesNotStandInTheWay(t *testing.T) {
	_, b, inside := newNetns(t, Legacy)
	inside(`nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; }; add rule ip filter FORWARD ct state vmap { new : accept }'`)
	mustWrite(t, b, proxyNAT)
	if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
		t.Error(d)
	}
	var log strings.Builder
	b.log = slog.New(slog.NewTextHandler(&log, nil))
	b.other.programs = nil // as on a kernel without nf_tables
	for range 2 {
		b.seen.Forget(testNetns)
		if d := nat.Diff(proxyNAT, mustRead(t, b)); d != "" {
			t.Error(d)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, log.String())
	}
}

func TestWritesRunConcurrently(t *testing.T) {
	h, b, _ := newNetns(t, Legacy)
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
