package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

func underlayFaults() []fault {
	const host = "host1" // the router's device toward it
	worse := func(how string) ([]string, []string) {
		// What waits in a queue that is deleted is lost: it empties first.
		return []string{"tc qdisc add dev " + host + " root netem " + how},
			[]string{"tc qdisc change dev " + host + " root netem delay 0ms", "sleep 0.2", "tc qdisc del dev " + host + " root"}
	}
	var out []fault
	for _, f := range []struct {
		name, netem string
		stall       time.Duration
	}{
		{"3 % of packets lost", "loss 3%", 3 * time.Second},
		{"50 ms more delay", "delay 50ms", 0},
		{"packets reordered", "delay 5ms reorder 75%", 0},
		{"packets twice", "duplicate 20%", 0},
		{"packets damaged", "corrupt 2%", 3 * time.Second},
	} {
		typed, mend := worse(f.netem)
		out = append(out, fault{area: "underlay", name: f.name, on: "router", typed: typed, mend: mend, lasts: 3 * time.Second, holds: promise{stall: f.stall}})
	}
	plug := func(m, device string) fault {
		return fault{area: "underlay", on: m, typed: []string{"ip link set " + device + " down"}, mend: []string{"ip link set " + device + " up"}}
	}
	cut := plug("router", "host1")
	cut.name, cut.lasts, cut.holds = "a function host cut off", 2*time.Second, promise{refused: true}
	// The router's end takes its route to the host along.
	cut.mend = append(cut.mend, "ip route replace 192.168.80.8/32 dev host1", "ip route replace 10.244.1.0/24 via 192.168.80.8 dev host1 onlink")
	standby := plug("router", "proxy2")
	standby.name = "the standby proxy cut off"
	active := plug("router", "proxy1")
	active.name, active.holds = "the active proxy cut off", promise{stall: failover, split: true}
	narrow := fault{area: "underlay", name: "a hop of 1,400 octets", on: "router",
		typed: []string{"ip link set " + host + " mtu 1400"}, mend: []string{"ip link set " + host + " mtu 1500"}, holds: promise{check: downloads}}
	return append(out, narrow, cut, standby, active)
}

// downloads has pods fetch what needs full packets.
func downloads(ctx context.Context, p *platform) error {
	var errs []error
	for _, pod := range p.lab.Hosts[0].Pods {
		errs = append(errs, traffic.Download(ctx, pod.Machine, topo.ServerAddress, 1<<20))
	}
	return errors.Join(errs...)
}

// dropAdverts are the lines that have a proxy lose adverts, and that end it.
func dropAdverts(match string) (typed, mend []string) {
	return []string{
		"nft add table ip cut", "nft 'add chain ip cut in { type filter hook input priority -300; }'",
		"nft 'add rule ip cut in ip protocol 112 " + match + " drop'",
	}, []string{"nft delete table ip cut"}
}

func onBoth(lines []string) func(context.Context, *platform) error {
	return func(ctx context.Context, p *platform) error {
		return errors.Join(p.typeOn(ctx, "proxy1", lines), p.typeOn(ctx, "proxy2", lines))
	}
}

func command(args ...string) func(context.Context, *platform) error {
	return func(ctx context.Context, p *platform) error { return p.ctl(ctx, args...) }
}

func electionFaults() []fault {
	all, heal := dropAdverts("")
	some, _ := dropAdverts("numgen random mod 100 < 30")
	return []fault{
		{area: "election", name: "split brain", do: onBoth(all), undo: onBoth(heal), holds: promise{stall: failover, split: true, stays: true}},
		{area: "election", name: "one hears nothing", on: "proxy2", typed: all, mend: heal, holds: promise{stall: failover, stays: true}},
		{area: "election", name: "30 % of adverts lost", do: onBoth(some), undo: onBoth(heal), lasts: 10 * time.Second,
			holds: promise{check: func(_ context.Context, p *platform) error { return p.watch.heldBy(p.lab.Proxies[0]) }}},
		{area: "election", name: "HaVip deleted on the active", on: "proxy1", typed: []string{"ip -n vpx-red address del " + innerVip.String() + "/32 dev eth1"}, holds: promise{stall: repair}},
		{area: "election", name: "HaVip added on the standby", on: "proxy2", typed: []string{"ip -n vpx-red address add " + innerVip.String() + "/32 dev eth1"},
			// What somebody else has added is not the product's to remove.
			mend:  []string{"ip -n vpx-red address del " + innerVip.String() + "/32 dev eth1"},
			holds: promise{stall: repair, split: true, logged: []string{"fault=foreign", "fault=contested"}}},
		{area: "election", name: "failover by command", do: command("failover", "g1"), holds: promise{stall: failover, stays: true}},
		{area: "election", name: "the active is drained", do: command("drain", "proxy1"), undo: command("uncordon", "proxy1"), holds: promise{stall: failover}},
		{area: "election", name: "the clock jumps by an hour", on: "proxy1", typed: []string{"date -s '+1 hour' >/dev/null"}, mend: []string{"date -s '-1 hour' >/dev/null"}},
	}
}

func hostileFaults() []fault {
	forged := func(name string, source netip.Addr, from string, gre traffic.GRE) fault {
		return fault{area: "hostile", name: name, do: func(_ context.Context, p *platform) error {
			inner := traffic.IPv4{Source: netip.MustParseAddr("100.64.0.1"), Destination: topo.ServerAddress, Protocol: unix.IPPROTO_UDP}.
				Packet(traffic.UDP(4242, 4242, []byte("forged")))
			outer := traffic.IPv4{Source: source, Destination: outerVip, Protocol: unix.IPPROTO_GRE}.Packet(gre.Packet(inner))
			return traffic.Flood(p.machine(from), outer, 500)
		}}
	}
	key := uint32(99)
	host := netip.MustParseAddr("192.168.80.8")
	return []fault{
		forged("GRE from a stranger", topo.AttackerAddress, "attacker", traffic.GRE{Key: &key}),
		forged("GRE with a wrong key from a host", host, "host1", traffic.GRE{Key: &key}),
		forged("GRE without a key from a host", host, "host1", traffic.GRE{}),
		{area: "hostile", name: "the user VPC opens connections", do: opensNothing},
		{area: "hostile", name: "malformed manifests", do: malformed},
		{area: "hostile", name: "no certificate", on: "attacker", typed: []string{
			fmt.Sprintf("! curl -sk --max-time 2 https://%s:9443/ -o /dev/null", topo.ControlAddress),
		}},
	}
}

// opensNothing has a machine of the user try the proxy and what is behind it.
func opensNothing(ctx context.Context, p *platform) error {
	m := p.lab.VPCs["red"].Machine
	for _, to := range []string{innerVip.String(), p.lab.Proxies[0].ENIs["red"].Address.Addr().String()} {
		for _, port := range []string{"22", "80", "9443"} {
			attempt, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			c, err := traffic.Dial(attempt, m, "tcp4", to+":"+port)
			cancel()
			if err == nil {
				return errors.Join(fmt.Errorf("the user VPC opened a connection to %s:%s", to, port), c.Close())
			}
		}
	}
	return nil
}

// malformed applies what must be refused.
func malformed(ctx context.Context, p *platform) error {
	for _, manifest := range []string{
		"apiVersion: vpcproxy.io/v1alpha1\nkind: Attachment\nmetadata: {name: red}\nspec: {nonsense: 1}\n",
		"apiVersion: vpcproxy.io/v1alpha1\nkind: ProxyGroup\nmetadata: {name: g1}\nspec: {members: []}\n",
		"apiVersion: vpcproxy.io/v9\nkind: Node\nmetadata: {name: host1}\n",
		"{", "\x00\x01",
	} {
		if _, err := p.lab.Control.RunInput(ctx, manifest, program("vpcproxyctl"), "apply", "-f", "-"); err == nil {
			return fmt.Errorf("%q was accepted", manifest)
		}
	}
	return nil
}
