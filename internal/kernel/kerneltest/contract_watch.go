package kerneltest

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// closed reads what is waiting, and says whether the channel has ended.
func closed(hints <-chan kernel.Hint) bool {
	for {
		select {
		case _, open := <-hints:
			if !open {
				return true
			}
		default:
			return false
		}
	}
}

// watch starts a watch and takes its first hint.
func (m *machine) watch(name string) <-chan kernel.Hint {
	m.Helper()
	hints, err := m.host.Watch(m.Context(), name)
	m.ok(err)
	m.hinted(hints, kernel.HintAll)
	return hints
}

// hinted waits for a hint.
func (m *machine) hinted(hints <-chan kernel.Hint, want kernel.Hint) {
	m.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got, open := <-hints:
			if !open {
				m.Fatalf("the watch ended before the hint %q", want)
			}
			if got == want {
				return
			}
		case <-timeout:
			m.Fatalf("no hint %q", want)
		}
	}
}

// calm waits until there are no hints for a while.
func (m *machine) calm(hints <-chan kernel.Hint) {
	m.Helper()
	for {
		select {
		case _, open := <-hints:
			if !open {
				m.Fatal("the watch ended")
			}
		case <-time.After(300 * time.Millisecond):
			return
		}
	}
}

// thing is open until it is closed.
type thing chan struct{}

func (c thing) Close() error {
	close(c)
	return nil
}

// over tells whether a channel is closed.
func over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// keep opens a thing in a namespace.
func (m *machine) keep(ctx context.Context, name string) (thing, <-chan struct{}) {
	m.Helper()
	c := make(thing)
	closed, err := m.host.Keep(ctx, name, func() (io.Closer, error) { return c, nil })
	m.ok(err)
	if over(c) || over(closed) {
		m.Fatal("what is to be kept is closed")
	}
	return c, closed
}

var watchContract = map[string]func(*testing.T, *machine){
	"a hint for each sort": func(t *testing.T, m *machine) {
		ctx := t.Context()
		h := m.namespace("vpx-a")
		l := m.tunnel(m.own, "vpx-1", 7)
		hints := m.watch("vpx-a")
		m.ok(m.own.MoveLink(ctx, l.Index, "vpx-a"))
		m.hinted(hints, kernel.HintLinks)
		index := m.link(h, "vpx-1").Index
		m.ok(h.SetLinkUp(ctx, index, true))
		m.hinted(hints, kernel.HintLinks)
		m.ok(h.AddAddress(ctx, kernel.Address{Link: index, Prefix: netip.MustParsePrefix("100.64.0.1/32")}))
		m.hinted(hints, kernel.HintAddresses)
		m.allOK(h.ReplaceNeighbors(ctx, hosts(index, 1)))
		m.hinted(hints, kernel.HintNeighbors)
		m.allOK(h.ReplaceRoutes(ctx, []kernel.Route{route(index, 1000, "172.16.101.0/24", 0)}))
		m.hinted(hints, kernel.HintRoutes)
		m.allOK(h.AddRules(ctx, []kernel.Rule{mark(0x100, 1000)}))
		m.hinted(hints, kernel.HintRules)
		m.ok(h.SetSysctl(ctx, "net/ipv4/ip_forward", "1"))
		m.hinted(hints, kernel.HintSysctls)
		m.ok(h.SetEgressSources(ctx, index, nil))
		m.hinted(hints, kernel.HintEgress)
	},
	"a parameter that has been read": func(t *testing.T, m *machine) {
		ctx := t.Context()
		h := m.namespace("vpx-a")
		hints := m.watch("vpx-a")
		const name = "net/ipv4/neigh/vpx-1/mcast_solicit" // which no notification tells of
		for range 2 {
			l := m.tunnel(h, "vpx-1", 7)
			if _, err := h.Sysctls(ctx, []string{name}); err != nil {
				t.Fatal(err)
			}
			if !h.SysctlsWatched([]string{name}) {
				t.Fatal("not watched")
			}
			for _, value := range []string{"1", "2"} {
				m.calm(hints)
				m.ok(h.SetSysctl(ctx, name, value))
				m.hinted(hints, kernel.HintSysctls)
			}
			m.ok(h.DeleteLink(ctx, l.Index)) // and another device of the name
		}
	},
	"a link that goes down is a hint for what it takes along": func(t *testing.T, m *machine) {
		for _, want := range []kernel.Hint{kernel.HintRoutes, kernel.HintNeighbors} {
			l := m.tunnel(m.own, "vpx-1", 7)
			// The kernel does tell of IPv6 routes that go.
			m.ok(m.own.SetSysctl(t.Context(), "net/ipv6/conf/vpx-1/disable_ipv6", "1"))
			m.allOK(m.own.ReplaceRoutes(t.Context(), []kernel.Route{route(l.Index, 1000, "172.16.101.0/24", 0)}))
			hints := m.watch("")
			m.ok(m.own.SetLinkUp(t.Context(), l.Index, false))
			m.hinted(hints, want)
			m.ok(m.own.DeleteLink(t.Context(), l.Index))
		}
	},
	"namespaces": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		hints := m.watch("")
		m.ok(m.host.CreateNamespace(t.Context(), "vpx-b"))
		m.hinted(hints, kernel.HintNamespaces)
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-b"))
		m.hinted(hints, kernel.HintNamespaces)
	},
	"ends with its context": func(t *testing.T, m *machine) {
		ctx, cancel := context.WithCancel(t.Context())
		hints, err := m.host.Watch(ctx, "")
		m.ok(err)
		cancel()
		m.eventually("the watch ends", func() bool { return closed(hints) })
	},
	"what is kept is closed before its namespace is gone": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		c, closed := m.keep(t.Context(), "vpx-a")
		other, _ := m.keep(t.Context(), "")
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-a"))
		if !over(c) {
			t.Error("it is open")
		}
		m.eventually("its end is told", func() bool { return over(closed) })
		if over(other) {
			t.Error("what is kept in another namespace is closed")
		}
		_, err := m.host.Keep(t.Context(), "vpx-a", func() (io.Closer, error) { return nil, nil })
		m.is(err, kernel.ErrNotFound)
	},
	"what is kept is closed with its context": func(t *testing.T, m *machine) {
		ctx, cancel := context.WithCancel(t.Context())
		c, closed := m.keep(ctx, "")
		cancel()
		m.eventually("it is closed", func() bool { return over(closed) && over(c) })
		refused := errors.New("refused")
		_, err := m.host.Keep(t.Context(), "", func() (io.Closer, error) { return nil, refused })
		m.is(err, refused)
	},
	"ends with its namespace": func(t *testing.T, m *machine) {
		m.namespace("vpx-a")
		hints := m.watch("vpx-a")
		own := m.watch("")
		m.ok(m.host.DeleteNamespace(t.Context(), "vpx-a"))
		m.eventually("the watch ends", func() bool { return closed(hints) })
		m.allOK(m.own.AddRules(t.Context(), []kernel.Rule{mark(0x100, 1000)}))
		m.hinted(own, kernel.HintRules)
	},
}
