package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// besideUs is ip-masq-agent's chain as that program writes it.
const besideUs = `*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -d 192.168.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE --random-fully
COMMIT
`

// TestMasquerade follows ip-masq-agent's file under both backends, the second
// of which takes over from the first.
func TestMasquerade(t *testing.T) {
	w := newWorld(t, tenants)
	host, pod := w.Hosts[0], w.Hosts[0].Pods[0]
	w.attach(t, "red", redKey, pod)
	dir := t.TempDir()
	swap := func(version, text string) {
		t.Helper()
		for _, err := range []error{
			os.Mkdir(filepath.Join(dir, version), 0o755),
			os.WriteFile(filepath.Join(dir, version, "ip-masq-agent"), []byte(text), 0o644),
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	swap("..1", "nonMasqueradeCIDRs: [192.168.0.0/16]")
	if err := os.Symlink("..data/ip-masq-agent", filepath.Join(dir, "config")); err != nil {
		t.Fatal(err)
	}
	// The container platform's own masquerading, as where ip-masq-agent does it.
	typeLines(t, host.Machine, "iptables -t nat -F POSTROUTING")
	settings := "masq: {config: " + filepath.Join(dir, "config") + "}"
	w.startAgent(t, w.Proxies[0].Machine, "proxy").awaitReady(t)
	a := w.startAgent(t, host.Machine, "function", "nat: {backend: iptables, "+settings+"}")
	a.awaitReady(t)

	seen := func(source netip.Addr) {
		t.Helper()
		eventually(t, soon, func(ctx context.Context) error {
			answer, err := traffic.Get(ctx, pod.Machine, topo.PlatformAddress)
			if err != nil {
				return err
			}
			return wrong(answer, "platform", source)
		})
		answeredBy(t, pod.Machine, topo.ServerAddress, "red", w.Proxies[0].ENIs["red"].Address.Addr())
	}
	seen(pod.Address)
	swap("..2", "nonMasqueradeCIDRs: [10.0.0.0/8]")
	seen(host.Underlay)
	swap("..3", "nonMasqueradeCIDRs: [192.168.0.1/16]")
	a.complains(t, "nonMasqueradeCIDRs[0]: 192.168.0.1/16 has host bits set")
	seen(host.Underlay)

	feed := filepath.Join(dir, "rules")
	if err := os.WriteFile(feed, []byte(besideUs), 0o644); err != nil {
		t.Fatal(err)
	}
	typeLines(t, host.Machine, "iptables-restore --noflush "+feed)
	a.complains(t, "toward 192.168.0.0/16 our rule wins and masquerades")

	a.kill(t)
	a = w.startAgent(t, host.Machine, "function", "nat: {backend: nftables, "+settings+"}")
	a.awaitReady(t)
	eventually(t, soon, func(ctx context.Context) error {
		if rules, err := host.Run(ctx, "sh", "-c", "iptables-save; ip6tables-save"); err != nil || strings.Contains(rules, "VPCPROXY-") {
			return fmt.Errorf("rules of the former backend are left (%v):\n%s", err, rules)
		}
		return nil
	})
	if out := look(t, host.Machine, "iptables -t nat -S IP-MASQ-AGENT"); !strings.Contains(out, "MASQUERADE") {
		t.Error(errors.New("the other program's chain is gone:\n" + out))
	}
	a.complains(t, "our rule wins and masquerades", "has host bits set")
	seen(host.Underlay) // the last good file outlives a restart
	swap("..4", "nonMasqueradeCIDRs: [192.168.0.0/16]")
	seen(pod.Address)
	typeLines(t, host.Machine, "nft flush table ip vpcproxy_nat")
	seen(pod.Address)
}

// complains waits until a node's status names problems.
func (a *agent) complains(t *testing.T, problems ...string) {
	t.Helper()
	eventually(t, soon, func(context.Context) error {
		out, _ := a.world.vpcproxyctl(t, a.Machine, "status", "--node-socket", "/run/vpcproxy/node.sock")
		for _, p := range problems {
			if !strings.Contains(out, p) {
				return fmt.Errorf("no %q in:\n%s", p, out)
			}
		}
		return nil
	})
}
