package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// secretPort is where a smuggled datagram goes: no honest one does.
const secretPort = 4242

// smuggled is a datagram for the server, as it would travel inside GRE.
func smuggled(source netip.Addr) []byte {
	return traffic.IPv4{Source: source, Destination: topo.ServerAddress, Protocol: unix.IPPROTO_UDP}.
		Packet(traffic.UDP(secretPort, secretPort, []byte("smuggled")))
}

// TestForgedGRE sends GRE to a proxy and to a host that must not get in.
// Nothing is delivered, and nothing is answered: an answer would tell right
// keys from wrong ones.
func TestForgedGRE(t *testing.T) {
	w := newTenants(t)
	host, proxy := w.Hosts[0], w.Proxies[0]
	tunnel := netip.MustParseAddr(fmt.Sprintf(hostTunnel, 80))
	right, wrong := uint32(redKey), uint32(99)
	for _, tc := range []struct {
		name      string
		from      *topo.Machine
		gre       traffic.GRE
		delivered bool
	}{
		{"the host itself", host.Machine, traffic.GRE{Key: &right}, true},
		{"unknown source", w.Attacker, traffic.GRE{Key: &right}, false},
		{"unknown source, wrong key", w.Attacker, traffic.GRE{Key: &wrong}, false},
		{"unknown source, no key", w.Attacker, traffic.GRE{}, false},
		{"wrong key", host.Machine, traffic.GRE{Key: &wrong}, false},
		{"no key", host.Machine, traffic.GRE{}, false},
		{"checksum", host.Machine, traffic.GRE{Key: &right, Checksum: true}, false},
		{"sequence number", host.Machine, traffic.GRE{Key: &right, Sequence: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source := topo.AttackerAddress
			if tc.from == host.Machine {
				source = host.Underlay
			}
			delivered := w.watch(t, w.VPCs["red"].Machine, proxy.ENIs["red"].Port, toPort(secretPort))
			answers := w.watch(t, w.Router, tc.from.Name, from(proxy.Underlay, unix.IPPROTO_ICMP))
			outer := traffic.IPv4{Source: source, Destination: proxy.Underlay, Protocol: unix.IPPROTO_GRE}
			if err := traffic.Inject(tc.from, outer.Packet(tc.gre.Packet(smuggled(tunnel)))); err != nil {
				t.Fatal(err)
			}
			if tc.delivered {
				eventually(t, soon, func(context.Context) error {
					if n, _ := delivered.Count(); n == 0 {
						return errors.New("an honest packet was not delivered")
					}
					return nil
				})
				return
			}
			time.Sleep(never)
			if n, _ := delivered.Count(); n > 0 {
				t.Errorf("%d packets were delivered", n)
			}
			if n, found := answers.Count(); n > 0 {
				t.Errorf("%d answers by ICMP: %v", n, headers(found))
			}
		})
	}
	w.reached(t)
}

// TestForgedGREToHost is the same in the other direction: a datagram that
// pretends to come out of the VPC reaches no pod.
func TestForgedGREToHost(t *testing.T) {
	w := newTenants(t)
	host, proxy := w.Hosts[0], w.Proxies[0]
	key := uint32(redKey)
	for _, tc := range []struct {
		name   string
		from   *topo.Machine
		source netip.Addr
		to     netip.Addr
	}{
		{"unknown source", w.Attacker, topo.AttackerAddress, host.Pods[0].Address},
		{"from the proxy, for a pod", proxy.Machine, proxy.Underlay, host.Pods[0].Address},
		{"from the proxy, for the host", proxy.Machine, proxy.Underlay, host.Underlay},
	} {
		t.Run(tc.name, func(t *testing.T) {
			delivered := w.watch(t, host.Machine, host.Pods[0].Veth, toPort(secretPort))
			answers := w.watch(t, w.Router, host.Name, encapsulated(secretPort))
			inner := traffic.IPv4{Source: topo.ServerAddress, Destination: tc.to, Protocol: unix.IPPROTO_UDP}.
				Packet(traffic.UDP(secretPort, secretPort, []byte("smuggled")))
			outer := traffic.IPv4{Source: tc.source, Destination: host.Underlay, Protocol: unix.IPPROTO_GRE}
			if err := traffic.Inject(tc.from, outer.Packet(traffic.GRE{Key: &key}.Packet(inner))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(never)
			if n, _ := delivered.Count(); n > 0 {
				t.Errorf("%d packets were delivered to the pod", n)
			}
			if n, found := answers.Count(); n > 0 {
				t.Errorf("%d answers from the host: %v", n, headers(found))
			}
		})
	}
}

// TestUserVPCOpensNothing lets a user's machine, with routes to everything by
// the ENI, try to open connections toward us.
func TestUserVPCOpensNothing(t *testing.T) {
	w := newTenants(t)
	host, proxy := w.Hosts[0], w.Proxies[0]
	vpc := w.VPCs["red"].Machine
	eni := proxy.ENIs["red"].Address.Addr()
	w.serve(t, host.Machine, "host")
	w.serve(t, host.Pods[0].Machine, "pod")
	w.serve(t, proxy.Machine, "proxy")
	typeLines(t, vpc, fmt.Sprintf("ip route add 10.0.0.0/8 via %s", eni),
		fmt.Sprintf("ip route add 100.64.0.0/16 via %s", eni), fmt.Sprintf("ip route add 192.168.0.0/16 via %s", eni))
	sent := w.watch(t, vpc, proxy.ENIs["red"].Port, outgoing)
	var attempts sync.WaitGroup
	for _, target := range []netip.Addr{
		eni, host.Pods[0].Address, host.Pods[1].Address, host.Underlay, proxy.Underlay,
		netip.MustParseAddr(groupTunnel), netip.MustParseAddr(fmt.Sprintf(hostTunnel, 80)),
		topo.ControlAddress, topo.PlatformAddress,
	} {
		attempts.Go(func() { silent(t, vpc, target) })
	}
	attempts.Wait()
	for _, name := range []string{"host", "pod", "proxy", "platform"} {
		if seen := w.servers[name].Seen(); len(seen) > 0 {
			t.Errorf("the %s was reached from %v", name, seen)
		}
	}
	if n, _ := sent.Count(); n == 0 {
		t.Error("nothing was sent to the ENI: the routes do not lead there")
	}
	w.reached(t)
}

// silent checks that an address answers nothing: neither a ping, nor TCP (not
// even by a reset), nor UDP (not even that the port is closed). A router's word
// that it knows no way there is no answer of the address.
func silent(t *testing.T, m *topo.Machine, address netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	var probes sync.WaitGroup
	probes.Go(func() {
		err := traffic.Ping(ctx, m, address, 100)
		refusal, refused := errors.AsType[*traffic.UnreachableError](err)
		if !errors.Is(err, context.DeadlineExceeded) && (!refused || refusal.Code != icmpNoRoute) {
			t.Errorf("%s pinged %s: %v, want silence", m.Name, address, err)
		}
	})
	for _, port := range []uint16{traffic.HTTPPort, 22, 9443} {
		probes.Go(func() {
			c, err := traffic.Dial(ctx, m, "tcp4", netip.AddrPortFrom(address, port).String())
			if err == nil {
				_ = c.Close()
				t.Errorf("%s connected to %s port %d", m.Name, address, port)
			} else if errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s connected to %s port %d: %v, want silence", m.Name, address, port, err)
			}
		})
	}
	probes.Go(func() {
		stream, err := traffic.StartStream(ctx, m, address, never/4)
		if err != nil {
			t.Error(err)
			return
		}
		<-ctx.Done()
		if r := stream.Stop(0); r.Lost != r.Sent || errors.Is(r.LastError, syscall.ECONNREFUSED) {
			t.Errorf("%s sent datagrams to %s: %+v, want silence", m.Name, address, r)
		}
	})
	probes.Wait()
}

// icmpNoRoute is "net unreachable" (RFC 792).
const icmpNoRoute = 0

// TestPodForges lets pods pretend: GRE of their own making toward the proxy,
// and the address of another tenant's pod.
func TestPodForges(t *testing.T) {
	w := newTenants(t)
	host, proxy := w.Hosts[0], w.Proxies[0]
	red, blue, stranger := host.Pods[0], host.Pods[1], host.Pods[2]
	key := uint32(redKey)
	tunnel := netip.MustParseAddr(fmt.Sprintf(hostTunnel, 80))
	delivered := map[string]*traffic.Capture{}
	for _, tenant := range []string{"red", "blue"} {
		delivered[tenant] = w.watch(t, w.VPCs[tenant].Machine, proxy.ENIs[tenant].Port, toPort(secretPort))
	}
	forged := w.watch(t, w.Router, host.Name, encapsulated(secretPort))
	for _, pod := range []*topo.Pod{red, stranger} {
		for _, outer := range []traffic.IPv4{
			{Source: pod.Address, Destination: proxy.Underlay, Protocol: unix.IPPROTO_GRE},
			{Source: host.Underlay, Destination: proxy.Underlay, Protocol: unix.IPPROTO_GRE},
		} {
			if err := traffic.Inject(pod.Machine, outer.Packet(traffic.GRE{Key: &key}.Packet(smuggled(tunnel)))); err != nil {
				t.Fatal(err)
			}
		}
		// To the host itself, as if it were the proxy.
		outer := traffic.IPv4{Source: proxy.Underlay, Destination: host.Underlay, Protocol: unix.IPPROTO_GRE}
		if err := traffic.Inject(pod.Machine, outer.Packet(traffic.GRE{Key: &key}.Packet(smuggled(tunnel)))); err != nil {
			t.Fatal(err)
		}
	}
	for _, spoofed := range []netip.Addr{red.Address, blue.Address} {
		if err := traffic.Inject(stranger.Machine, smuggled(spoofed)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(never)
	for tenant, capture := range delivered {
		if n, found := capture.Count(); n > 0 {
			t.Errorf("%d forged packets were delivered to %s: %v", n, tenant, headers(found))
		}
	}
	if n, found := forged.Count(); n > 0 {
		t.Errorf("%d forged packets left the host: %v", n, headers(found))
	}
	// The pod's own packet is delivered: the watch is not blind.
	if err := traffic.Inject(red.Machine, smuggled(red.Address)); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func(context.Context) error {
		if n, _ := delivered["red"].Count(); n == 0 {
			return errors.New("the pod's own datagram was not delivered")
		}
		return nil
	})
}
