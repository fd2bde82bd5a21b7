package netns

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// TestOperatorsMoveTheRole has a controller hand a group's role over, drain a
// proxy across a restart of its agent, and take it back into service.
func TestOperatorsMoveTheRole(t *testing.T) {
	p := newPlatform(t, pairLayout)
	pod := p.Hosts[0].Pods[0]
	p.mustCtl(t, p.Control, "attach", "--subnet", topo.Subnet.String(), "--vpc", "vpc-red", "--name", "red", "--group", "g1",
		"--eni", "proxy1:mac="+p.Proxies[0].ENIs["red"].MAC, "--eni", "proxy2:mac="+p.Proxies[1].ENIs["red"].MAC,
		"--havip", innerVip.String(), "--pods", pod.Address.String(), "--wait")
	pair := &pair{world: p.world}
	pair.outer, pair.inner = pair.ask(t, p.Router, "proxies", outerVip), pair.ask(t, p.VPCs["red"].Machine, "subnet", innerVip)
	holds := func(i int) {
		t.Helper()
		eventually(t, soon, func(context.Context) error { return pair.heldBy(i) })
		answeredBy(t, pod.Machine, topo.ServerAddress, "red", innerVip)
	}
	// Whoever was ready first is active: the priorities are equal.
	active := 0
	eventually(t, soon, func(context.Context) error {
		if pair.heldBy(1) == nil {
			active = 1
			return nil
		}
		return pair.heldBy(0)
	})
	from, to := p.Proxies[active].Name, p.Proxies[1-active].Name

	out := p.mustCtl(t, p.Control, "failover", "g1", "--to", to)
	if !strings.HasPrefix(out, "group/g1 moved from "+from+" to "+to) {
		t.Errorf("failover: %s", out)
	}
	holds(1 - active)
	// Only the active proxy has the address that the tunnel comes from; the
	// host's measurement goes to whichever that is.
	for node, want := range map[string]string{to: " 0 %", from: "(this proxy is not the active one of group g1)", "host1": "group g1   red"} {
		if out := p.mustCtl(t, p.Control, "netcheck", "--node", node, "--count", "5"); !strings.Contains(out, want) {
			t.Errorf("netcheck of %s lacks %q:\n%s", node, want, out)
		}
	}

	p.mustCtl(t, p.Control, "drain", to)
	holds(active)
	drained := p.agents[to]
	drained.kill(t)
	drained.restart(t)
	if out, code := p.vpcproxyctl(t, p.Control, "failover", "g1"); code == 0 {
		t.Errorf("failover to a drained proxy: %s", out)
	}
	if out, code := p.vpcproxyctl(t, p.Control, "drain", from); code == 0 || !strings.Contains(out, "no other proxy of group g1") {
		t.Errorf("both drained: exit status %d, %s", code, out)
	}
	p.mustCtl(t, p.Control, "uncordon", to)
	// Refused until the controller has heard that the other one is fit: its agent has
	// been started anew.
	eventually(t, soon, func(context.Context) error {
		if out, code := p.vpcproxyctl(t, p.Control, "drain", from); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	holds(1 - active)
	status := p.mustCtl(t, p.Control, "ha", "status")
	for _, want := range []string{from, to, "Active", "drained"} {
		if !strings.Contains(status, want) {
			t.Errorf("ha status lacks %q:\n%s", want, status)
		}
	}
}
