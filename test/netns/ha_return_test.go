package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// TestPreferredProxyWaitsForSessions has the preferred proxy come back while
// replication does not work. It must not take over before it has the connections
// that have begun meanwhile.
func TestPreferredProxyWaitsForSessions(t *testing.T) {
	s := &sessionsPair{pair: &pair{world: newWorld(t, pairLayout), interval: time.Second}} // so that no stall of the guest counts as a failure
	s.pair.group(t)
	s.launch(t)
	s.outer, s.inner = s.ask(t, s.Router, "proxies", outerVip), s.ask(t, s.VPCs["red"].Machine, "subnet", innerVip)
	holds := func(i int) {
		t.Helper()
		eventually(t, soon, func(context.Context) error { return s.heldBy(i) })
	}
	holds(0)
	away := s.agents[s.Proxies[0].Name]
	if err := away.process.Stop(t.Context()); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	holds(1)
	const few = 100
	crowd, err := traffic.StartCrowd(t.Context(), s.Hosts[0].Pods[0].Machine, s.VPCs["red"].Machine, topo.ServerAddress, few, crowdEvery)
	if err != nil {
		t.Fatal(err)
	}
	defer crowd.Stop()

	machine := s.Proxies[0].Machine
	typeLines(t, machine, "nft add table ip cut", "nft 'add chain ip cut out { type filter hook output priority 0; }'",
		"nft 'add rule ip cut out tcp dport 9445 reject with tcp reset'")
	away.restart(t)
	eventually(t, soon, func(context.Context) error {
		if !strings.Contains(away.process.Log(), "behind the active one") {
			return errors.New("it does not say what it waits for")
		}
		return nil
	})
	// The delay is over after one second, and the down interval after four.
	s.steadyOn(t, 1, 6*time.Second)
	typeLines(t, machine, "nft delete table ip cut")
	holds(0)
	start := time.Now()
	eventually(t, soon, func(context.Context) error {
		if n := crowd.Answered(start); n < few {
			return fmt.Errorf("%d of %d connections go on: %+v", n, few, crowd.Report())
		}
		return nil
	})
	if report := crowd.Report(); report.Errors > 0 {
		t.Errorf("%d of %d connections ended, %d by a reset: %v", report.Errors, few, report.Resets, report.FirstError)
	}
}
