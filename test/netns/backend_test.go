package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// TestBackends runs on a host whose other software uses iptables-legacy, and
// on one where it uses iptables-nft; ours follows, and is repaired there. The
// kernel announces no change that iptables-legacy makes, so that a repair
// waits for the next refresh.
func TestBackends(t *testing.T) {
	lab.Require(t, lab.IPTablesLegacy)
	for _, backend := range []string{"legacy", "nft"} {
		t.Run(backend, func(t *testing.T) {
			layout := tenants
			layout.Legacy = backend == "legacy"
			w := newWorld(t, layout)
			host, proxy := w.Hosts[0], w.Proxies[0]
			w.attach(t, "red", redKey, host.Pods[0])
			w.startAgent(t, host.Machine, "function", "reconcile: {refresh: 1s}").awaitReady(t)
			w.startAgent(t, proxy.Machine, "proxy", "nat: {iptables: "+backend+"}").awaitReady(t)
			answer := func() {
				answeredBy(t, host.Pods[0].Machine, topo.ServerAddress, "red", proxy.ENIs["red"].Address.Addr())
			}
			answer()
			other := map[string]string{"legacy": "nft", "nft": "legacy"}[backend]
			for m, inside := range map[*topo.Machine]string{host.Machine: "", proxy.Machine: inRed} {
				if rules := look(t, m, inside+"iptables-"+backend+"-save"); !strings.Contains(rules, "VPCPROXY-") {
					t.Errorf("%s has no rule of ours in iptables-%s:\n%s", m.Name, backend, rules)
				}
				if rules := look(t, m, inside+"iptables-"+other+"-save"); strings.Contains(rules, "VPCPROXY-") {
					t.Errorf("%s has rules of ours in iptables-%s:\n%s", m.Name, other, rules)
				}
			}
			save := "iptables-" + backend + "-save -t nat | grep VPCPROXY"
			before := look(t, host.Machine, save)
			typeLines(t, host.Machine, "iptables-"+backend+" -t nat -F")
			eventually(t, soon, func(ctx context.Context) error {
				after, err := host.Run(ctx, "sh", "-c", save)
				if err == nil && after != before {
					err = fmt.Errorf("before:\n%safter:\n%s", before, after)
				}
				return err
			})
			answer()
		})
	}
}

// TestForwardPolicyDrop has a FORWARD chain that drops by default, as the
// container engine Docker leaves it.
func TestForwardPolicyDrop(t *testing.T) {
	w := newWorld(t, tenants)
	host := w.Hosts[0]
	typeLines(t, host.Machine, "iptables -P FORWARD DROP",
		"iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
	w.attach(t, "red", redKey, host.Pods[0])
	w.start(t)
	answeredBy(t, host.Pods[0].Machine, topo.ServerAddress, "red", w.Proxies[0].ENIs["red"].Address.Addr())
	if policy := look(t, host.Machine, "iptables -S FORWARD"); !strings.Contains(policy, "-P FORWARD DROP") {
		t.Error(errors.New("the policy of FORWARD is not ours to change:\n" + policy))
	}
}
