package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// speaking has hosts and proxies tell each other who is alive. Only the hold time
// is not the default, so that a fault can outlast it.
const speaking = "bgp: {mode: mesh, holdTime: 3s}"

func bgpFaults() []fault {
	const table = "nft add table ip cut; nft 'add chain ip cut in { type filter hook input priority -300; }'; nft add rule ip cut in tcp "
	heal := []string{"nft delete table ip cut"}
	routed := promise{after: inRoutes}
	reopened := promise{after: inRoutes, within: reopenLimit}
	silent := func(m, name string) fault {
		return fault{area: "BGP", name: name, on: m, typed: []string{table + "dport 179 drop", "nft add rule ip cut in tcp sport 179 drop"}, mend: heal,
			lasts: 5 * time.Second, holds: routed} // the hold time is over, routes are kept
	}
	return []fault{
		silent("host1", "a function host hears no neighbor"),
		silent("proxy1", "the active proxy hears no neighbor"),
		{area: "BGP", name: "sessions of the active proxy are reset", on: "proxy1",
			typed: []string{table + "dport 179 reject with tcp reset", "nft add rule ip cut in tcp sport 179 reject with tcp reset"}, mend: heal, holds: reopened},
		{area: "BGP", name: "a stranger talks to a function host", do: babble, holds: routed},
	}
}

// inRoutes tells whether every proxy has a session with every function host.
func inRoutes(ctx context.Context, p *platform) error {
	for _, x := range p.lab.Proxies {
		metrics, err := p.agents[x.Name].scrape(ctx)
		if err != nil {
			return err
		}
		up := 0
		for _, m := range metrics["vpcproxy_bgp_session_up"].GetMetric() {
			up += int(m.GetGauge().GetValue())
		}
		if up != len(p.lab.Hosts) {
			return fmt.Errorf("%s has %d BGP sessions, want %d", x.Name, up, len(p.lab.Hosts))
		}
	}
	return nil
}

// babble connects to a function host's BGP port, from where nobody has business
// there, and says anything.
func babble(ctx context.Context, p *platform) error {
	attempt, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := traffic.Dial(attempt, p.lab.Attacker, "tcp4", p.lab.Hosts[0].Underlay.String()+":179")
	if err != nil {
		return nil // nobody listens to strangers
	}
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise)
	_, _ = c.Write(noise) // the other end may have hung up
	return errors.Join(c.Close(), ctx.Err())
}
