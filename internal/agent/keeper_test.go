package agent

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/peering"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// What is believed is written when it has stopped to change for a moment, or has
// changed for too long, and again if it could not be.
func TestBelievedIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	r := &routing{table: peering.NewTable("host", peering.Config{}, time.Second), file: filepath.Join(dir, "bgp.json"), boot: "boot", log: slog.New(slog.DiscardHandler)}
	var k keeper
	n := byte(0)
	change := func() {
		n++
		r.table.Restore([]bgp.Route{{Path: bgp.Path{NLRI: bgp.NLRI{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 32)}}}})
	}
	want := func(what string, routes int) {
		t.Helper()
		r.keep(&k)
		m, err := peering.LoadMemory(r.file)
		if err != nil || len(m.Routes) != routes {
			t.Errorf("%s: %d routes on disk, want %d (%v)", what, len(m.Routes), routes, err)
		}
	}
	change()
	want("a change", 0)
	want("a directory that is not there", 0)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want("a moment later", 1)
	for range saveWait {
		change()
		want("change after change", 1)
	}
	change()
	want("too many changes", 2+saveWait)
	if err := os.Remove(r.file); err != nil {
		t.Fatal(err)
	}
	want("nothing new", 0)
	change()
	want("another change", 0)
	want("a moment after it", 3+saveWait)
}
