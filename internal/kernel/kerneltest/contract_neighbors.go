package kerneltest

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// neighbors returns what is listed, by address.
func (m *machine) neighbors() map[netip.Addr]kernel.Neighbor { return neighborsOf(m, m.own) }

// asking makes a device whose neighbors are asked for, with a route to them.
func (m *machine) asking(h kernel.Handle, netns string) kernel.Link {
	m.Helper()
	ctx := m.Context()
	m.ok(m.own.CreateGRE(ctx, "vpx-1", kernel.GRE{Local: underlay, Keyed: true, Key: 7, TTL: 64, PMTUDisc: true}, 1400))
	m.ok(m.own.MoveLink(ctx, m.link(m.own, "vpx-1").Index, netns))
	l := m.link(h, "vpx-1")
	m.ok(h.SetLinkARP(ctx, l.Index, true))
	for _, family := range []string{"ipv4", "ipv6"} {
		m.ok(h.SetSysctl(ctx, "net/"+family+"/neigh/vpx-1/app_solicit", "1"))
		m.ok(h.SetSysctl(ctx, "net/"+family+"/neigh/vpx-1/mcast_solicit", "0"))
	}
	m.ok(h.SetLinkUp(ctx, l.Index, true))
	for _, p := range []string{"100.64.0.1/16", "fd00::1/64"} {
		m.ok(h.AddAddress(ctx, kernel.Address{Link: l.Index, Prefix: netip.MustParsePrefix(p)}))
	}
	return l
}

// requests follows requests and takes the first one.
func (m *machine) requests(netns string) <-chan kernel.NeighborRequest {
	m.Helper()
	requests, err := m.host.NeighborRequests(m.Context(), netns)
	m.ok(err)
	m.asked(requests, kernel.NeighborRequest{})
	return requests
}

// asked waits for a request.
func (m *machine) asked(requests <-chan kernel.NeighborRequest, want kernel.NeighborRequest) {
	m.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got, open := <-requests:
			if !open {
				m.Fatalf("the requests ended before %+v", want)
			}
			if got == want {
				return
			}
		case <-timeout:
			m.Fatalf("no request %+v", want)
		}
	}
}

// send sends a packet.
func (m *machine) send(netns string, link int, to netip.Addr) {
	m.Helper()
	if fake, ok := m.host.(*Fake); ok {
		fake.Send(netns, link, to)
		return
	}
	m.ok(m.host.Run(m.Context(), netns, func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("?"))
		return errors.Join(err, c.Close())
	}))
}

func neighborsOf(m *machine, h kernel.Handle) map[netip.Addr]kernel.Neighbor {
	m.Helper()
	all, err := h.Neighbors(m.Context())
	m.ok(err)
	byAddr := map[netip.Addr]kernel.Neighbor{}
	for _, n := range all {
		byAddr[n.Addr] = n
	}
	if len(byAddr) != len(all) {
		m.Fatalf("listed twice: %v", all)
	}
	return byAddr
}

// hosts makes n neighbors of a link.
func hosts(link, n int) []kernel.Neighbor {
	all := make([]kernel.Neighbor, n)
	for i := range all {
		all[i] = kernel.Neighbor{
			Link: link,
			Addr: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}),
			NBMA: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}),
		}
	}
	return all
}

var neighborContract = map[string]func(*testing.T, *machine){
	"replace and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		for _, addr := range []string{"100.64.0.2", "fd00::2"} {
			n := kernel.Neighbor{Link: l.Index, Addr: netip.MustParseAddr(addr), NBMA: netip.MustParseAddr("192.0.2.2")}
			for _, nbma := range []string{"192.0.2.2", "192.0.2.2", "192.0.2.3"} {
				n.NBMA = netip.MustParseAddr(nbma)
				m.allOK(m.own.ReplaceNeighbors(ctx, []kernel.Neighbor{n}))
				want := n
				want.State = kernel.NeighborPermanent
				if got := m.neighbors(); len(got) != 1 || got[n.Addr] != want {
					t.Fatalf("got %v, want %v", got, want)
				}
			}
			for range 2 {
				m.allOK(m.own.DeleteNeighbors(ctx, []kernel.Neighbor{n}))
				if got := m.neighbors(); len(got) != 0 {
					t.Fatalf("got %v", got)
				}
			}
		}
	},
	"one item's failure is its own": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		all := hosts(l.Index, 700) // more than one message's worth
		const absent, invalid = 300, 301
		all[absent].Link = 4711
		all[invalid].NBMA = netip.Addr{}
		for i, err := range m.own.ReplaceNeighbors(ctx, all) {
			switch i {
			case absent:
				m.is(err, kernel.ErrNotFound)
			case invalid:
				m.fails(err)
			default:
				m.ok(err)
			}
		}
		if got := m.neighbors(); len(got) != len(all)-2 {
			t.Fatalf("got %d neighbors, want %d", len(got), len(all)-2)
		}
		m.allOK(m.own.DeleteNeighbors(ctx, all)) // absent ones too
		if got := m.neighbors(); len(got) != 0 {
			t.Fatalf("%d neighbors left", len(got))
		}
	},
	"asked for and answered": func(t *testing.T, m *machine) {
		ctx := t.Context()
		h := m.namespace("vpx-a")
		l := m.asking(h, "vpx-a")
		requests := m.requests("vpx-a")
		hints := m.watch("vpx-a")
		for _, to := range []string{"100.64.0.2", "fd00::2"} {
			addr := netip.MustParseAddr(to)
			want := kernel.NeighborRequest{Link: l.Index, Addr: addr}
			m.send("vpx-a", l.Index, addr)
			m.asked(requests, want)
			if got := neighborsOf(m, h)[addr]; got.State != kernel.NeighborIncomplete || got.NBMA.IsValid() {
				t.Fatalf("got %+v, want one that is incomplete", got)
			}
			n := kernel.Neighbor{Link: l.Index, Addr: addr, NBMA: netip.MustParseAddr("192.0.2.2"), State: kernel.NeighborPermanent}
			m.allOK(h.AnswerNeighbors(ctx, []kernel.Neighbor{n}))
			if got := neighborsOf(m, h)[addr]; got != n {
				t.Fatalf("got %+v, want %+v", got, n)
			}
		}
		// No such neighbor: whether it was asked for, known or unheard of.
		asked := kernel.Neighbor{Link: l.Index, Addr: netip.MustParseAddr("100.64.0.9")}
		m.send("vpx-a", l.Index, asked.Addr)
		m.asked(requests, kernel.NeighborRequest{Link: l.Index, Addr: asked.Addr})
		for range 2 {
			m.allOK(h.AnswerNeighbors(ctx, []kernel.Neighbor{asked, {Link: l.Index, Addr: netip.MustParseAddr("100.64.0.2")}}))
		}
		if got := neighborsOf(m, h); len(got) != 1 {
			t.Fatalf("got %v, want one neighbor", got)
		}
		// Neither the questions nor the answers are news to a reconciler.
		m.ok(h.SetSysctl(ctx, "net/ipv4/ip_forward", "1"))
		for hint := range hints {
			if hint == kernel.HintNeighbors {
				t.Fatal("an answer gave a hint")
			}
			if hint == kernel.HintSysctls {
				break
			}
		}
	},
	"what was asked before is lost": func(_ *testing.T, m *machine) {
		h := m.namespace("vpx-a")
		l := m.asking(h, "vpx-a")
		addr := netip.MustParseAddr("100.64.0.2")
		m.send("vpx-a", l.Index, addr)
		m.requests("vpx-a") // begins with the zero request, and nothing is listed before that
		if got := neighborsOf(m, h)[addr]; got.State != kernel.NeighborIncomplete {
			m.Fatalf("got %+v, want one that is incomplete", got)
		}
	},
	"requests end with the namespace": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		requests := m.requests("vpx-a")
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-a"))
		m.eventually("the requests end", func() bool {
			select {
			case _, open := <-requests:
				return !open
			default:
				return false
			}
		})
		_, err := m.host.NeighborRequests(t.Context(), "vpx-a")
		m.is(err, kernel.ErrNotFound)
	},
	"a change of ARP drops them": func(t *testing.T, m *machine) {
		ctx := t.Context()
		l := m.tunnel(m.own, "vpx-1", 7)
		if !m.link(m.own, "vpx-1").NoARP {
			t.Fatal("a new device has ARP on")
		}
		for _, on := range []bool{true, true, false} {
			m.allOK(m.own.ReplaceNeighbors(ctx, hosts(l.Index, 2)))
			changes := m.link(m.own, "vpx-1").NoARP == on
			m.ok(m.own.SetLinkARP(ctx, l.Index, on))
			if m.link(m.own, "vpx-1").NoARP == on {
				t.Fatalf("ARP is not %t", on)
			}
			if left := len(m.neighbors()); left > 0 == changes {
				t.Fatalf("%d neighbors are left, changed %t", left, changes)
			}
		}
		m.is(m.own.SetLinkARP(ctx, 4711, true), kernel.ErrNotFound)
	},
	"no connections": func(t *testing.T, m *machine) {
		flows, err := m.namespace("vpx-a").Flows(t.Context())
		m.ok(err)
		if len(flows) != 0 {
			t.Fatalf("got %v in a fresh namespace", flows)
		}
	},
	"nothing to do": func(_ *testing.T, m *machine) {
		m.allOK(m.own.ReplaceNeighbors(m.Context(), nil))
		m.allOK(m.own.DeleteRoutes(m.Context(), nil))
	},
}

var ruleContract = map[string]func(*testing.T, *machine){
	"add and delete": func(t *testing.T, m *machine) {
		ctx := t.Context()
		for _, want := range []kernel.Rule{
			mark(0x100, 1000),
			{IPv6: true, Priority: 900, Mark: 0x100, Mask: 0xff00, Table: 77, Protocol: 176},
			{Priority: 901, Table: 0xfffffff0, Protocol: 176},
			{Priority: 902, Mark: 0, Mask: 0xff00, Table: 77, Protocol: 176},
		} {
			for range 2 {
				m.allOK(m.own.AddRules(ctx, []kernel.Rule{want}))
				if n := m.rules(want); n != 1 {
					t.Fatalf("%v is there %d times", want, n)
				}
			}
			for range 2 {
				m.allOK(m.own.DeleteRules(ctx, []kernel.Rule{want}))
				if n := m.rules(want); n != 0 {
					t.Fatalf("%v is there %d times", want, n)
				}
			}
		}
	},
	"the kernel's own are listed": func(t *testing.T, m *machine) {
		for _, want := range []kernel.Rule{
			{Priority: 0, Table: 255, Protocol: 2},
			{Priority: 32766, Table: 254, Protocol: 2},
			{IPv6: true, Priority: 32766, Table: 254, Protocol: 2},
		} {
			if n := m.rules(want); n != 1 {
				t.Errorf("%v is there %d times", want, n)
			}
		}
	},
	"someone else's equal rule stays": func(t *testing.T, m *machine) {
		ctx := t.Context()
		ours, theirs := mark(0x100, 1000), mark(0x100, 1000)
		theirs.Protocol = 4
		m.allOK(m.own.AddRules(ctx, []kernel.Rule{theirs}))
		m.allOK(m.own.AddRules(ctx, []kernel.Rule{ours}))
		if m.rules(ours) != 1 || m.rules(theirs) != 1 {
			t.Fatalf("ours is there %d times, theirs %d times", m.rules(ours), m.rules(theirs))
		}
		for range 2 {
			m.allOK(m.own.DeleteRules(ctx, []kernel.Rule{ours}))
		}
		if m.rules(ours) != 0 || m.rules(theirs) != 1 {
			t.Fatalf("ours is there %d times, theirs %d times", m.rules(ours), m.rules(theirs))
		}
	},
	"an absent selector is no wildcard": func(t *testing.T, m *machine) {
		marked := mark(0x100, 1000)
		all := marked
		all.Mark, all.Mask = 0, 0
		m.allOK(m.own.AddRules(t.Context(), []kernel.Rule{marked}))
		m.allOK(m.own.DeleteRules(t.Context(), []kernel.Rule{all}))
		if m.rules(marked) != 1 {
			t.Fatal("another rule was deleted")
		}
	},
	"refused": func(t *testing.T, m *machine) {
		for _, r := range []kernel.Rule{
			{Priority: 1, Mark: 1, Mask: 1, Table: 1000},
			{Priority: 1, Mark: 1, Mask: 1, Protocol: 176},
			{Priority: 1, Mark: 1, Mask: 1, Table: 1000, Protocol: 176, Other: true},
		} {
			m.fails(m.own.AddRules(t.Context(), []kernel.Rule{r})[0])
			m.fails(m.own.DeleteRules(t.Context(), []kernel.Rule{r})[0])
		}
	},
}

// mark is a rule for packets with a mark.
func mark(value, table uint32) kernel.Rule {
	return kernel.Rule{Priority: 1000, Mark: value, Mask: 0xff00, Table: table, Protocol: 176}
}

// rules counts how often a rule is listed.
func (m *machine) rules(want kernel.Rule) int {
	m.Helper()
	all, err := m.own.Rules(m.Context())
	m.ok(err)
	n := 0
	for _, r := range all {
		if r == want {
			n++
		}
	}
	return n
}
