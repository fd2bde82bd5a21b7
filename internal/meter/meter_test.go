package meter

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
)

// table is a connection tracking table in memory.
type table struct {
	entries []conntrack.Entry
	opened  int
	closed  int
}

func (t *table) Occupancy(context.Context) (int, int, error) { return len(t.entries), 262144, nil }

func (t *table) Dump(_ context.Context, _ conntrack.Status, f func(*conntrack.Entry)) error {
	for i := range t.entries {
		f(&t.entries[i])
	}
	return nil
}

func (t *table) Close() error { t.closed++; return nil }

func port(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// flow is one from src to dst that leaves as to.
func flow(src, to, dst string) conntrack.Entry {
	return conntrack.Entry{
		Orig:  conntrack.MakeTuple(unix.IPPROTO_TCP, port(src), port(dst)),
		Reply: conntrack.MakeTuple(unix.IPPROTO_TCP, port(dst), port(to)),
	}
}

// flows are n to one destination.
func flows(n int, dst string) []conntrack.Entry {
	all := make([]conntrack.Entry, 0, n)
	source, snat := netip.MustParseAddr("100.64.0.80"), netip.MustParseAddr("172.16.101.10")
	for i := range n {
		p := uint16(1024 + i)
		all = append(all, conntrack.Entry{
			Orig:  conntrack.MakeTuple(unix.IPPROTO_TCP, netip.AddrPortFrom(source, p), port(dst)),
			Reply: conntrack.MakeTuple(unix.IPPROTO_TCP, port(dst), netip.AddrPortFrom(snat, p)),
		})
	}
	return all
}

// rig is a meter on a machine in memory with one attachment "red" in a namespace.
type rig struct {
	*Meter
	fake   *kerneltest.Fake
	tables map[string]*table
	places []Place
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		fake:   kerneltest.New(),
		tables: map[string]*table{"": {}, "vpx-red": {}},
		places: []Place{{Attachment: "red", Netns: "vpx-red", Tunnel: "vpx-red", ENI: "eth1"}},
	}
	t.Cleanup(func() { _ = r.fake.Close() })
	if err := r.fake.CreateNamespace(t.Context(), "vpx-red"); err != nil {
		t.Fatal(err)
	}
	r.Meter = New(Options{
		Host:   r.fake,
		Places: func() []Place { return r.places },
		Open: func(netns string) (Table, error) {
			if r.tables[netns] == nil {
				return nil, kernel.ErrNotFound
			}
			r.tables[netns].opened++
			return r.tables[netns], nil
		},
		Drops: func(_ context.Context, netns string) (map[string]uint64, error) {
			return map[string]map[string]uint64{"": {"unknown_peer": 3}, "vpx-red": {"inbound_user_vpc": 4, "no_source_nat": 1}}[netns], nil
		},
		Log: slog.New(slog.DiscardHandler),
	})
	return r
}

// look is what Run does at a tick at which everything is due.
func (r *rig) look(t *testing.T) Sample {
	t.Helper()
	return r.count(t.Context(), r.places, r.listAll(t.Context(), r.places))
}

func (s Sample) in(t *testing.T, netns string) Namespace {
	t.Helper()
	for _, n := range s.Namespaces {
		if n.Netns == netns {
			return n
		}
	}
	t.Fatalf("namespace %q is not in the sample", netns)
	return Namespace{}
}

func TestTrafficOfAnAttachment(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.fake.CountTraffic("vpx-red", r.fake.Plug("vpx-red", kernel.Link{Name: "vpx-red"}), kernel.LinkStats{RxBytes: 100, TxBytes: 200})
	eni := r.fake.Plug("vpx-red", kernel.Link{Name: "eth1"})
	r.fake.CountTraffic("vpx-red", eni, kernel.LinkStats{TxPackets: 7})
	h, err := r.fake.In("vpx-red")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetEgressSources(ctx, eni, nil); err != nil {
		t.Fatal(err)
	}
	r.fake.CountDrops("vpx-red", eni, 5)
	r.tables["vpx-red"].entries = flows(3, "172.16.101.5:80")

	s := r.look(t)
	got := s.Attachments[0]
	if got.Tunnel == nil || got.Tunnel.TxBytes != 200 || got.ENI == nil || got.ENI.TxPackets != 7 || got.Connections != 3 {
		t.Errorf("traffic: %+v", got)
	}
	ns := s.in(t, "vpx-red")
	want := map[string]uint64{"inbound_user_vpc": 4, "no_source_nat": 6}
	if ns.Entries != 3 || ns.Limit != 262144 || ns.Attachment != "red" || !reflect.DeepEqual(ns.Drops, want) {
		t.Errorf("namespace: %+v", ns)
	}
	if w := []Source{{"red", netip.MustParseAddr("172.16.101.10"), 3}}; !reflect.DeepEqual(ns.Sources, w) || len(ns.Busiest) != 0 {
		t.Errorf("sources: %+v, busiest %+v", ns.Sources, ns.Busiest)
	}
	if own := s.in(t, ""); own.Drops["unknown_peer"] != 3 {
		t.Errorf("own namespace: %+v", own)
	}
	for name, table := range r.tables {
		if table.opened == 0 || table.opened != table.closed {
			t.Errorf("table of %q: opened %d times, closed %d times", name, table.opened, table.closed)
		}
	}
}

func TestNamespaceThatIsNotThereYet(t *testing.T) {
	r := newRig(t)
	delete(r.tables, "vpx-red")
	if err := r.fake.DeleteNamespace(t.Context(), "vpx-red"); err != nil {
		t.Fatal(err)
	}
	s := r.look(t)
	if len(s.Namespaces) != 1 || len(s.Attachments) != 1 || s.Attachments[0].Tunnel != nil || r.failing {
		t.Errorf("got %+v, failing %v", s, r.failing)
	}
}

func TestPortsRunOut(t *testing.T) {
	r := newRig(t)
	now := time.Unix(1e9, 0)
	r.now = func() time.Time { return now }
	red := r.tables["vpx-red"]
	red.entries = flows(worthTelling-1, "172.16.101.5:80")
	if d := r.look(t).in(t, "vpx-red").Busiest; len(d) != 0 {
		t.Errorf("a destination with %d ports is told of: %+v", worthTelling-1, d)
	}
	red.entries = flows(4512, "172.16.101.5:80")
	d := r.look(t).in(t, "vpx-red").Busiest
	if len(d) != 1 || d[0].Ports != 4512 || d[0].Exhausted != 0 || d[0].Addr != port("172.16.101.5:80") || d[0].Source != netip.MustParseAddr("172.16.101.10") {
		t.Fatalf("got %+v", d)
	}
	// 1,000 more in 10 s, believed by half: 50 a second, and 59,000 left.
	now = now.Add(10 * time.Second)
	red.entries = flows(5512, "172.16.101.5:80")
	if d := r.look(t).in(t, "vpx-red").Busiest; d[0].Exhausted.Round(time.Second) != 59000/50*time.Second {
		t.Errorf("exhausted after %v", d[0].Exhausted)
	}
	// It stops: the trend fades.
	for range 20 {
		now = now.Add(10 * time.Second)
		d = r.look(t).in(t, "vpx-red").Busiest
	}
	if d[0].Exhausted != 0 {
		t.Errorf("exhausted after %v though nothing grows", d[0].Exhausted)
	}
	red.entries = nil
	for i := range busiest + 1 {
		red.entries = append(red.entries, flows(2000+i, netip.AddrPortFrom(netip.MustParseAddr("172.16.101.5"), uint16(80+i)).String())...)
	}
	d = r.look(t).in(t, "vpx-red").Busiest
	if len(d) != busiest || d[0].Ports != 2000+busiest || d[busiest-1].Ports != 2001 {
		t.Errorf("got %+v", d)
	}
}

func TestOwnerOnAFunctionHost(t *testing.T) {
	prefix := netip.MustParsePrefix
	o := Owners("", []Place{
		{Attachment: "red", Pods: []Pair{{prefix("10.244.1.5/32"), prefix("172.16.101.0/24")}}},
		{Attachment: "blue", Pods: []Pair{{prefix("10.244.1.6/32"), prefix("172.16.101.0/24")}, {prefix("10.244.1.0/24"), prefix("172.16.102.0/24")}}},
		{Attachment: "narrow", Pods: []Pair{{prefix("10.244.1.6/32"), prefix("172.16.101.5/32")}}},
		{Attachment: "subnet", Pods: []Pair{{prefix("10.244.1.0/24"), prefix("172.16.103.0/24")}}},
		{Attachment: "pod", Pods: []Pair{{prefix("10.244.1.5/32"), prefix("172.16.103.0/24")}}},
		{Attachment: "wide", CIDRs: []netip.Prefix{prefix("192.168.0.0/16")}},
		{Attachment: "elsewhere", Netns: "vpx-elsewhere", CIDRs: []netip.Prefix{prefix("0.0.0.0/0")}},
	})
	for _, tc := range []struct{ src, dst, want string }{
		{"10.244.1.5:1", "172.16.101.5:80", "red"},
		{"10.244.1.6:1", "172.16.101.6:80", "blue"},
		{"10.244.1.6:1", "172.16.101.5:80", "narrow"},
		{"10.244.1.5:1", "172.16.102.5:80", "blue"},
		{"10.244.1.7:1", "172.16.101.5:80", ""},
		{"10.244.1.5:1", "172.16.103.5:80", "pod"},
		{"10.244.1.7:1", "172.16.103.5:80", "subnet"},
		{"10.0.0.1:1", "192.168.3.4:80", "wide"},
		{"[fd00::1]:1", "[fd00::2]:80", ""},
	} {
		e := flow(tc.src, tc.src, tc.dst)
		if got, ok := o.Of(&e); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s to %s is %q's (%v), want %q's", tc.src, tc.dst, got, ok, tc.want)
		}
	}
}

func TestRunFollowsAndReportsOnce(t *testing.T) {
	r := newRig(t)
	broken := errors.New("broken")
	r.fake.Fail("LinkStats", 1, broken)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for len(r.Last().Namespaces) == 0 {
		select {
		case err := <-done:
			t.Fatalf("Run ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !r.failing {
		t.Error("a failed listing was not reported")
	}
}
