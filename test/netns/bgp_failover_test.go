package netns

import (
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// TestBGPFollowsWhoIsAlive has a function host follow what proxies announce
// through a reflector: its own zone's first, the other's when that is gone. No
// controller is there throughout.
func TestBGPFollowsWhoIsAlive(t *testing.T) {
	w := newRouted(t, bgpLayout)
	w.startReflector(t, 0)
	w.startNodes(t, "onStop: leave")
	w.agents["host1"].knows(t, 2)
	w.through(t, soon, 0)
	for _, s := range []struct {
		name string
		test func(*testing.T, *routedWorld)
	}{
		{"drain", drain}, {"lost ENI", loseENI}, {"dead carrier", loseCarrier}, {"goodbye", sayGoodbye}, {"zone gone and back", loseZone},
	} {
		t.Run(s.name, func(t *testing.T) { s.test(t, w) })
		if t.Failed() {
			return // the next would begin from anywhere
		}
	}
}

// drain cordons the preferred proxy: it withdraws, and carries on with what it
// still gets.
func drain(t *testing.T, w *routedWorld) {
	load := startLoad(t, w.world)
	start := time.Now()
	w.cordon(t, 0, true)
	w.through(t, routed, 1)
	t.Logf("drained after %v", time.Since(start))
	w.cordon(t, 0, false)
	w.through(t, routed, 0)
	// What was open was moved and, without shared state, is not unharmed;
	// it is only there to be in the way.
	load.flow.Stop(0)
	load.stream.Stop(0)
}

// loseENI takes the preferred proxy's interface in the VPC away.
func loseENI(t *testing.T, w *routedWorld) {
	eni := w.Proxies[0].ENIs["red"]
	netns := "vpx-red"
	typeLines(t, w.Proxies[0].Machine, "ip netns add elsewhere", "ip -n "+netns+" link set "+eni.Name+" netns elsewhere")
	w.through(t, routed, 1)
	// The agent may have it in the namespace again by then.
	address := " address replace " + eni.Address.String() + " dev " + eni.Name
	typeLines(t, w.Proxies[0].Machine, "ip -n elsewhere link set "+eni.Name+" netns $$", "ip netns del elsewhere",
		"until ip"+address+" || ip -n "+netns+address+"; do sleep 0.05; done 2>/dev/null")
	w.through(t, soon, 0)
}

// loseCarrier pulls its cable.
func loseCarrier(t *testing.T, w *routedWorld) {
	port := w.Proxies[0].ENIs["red"].Port
	typeLines(t, w.VPCs["red"].Machine, "ip link set "+port+" down")
	w.through(t, routed, 1)
	typeLines(t, w.VPCs["red"].Machine, "ip link set "+port+" up")
	w.through(t, routed, 0)
}

// sayGoodbye stops the preferred proxy's agent for good.
func sayGoodbye(t *testing.T, w *routedWorld) {
	a := w.agents["proxy1"]
	if err := a.process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.through(t, routed, 1)
	a.restart(t)
	w.through(t, soon, 0)
}

// loseZone hangs the proxy of the host's zone: nobody withdraws anything.
func loseZone(t *testing.T, w *routedWorld) {
	a := w.agents["proxy1"]
	start := time.Now()
	typeLines(t, w.Router, "ip link set proxy1 down")
	w.through(t, bgpHold+bgpRestart+routed, 1)
	t.Logf("believed dead after %v", time.Since(start))
	typeLines(t, w.Router, "ip link set proxy1 up", "ip route replace "+w.Proxies[0].Underlay.String()+"/32 dev proxy1")
	w.through(t, soon, 0)
	if !a.process.Running() {
		t.Error("the agent has ended")
	}
}

// TestBGPRestartsLoseNothing restarts everybody under load. Afterwards, the
// same without graceful restart shows that there was something to lose.
func TestBGPRestartsLoseNothing(t *testing.T) {
	layout := bgpLayout
	layout.Proxies = 1
	w := newRouted(t, layout)
	w.startReflector(t, 0)
	w.startNodes(t)
	w.agents["host1"].has(t, 1)
	w.through(t, soon, 0)
	load := startLoad(t, w.world)
	for _, name := range []string{"proxy1", "host1", "control"} {
		a := w.agents[name]
		a.kill(t)
		a.restart(t)
		w.agents["host1"].hears(t, 1)
		w.agents["host1"].has(t, 1)
		if r := load.flow.Report(); r.LongestGap > time.Second {
			t.Errorf("after the restart of %s: a gap of %v", name, r.LongestGap)
		}
	}
	load.unharmed(t)

	w.restart = 0
	w.stopAll(t)
	w.startReflector(t, 0)
	w.startNodes(t)
	w.agents["host1"].hears(t, 1)
	w.through(t, soon, 0)
	load = startLoad(t, w.world)
	proxy := w.agents["proxy1"]
	proxy.kill(t)
	w.routeless(t, bgpSettle+routed)
	proxy.restart(t)
	w.through(t, soon, 0)
	if datagrams := load.stream.Stop(soon); datagrams.Lost+uint64(datagrams.Errors) == 0 {
		t.Error("without graceful restart nothing was lost: this test proves nothing")
	}
	load.flow.Stop(0)
}

// TestBGPReflectors loses one reflector, then both, and gets them back, with
// nobody noticing.
func TestBGPReflectors(t *testing.T) {
	layout := bgpLayout
	layout.Proxies = 1
	w := newRouted(t, layout)
	one, two := w.startReflector(t, 0), w.startReflector(t, 1)
	w.reflected = reflectors
	w.startNodes(t)
	w.agents["host1"].hears(t, 2)
	w.through(t, soon, 0)
	load := startLoad(t, w.world)
	one.kill(t)
	w.agents["host1"].hears(t, 1)
	one.restart(t)
	w.agents["host1"].hears(t, 2)
	one.kill(t)
	two.kill(t)
	w.agents["host1"].hears(t, 0)
	// Longer than anybody keeps routes for the sake of a restart.
	quiet := time.NewTimer(bgpHold + bgpRestart + time.Second)
	select {
	case <-quiet.C:
	case <-t.Context().Done():
	}
	if err := askOnce(t.Context(), w.Hosts[0].Pods[0].Machine, "red", w.Proxies[0].ENIs["red"].Address.Addr()); err != nil {
		t.Errorf("with no reflector: %v", err)
	}
	// Both come back knowing nothing.
	two.restart(t)
	one.restart(t)
	w.agents["host1"].hears(t, 2)
	load.unharmed(t)
	w.cordon(t, 0, true)
	w.routeless(t, bgpSettle+routed)
	unreachable(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress)
}
