package netns

import (
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// newTenants is a running world of two tenants, red on the first pod and blue
// on the second.
func newTenants(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, tenants)
	w.startTenants(t)
	return w
}

// startTenants attaches both tenants and waits until they are served.
func (w *world) startTenants(t *testing.T) {
	t.Helper()
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
	w.attach(t, "blue", blueKey, w.Hosts[0].Pods[1])
	w.start(t)
	w.settle(t)
	w.reached(t)
}

// reached checks that both tenants' pods are answered by their own servers.
func (w *world) reached(t *testing.T) {
	t.Helper()
	for i, tenant := range []string{"red", "blue"} {
		answeredBy(t, w.Hosts[0].Pods[i].Machine, topo.ServerAddress, tenant, w.Proxies[0].ENIs[tenant].Address.Addr())
	}
}

// load is traffic of red's pod that must not notice what a test does.
type load struct {
	flow   *traffic.Flow
	stream *traffic.Stream
}

// streamEvery is how often the load sends a datagram.
const streamEvery = 2 * time.Millisecond

func startLoad(t *testing.T, w *world) *load {
	t.Helper()
	pod := w.Hosts[0].Pods[0].Machine
	flow, err := traffic.StartFlow(t.Context(), pod, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := traffic.StartStream(t.Context(), pod, topo.ServerAddress, streamEvery)
	if err != nil {
		t.Fatal(err)
	}
	return &load{flow: flow, stream: stream}
}

// unharmed ends the load: every datagram must have come back, and the
// connection must have lived.
func (l *load) unharmed(t *testing.T) {
	t.Helper()
	datagrams, numbers := l.stream.Stop(soon), l.flow.Stop(soon)
	t.Logf("%d datagrams, %d lost; %d numbers by TCP, longest gap %v", datagrams.Sent, datagrams.Lost, numbers.Sent, numbers.LongestGap)
	if datagrams.Lost > 0 || datagrams.Errors > 0 {
		t.Errorf("%d of %d datagrams lost, %d errors (%v)", datagrams.Lost, datagrams.Sent, datagrams.Errors, datagrams.LastError)
	}
	if numbers.Err != nil {
		t.Errorf("the connection: %v", numbers.Err)
	}
	if datagrams.Sent == 0 || numbers.Sent == 0 {
		t.Error("there was no load")
	}
}

// TestRestartAdopts kills agents under load: the new ones find all in place
// and write nothing.
func TestRestartAdopts(t *testing.T) {
	w := newTenants(t)
	load := startLoad(t, w)
	for _, name := range []string{"host1", "proxy1"} {
		a := w.agents[name]
		a.kill(t)
		a.restart(t)
		a.settled(t)
		if n := a.writes(t); n != 0 {
			t.Errorf("%s wrote %d objects after the restart: %v", name, n, a.status(t).Kinds)
		}
		if n := a.resync(t); n != 0 {
			t.Errorf("%s changed %d objects in a resync after the restart", name, n)
		}
	}
	load.unharmed(t)
}

// TestSilence checks that a reconcile with nothing to do writes nothing: no
// agent's count grows, and the kernel announces no change.
func TestSilence(t *testing.T) {
	w := newTenants(t)
	for _, a := range w.agents {
		before := a.writes(t)
		monitor, err := a.Start(nil, "ip", "-ts", "monitor", "link", "address", "route", "rule", "netconf")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if n := a.resync(t); n != 0 {
				t.Errorf("%s changed %d objects in a resync", a.Name, n)
			}
		}
		if after := a.writes(t); after != before {
			t.Errorf("%s wrote %d objects in three resyncs", a.Name, after-before)
		}
		if err := monitor.Kill(); err != nil {
			t.Fatal(err)
		}
		if seen := monitor.Log(); seen != "" {
			t.Errorf("on %s the kernel announced:\n%s", a.Name, seen)
		}
	}
}
