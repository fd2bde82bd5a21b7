package echo_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/echo"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

var (
	near = netip.MustParseAddr("192.168.4.4")
	far  = netip.MustParseAddr("192.168.80.8")
)

// ends makes a tunnel whose ends are in two namespaces, vpx-a and vpx-b, over lo.
func ends(t *testing.T) *machine.Machine {
	t.Helper()
	m := machine.Kernel(t)
	own := m.Open(t, "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lo := m.Link(t, "", "lo")
	must(own.SetLinkUp(t.Context(), lo.Index, true))
	for name, local := range map[string]netip.Addr{"vpx-a": near, "vpx-b": far} {
		must(own.AddAddress(t.Context(), kernel.Address{Link: lo.Index, Prefix: netip.PrefixFrom(local, 32)}))
		must(m.CreateNamespace(t.Context(), name))
		must(own.CreateGRE(t.Context(), name, kernel.GRE{Local: local, Keyed: true, Key: 7}, 1472))
		must(own.MoveLink(t.Context(), m.Link(t, "", name).Index, name))
		must(m.Open(t, name).SetLinkUp(t.Context(), m.Link(t, name, name).Index, true))
	}
	return m
}

// respond answers in vpx-b until the test ends, or stop is called.
func respond(t *testing.T, m *machine.Machine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := echo.NewResponder(m, slog.New(slog.DiscardHandler))
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	r.Follow(map[string]bool{"vpx-b": true, "vpx-absent": true})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func measure(t *testing.T, m *machine.Machine) echo.Path {
	t.Helper()
	p, err := echo.Measure(t.Context(), m, "vpx-a", m.Link(t, "vpx-a", "vpx-a"), far, 10)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMeasure(t *testing.T) {
	m := ends(t)
	if p := measure(t, m); p.Sent != 10 || p.There != -1 || p.Back != 0 || p.MTUThere != 0 {
		t.Errorf("measured without anybody who answers: %+v", p)
	}
	stop := respond(t, m)
	var p echo.Path
	for end := time.Now().Add(20 * time.Second); p.Back < 10 && time.Now().Before(end); {
		p = measure(t, m)
	}
	if p.Sent != 10 || p.There != 10 || p.Back != 10 || p.MTUThere != 1472 || p.MTUBack != 1472 || p.RTT <= 0 {
		t.Errorf("measured %+v", p)
	}
	stop()
	if p := measure(t, m); p.There != -1 {
		t.Errorf("measured when nobody answers any more: %+v", p)
	}
}

// A namespace that goes takes the responder's socket along, or its tunnel's key
// would stay in use.
func TestResponderLetsGo(t *testing.T) {
	m := ends(t)
	respond(t, m)
	for end := time.Now().Add(20 * time.Second); measure(t, m).Back == 0 && time.Now().Before(end); {
	}
	if err := m.DeleteNamespace(t.Context(), "vpx-b"); err != nil {
		t.Fatal(err)
	}
	if err := m.Open(t, "").CreateGRE(t.Context(), "vpx-b", kernel.GRE{Local: far, Keyed: true, Key: 7}, 1472); err != nil {
		t.Errorf("the key is still in use: %v", err)
	}
}
