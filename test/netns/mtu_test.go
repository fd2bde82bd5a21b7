package netns

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// keyedMTU is what an Ethernet of 1500 leaves to GRE with a key: 20 octets of
// IPv4 and 8 of GRE less.
const keyedMTU = 1472

// transfer is more than any window, so that full-sized segments must arrive.
const transfer = 2 << 20

// transfers downloads and uploads from red's pod.
func transfers(t *testing.T, w *world) {
	t.Helper()
	pod := w.Hosts[0].Pods[0].Machine
	for name, move := range map[string]func(context.Context) error{
		"download": func(ctx context.Context) error { return traffic.Download(ctx, pod, topo.ServerAddress, transfer) },
		"upload":   func(ctx context.Context) error { return traffic.Upload(ctx, pod, topo.ServerAddress, transfer) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		if err := move(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

// TestMTU sends the largest packet and one octet more: the second is answered
// with the size that fits.
func TestMTU(t *testing.T) {
	w := newTenants(t)
	pod := w.Hosts[0].Pods[0].Machine
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := traffic.Ping(ctx, pod, topo.ServerAddress, keyedMTU); err != nil {
		t.Errorf("the largest packet: %v", err)
	}
	err := traffic.Ping(ctx, pod, topo.ServerAddress, keyedMTU+1)
	refusal, ok := errors.AsType[*traffic.UnreachableError](err)
	if !ok || refusal.Code != 4 || refusal.MTU != keyedMTU {
		t.Errorf("one octet more: %v, want fragmentation needed and MTU %d", err, keyedMTU)
	}
	transfers(t, w)
}

// filterPMTU makes the underlay silent about packets that are too large.
var filterPMTU = "iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP; " +
	"iptables -A FORWARD -p icmp --icmp-type fragmentation-needed -j DROP"

// TestSmallerInterface gives one end a smaller underlay than the other,
// and silences ICMP: the clamp of either end serves both directions.
func TestSmallerInterface(t *testing.T) {
	for _, end := range []string{"host1", "proxy1"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t, tenants)
			m := map[string]*topo.Machine{"host1": w.Hosts[0].Machine, "proxy1": w.Proxies[0].Machine}[end]
			typeLines(t, m, "ip link set eth0 mtu 1400", filterPMTU)
			typeLines(t, w.Router, "ip link set "+end+" mtu 1400", filterPMTU)
			w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
			w.start(t)
			w.settle(t)
			transfers(t, w)
		})
	}
}

// TestSmallerHop has a hop of 1400 octets amid the underlay that neither end
// can see. The ICMP errors that it sends are obeyed; if they are filtered, an
// operator lowers the MTU of either end's interface, and what is derived from
// it follows.
func TestSmallerHop(t *testing.T) {
	for name, silenced := range map[string]bool{"ICMP passes": false, "ICMP is filtered": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tenants)
			typeLines(t, w.Router, "ip route change 192.168.80.8 dev host1 mtu 1400", "ip route change 192.168.4.4 dev proxy1 mtu 1400")
			w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
			w.start(t)
			w.settle(t)
			if silenced {
				typeLines(t, w.Router, filterPMTU)
				typeLines(t, w.Hosts[0].Machine, "ip link set eth0 mtu 1400")
				eventually(t, soon, func(context.Context) error {
					if rules := look(t, w.Hosts[0].Machine, "iptables-save -t mangle"); !strings.Contains(rules, clamped1400) {
						return errors.New("the clamp has not followed the interface:\n" + rules)
					}
					return nil
				})
			}
			transfers(t, w)
		})
	}
}

// clamped1400 is the clamp for an underlay of 1400: less 28 octets of IPv4 and
// GRE with a key, and 40 of the inner IPv4 and TCP.
const clamped1400 = "--set-mss 1332"
