package tunnel_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

// asking is a proxy's namespace in memory whose tunnel asks for neighbors, and a
// Responder.
type asking struct {
	*testing.T
	fake  *kerneltest.Fake
	h     kernel.Handle
	link  int
	table *tunnel.Table
	r     *tunnel.Responder
	log   *bytes.Buffer
	stop  func()
}

const responderAge = time.Minute

func newAsking(t *testing.T) *asking {
	t.Helper()
	fake := kerneltest.New()
	a := &asking{T: t, fake: fake, table: &tunnel.Table{}, log: &bytes.Buffer{}}
	own, err := fake.In("")
	ok(t, err, fake.CreateNamespace(t.Context(), "vpx-a"),
		own.CreateGRE(t.Context(), "vpx-a", kernel.GRE{Local: netip.MustParseAddr("192.0.2.1"), Keyed: true, Key: 7, TTL: 64, PMTUDisc: true}, 1400))
	l, err := own.LinkByName(t.Context(), "vpx-a")
	ok(t, err, own.MoveLink(t.Context(), l.Index, "vpx-a"))
	a.h, err = fake.In("vpx-a")
	ok(t, err)
	l, err = a.h.LinkByName(t.Context(), "vpx-a")
	a.link = l.Index
	ok(t, err, a.h.SetLinkARP(t.Context(), l.Index, true), a.h.SetLinkUp(t.Context(), l.Index, true),
		a.h.SetSysctl(t.Context(), "net/ipv4/neigh/vpx-a/app_solicit", "1"))
	a.r = tunnel.NewResponder(tunnel.ResponderOptions{Host: fake, Resolver: a.table, Age: responderAge, Log: slog.New(slog.NewTextHandler(a.log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.r.Run(ctx)
	}()
	a.stop = func() {
		cancel()
		<-done
		_ = fake.Close()
	}
	return a
}

// hosts are neighbors that are wanted on demand: N at 192.0.2.N.
func (a *asking) hosts(n ...int) neighbors {
	out := neighbors{}
	for _, n := range n {
		out[desired.NeighborKey{Netns: "vpx-a", Link: "vpx-a", Addr: hostN(n)}] =
			desired.Neighbor{NBMA: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), OnDemand: true}
	}
	return out
}

func hostN(n int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)}) }

func (a *asking) follow(want neighbors) {
	a.r.Follow(a.table.Set(want))
	synctest.Wait()
}

// at is what the kernel has for a host: an NBMA address, "asked" or "".
func (a *asking) at(n int) string {
	a.Helper()
	all, err := a.h.Neighbors(a.Context())
	ok(a.T, err)
	for _, e := range all {
		if e.Addr == hostN(n) {
			if !e.NBMA.IsValid() {
				return "asked"
			}
			return e.NBMA.String()
		}
	}
	return ""
}

func (a *asking) want(n int, at string) {
	a.Helper()
	synctest.Wait()
	if got := a.at(n); got != at {
		a.Fatalf("host %d is %q, want %q\n%s", n, got, at, a.log)
	}
}

func TestResponderAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t)
		defer a.stop()
		a.fake.Send("vpx-a", a.link, hostN(1)) // before anybody follows
		a.follow(a.hosts(1, 2))
		a.want(1, "192.0.2.1")
		a.fake.Send("vpx-a", a.link, hostN(2))
		a.want(2, "192.0.2.2")
		a.fake.Send("vpx-a", a.link, hostN(3))
		a.want(3, "asked") // left to the kernel
		if s := a.r.Stats(); s.Answered != 2 || s.Unknown != 1 || s.Present != 2 {
			t.Errorf("%+v", s)
		}
		// The namespace goes and comes back.
		ok(t, a.fake.DeleteNamespace(t.Context(), "vpx-a"))
		time.Sleep(time.Second)
		if s := a.r.Stats(); s.Present != 0 {
			t.Errorf("%+v", s)
		}
		if strings.Contains(a.log.String(), "ERROR") {
			t.Error(a.log)
		}
	})
}

func TestResponderAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t)
		defer a.stop()
		a.follow(a.hosts(1, 2))
		eager := kernel.Neighbor{Link: a.link, Addr: hostN(9), NBMA: netip.MustParseAddr("192.0.2.9")}
		ok(t, a.h.ReplaceNeighbors(t.Context(), []kernel.Neighbor{eager})...)
		a.fake.Send("vpx-a", a.link, hostN(1))
		a.fake.Send("vpx-a", a.link, hostN(2))
		a.fake.SetFlows("vpx-a", hostN(1), netip.MustParseAddr("172.16.101.5"))
		time.Sleep(responderAge - time.Second)
		a.want(2, "192.0.2.2")
		time.Sleep(responderAge/4 + time.Second)
		a.want(2, "")
		a.want(1, "192.0.2.1") // a connection needs it
		a.want(9, "192.0.2.9") // not ours to age
		a.fake.SetFlows("vpx-a")
		time.Sleep(2 * responderAge)
		a.want(1, "")
		if s := a.r.Stats(); s.Aged != 2 || s.Present != 0 {
			t.Errorf("%+v", s)
		}
		a.fake.Send("vpx-a", a.link, hostN(2))
		a.want(2, "192.0.2.2")
	})
}

func TestResponderStopsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t)
		a.follow(a.hosts(1, 2))
		a.fake.Send("vpx-a", a.link, hostN(1))
		synctest.Wait()
		a.want(2, "")
		fake := a.fake
		a.stop()
		_ = fake
		// stop closes the machine, too: its journal is what is left.
		if got := strings.Join(fake.Journal(), "\n"); !strings.Contains(got, "AnswerNeighbors [vpx-a] "+fmt.Sprintf("%s on %d", hostN(2), a.link)) {
			t.Errorf("no entry in advance for a host that comes later:\n%s", got)
		}
	})
}

func TestResponderInAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t)
		defer a.stop()
		a.follow(a.hosts(1))
		start := time.Now()
		const flood = 12000
		for i := range flood {
			a.fake.Send("vpx-a", a.link, hostN(1000+i))
			if i == flood/2 {
				a.fake.Send("vpx-a", a.link, hostN(1))
			}
		}
		for a.at(1) != "192.0.2.1" {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(start); took < time.Second {
			t.Errorf("%d requests were looked at within %v: that is no bound", flood/2, took)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		all, err := a.h.Neighbors(t.Context())
		ok(t, err)
		if s := a.r.Stats(); s.Unknown != flood || s.Answered != 1 || s.Cleared != uint64(flood+1-len(all)) || len(all) > 700 {
			t.Errorf("%+v, %d entries are left", s, len(all))
		}
		if n := strings.Count(a.log.String(), "asked for that no node has"); n != 1 {
			t.Errorf("%d lines of log", n)
		}
		// An overrun leaves what is open to be listed.
		a.fake.LoseRequests("vpx-a")
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if !strings.Contains(a.log.String(), "no unknown neighbor is asked for any more") {
			t.Errorf("the end is not logged:\n%s", a.log)
		}
	})
}

func TestResponderCannotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t)
		defer a.stop()
		a.follow(a.hosts(1, 2, 3))
		for n := 1; n <= 2; n++ {
			a.fake.Fail("AnswerNeighbors", 1, kernel.ErrNotSupported)
			a.fake.Send("vpx-a", a.link, hostN(n))
			synctest.Wait()
		}
		a.fake.Send("vpx-a", a.link, hostN(3))
		a.want(3, "192.0.2.3")
		if n := strings.Count(a.log.String(), "cannot be answered"); n != 1 || a.r.Stats().Failed != 2 {
			t.Errorf("%d lines of log, %+v:\n%s", n, a.r.Stats(), a.log)
		}
		if !strings.Contains(a.log.String(), "answered again") {
			t.Errorf("the recovery is not logged:\n%s", a.log)
		}
		a.fake.Fail("NeighborRequests", 1, kernel.ErrNotSupported)
		a.follow(nil)
		a.follow(a.hosts(1))
		time.Sleep(time.Second)
		a.want(1, "192.0.2.1") // by listing
	})
}

func TestNeighborsOnDemand(t *testing.T) {
	machine.Each(t, func(t *testing.T, m *machine.Machine) {
		tunnels(t, m)
		table := &tunnel.Table{}
		engine := machine.Reconcile(t, tunnel.NewNeighbors(m, table))
		ip := netip.MustParseAddr
		key := func(n int) desired.NeighborKey {
			return desired.NeighborKey{Netns: "vpx-a", Link: "vpx-a", Addr: hostN(n)}
		}
		want := neighbors{}
		for n := 1; n <= 4; n++ {
			want[key(n)] = desired.Neighbor{NBMA: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), OnDemand: true}
		}
		table.Set(want)
		if p := engine.Apply(want); p.Writes() != 0 {
			t.Fatalf("%d entries were made unasked", p.Writes())
		}
		a, h := m.Link(t, "vpx-a", "vpx-a").Index, m.Open(t, "vpx-a")
		ok(t, h.AnswerNeighbors(t.Context(), []kernel.Neighbor{
			{Link: a, Addr: hostN(1), NBMA: ip("192.0.2.1")},
			{Link: a, Addr: hostN(2), NBMA: ip("192.0.2.2")},
			{Link: a, Addr: hostN(3), NBMA: ip("192.0.2.99")},                                   // corrupted
			{Link: a, Addr: hostN(4), NBMA: ip("192.0.2.4"), State: kernel.NeighborReachable},   // would expire
			{Link: a, Addr: hostN(50), NBMA: ip("192.0.2.50"), State: kernel.NeighborPermanent}, // unknown
		})...)
		if p := engine.Apply(want); p.Kinds[0].Repaired != 2 || p.Kinds[0].Deleted != 1 || p.Kinds[0].Created != 0 {
			t.Errorf("%+v", p.Kinds[0])
		}
		// A host that moves, and one that leaves.
		want = neighbors{key(1): {NBMA: ip("192.0.2.77"), OnDemand: true}, key(3): want[key(3)], key(4): want[key(4)]}
		table.Set(want)
		if p := engine.Apply(want); p.Kinds[0].Repaired != 1 || p.Kinds[0].Deleted != 1 {
			t.Errorf("%+v", p.Kinds[0])
		}
		all, err := h.Neighbors(t.Context())
		ok(t, err)
		got := map[netip.Addr]netip.Addr{}
		for _, e := range all {
			if e.State != kernel.NeighborPermanent {
				t.Errorf("%+v is not permanent", e)
			}
			got[e.Addr] = e.NBMA
		}
		if len(got) != 3 || got[hostN(1)] != ip("192.0.2.77") || got[hostN(3)] != ip("192.0.2.3") {
			t.Errorf("%v", got)
		}
		// All in advance, and back.
		for k, v := range want {
			v.OnDemand = false
			want[k] = v
		}
		want[key(5)] = desired.Neighbor{NBMA: ip("192.0.2.5")}
		table.Set(want)
		if p := engine.Apply(want); p.Kinds[0].Created != 1 || p.Writes() != 1 {
			t.Errorf("%+v", p.Kinds[0])
		}
	})
}
