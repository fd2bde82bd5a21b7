package netns

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// Keys of the tenants in static intent.
const (
	redKey  = 101
	blueKey = 102
)

// tenants is two users who own the same subnet, and a pod of neither.
var tenants = topo.Layout{Hosts: 1, Pods: 3, Proxies: 1, VPCs: []string{"red", "blue"}}

func TestTenant(t *testing.T) {
	w := newWorld(t, tenants)
	pod, stranger := w.Hosts[0].Pods[0], w.Hosts[0].Pods[2]
	w.attach(t, "red", redKey, pod)
	w.start(t)
	answeredBy(t, pod.Machine, topo.ServerAddress, "red", w.Proxies[0].ENIs["red"].Address.Addr())
	unreachable(t, stranger.Machine, topo.ServerAddress)
	unreachable(t, w.Hosts[0].Machine, topo.ServerAddress)
	// The pod keeps the rest of the world.
	answeredBy(t, pod.Machine, topo.PlatformAddress, "platform", netip.Addr{})
}

func TestOverlap(t *testing.T) {
	w := newWorld(t, tenants)
	pods := map[string]*topo.Pod{"red": w.Hosts[0].Pods[0], "blue": w.Hosts[0].Pods[1]}
	w.attach(t, "red", redKey, pods["red"])
	w.attach(t, "blue", blueKey, pods["blue"])
	w.start(t)
	for tenant, pod := range pods {
		answeredBy(t, pod.Machine, topo.ServerAddress, tenant, w.Proxies[0].ENIs[tenant].Address.Addr())
	}
	const each = 50
	var clients sync.WaitGroup
	for tenant, pod := range pods {
		for range each {
			clients.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), soon)
				defer cancel()
				answer, err := traffic.Get(ctx, pod.Machine, topo.ServerAddress)
				if err == nil {
					err = wrong(answer, tenant, w.Proxies[0].ENIs[tenant].Address.Addr())
				}
				if err != nil {
					t.Errorf("%s's pod: %v", tenant, err)
				}
			})
		}
	}
	clients.Wait()
	for tenant := range pods {
		if seen := len(w.servers[tenant].Seen()); seen < each {
			t.Errorf("%s's server saw %d connections, want %d", tenant, seen, each)
		}
	}
}

// TestTenantMatrix asks every server from every pod: only a tenant's own
// answer, and a pod of no tenant reaches none.
func TestTenantMatrix(t *testing.T) {
	layout := tenants
	layout.Hosts = 2
	w := newWorld(t, layout)
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0], w.Hosts[1].Pods[0])
	w.attach(t, "blue", blueKey, w.Hosts[0].Pods[1], w.Hosts[1].Pods[1])
	w.start(t)
	for _, h := range w.Hosts {
		for i, tenant := range []string{"red", "blue"} {
			answeredBy(t, h.Pods[i].Machine, topo.ServerAddress, tenant, w.Proxies[0].ENIs[tenant].Address.Addr())
		}
	}
	var checks sync.WaitGroup
	refused := func(m *topo.Machine, address netip.Addr) {
		checks.Go(func() { unreachable(t, m, address) })
	}
	for _, h := range w.Hosts {
		refused(h.Pods[2].Machine, topo.ServerAddress)
		refused(h.Machine, topo.ServerAddress)
		for _, p := range h.Pods {
			// Not in any attachment's CIDRs, though it is in both VPCs.
			refused(p.Machine, topo.FarAddress)
			// Tunnel addresses are nobody's business.
			refused(p.Machine, netip.MustParseAddr(groupTunnel))
		}
	}
	checks.Wait()
}

// TestAttachmentsOfOnePod gives a pod two VPCs whose subnets differ, and
// takes one away again.
func TestAttachmentsOfOnePod(t *testing.T) {
	w := newWorld(t, tenants)
	pod := w.Hosts[0].Pods[0]
	w.attach(t, "red", redKey, pod)
	proxy := w.Proxies[0]
	w.put(t, "blue", fmt.Sprintf(`kind: Attachment
metadata: {name: blue}
spec:
  vpc: vpc-blue
  cidrs: [%s]
  group: g1
  greKey: %d
  pods: [%s/32]
  enis: [{mac: "%s", gateway: %s}]
`, topo.FarSubnet, blueKey, pod.Address, proxy.ENIs["blue"].MAC, topo.VPCRouter))
	w.start(t)
	answeredBy(t, pod.Machine, topo.ServerAddress, "red", proxy.ENIs["red"].Address.Addr())
	answeredBy(t, pod.Machine, topo.FarAddress, "blue", proxy.ENIs["blue"].Address.Addr())
	w.remove(t, "red")
	for _, a := range w.agents {
		a.confirm(t) // half of all attachments is more than a third
	}
	eventually(t, soon, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := traffic.Get(ctx, pod.Machine, topo.ServerAddress); err == nil {
			return fmt.Errorf("%s is still reached", topo.ServerAddress)
		}
		return nil
	})
	answeredBy(t, pod.Machine, topo.FarAddress, "blue", proxy.ENIs["blue"].Address.Addr())
}
