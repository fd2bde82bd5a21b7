package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// failovers is how often a failover is timed; the median counts.
const failovers = 9

// carrierPause is how long a cable stays as it is: the kernel may tell of a
// carrier once a second only (net/core/link_watch.c).
const carrierPause = 1500 * time.Millisecond

// measureFailover pulls the cable of a proxy's interface in the VPC: it
// withdraws, and the function host sends by the other group. Datagrams that are
// answered tell how long nothing got through.
func measureFailover(ctx context.Context, dir string) error {
	lab, err := topo.Build(ctx, dir, topo.Layout{Hosts: 1, Pods: 1, Proxies: 2, VPCs: []string{"red"}})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	server, err := traffic.Serve(lab.VPCs["red"].Machine, "red")
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	set := twoGroups(lab)
	if _, err := startReflector(lab.Control, topo.ControlAddress); err != nil {
		return err
	}
	host, proxies := lab.Hosts[0], lab.Proxies
	var agents []*agent
	for _, m := range []struct {
		machine *topo.Machine
		role    string
	}{{host.Machine, "function"}, {proxies[0].Machine, "proxy"}, {proxies[1].Machine, "proxy"}} {
		if err := remember(m.machine, set); err != nil {
			return err
		}
		a, err := startAgent(m.machine, "node: "+m.machine.Name, "roles: ["+m.role+"]", awayController, clientOfReflector, "ha: {sessionListen: 'off'}")
		if err != nil {
			return err
		}
		agents = append(agents, a)
	}
	if err := agents[0].await(ctx, 2, "vpcproxy_bgp_routes_accepted"); err != nil {
		return err
	}
	pod := host.Pods[0].Machine
	if err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := traffic.Get(attempt, pod, topo.ServerAddress)
		return err == nil, nil
	}); err != nil {
		return err
	}
	stream, err := traffic.StartStream(ctx, pod, topo.ServerAddress, 2*time.Millisecond)
	if err != nil {
		return err
	}
	defer stream.Stop(0)
	port := proxies[0].ENIs["red"].Port
	var gaps []time.Duration
	for range failovers {
		if err := agents[0].await(ctx, 2, "vpcproxy_bgp_routes_accepted"); err != nil {
			return err
		}
		if err := settle(ctx, stream); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(carrierPause):
		}
		stream.Gap()
		if err := lab.VPCs["red"].Type(ctx, "ip link set "+port+" down"); err != nil {
			return err
		}
		if err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
			v, err := agents[0].metric(ctx, "vpcproxy_bgp_routes_accepted")
			return err == nil && v == 1, nil
		}); err != nil {
			return err
		}
		if err := settle(ctx, stream); err != nil {
			return err
		}
		gaps = append(gaps, stream.Gap())
		if err := lab.VPCs["red"].Type(ctx, "ip link set "+port+" up"); err != nil {
			return err
		}
	}
	slices.Sort(gaps)
	fmt.Printf("failover by withdrawal alone: nothing got through for %v (median of %d, %v to %v)\n",
		gaps[len(gaps)/2].Round(time.Millisecond), len(gaps), gaps[0].Round(time.Millisecond), gaps[len(gaps)-1].Round(time.Millisecond))
	return nil
}

// settle waits until datagrams come back again.
func settle(ctx context.Context, s *traffic.Stream) error {
	before := s.Returned()
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) { return s.Returned() > before+100, nil })
	if err != nil {
		return errors.Join(errors.New("nothing comes back"), err)
	}
	return nil
}

// twoGroups is an attachment that two proxies serve; the host prefers the first.
func twoGroups(lab *topo.Lab) *intent.Set {
	host := lab.Hosts[0]
	set := platform(1, host, lab.Proxies[0])
	set.Node(host.Name).Spec.Zone, set.Node(lab.Proxies[0].Name).Spec.Zone = "a", "a"
	set.Put(&intent.Node{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode}, Metadata: intent.Metadata{Name: lab.Proxies[1].Name},
		Spec: intent.NodeSpec{Roles: []intent.Role{intent.RoleProxy}, UnderlayAddress: lab.Proxies[1].Underlay, Zone: "b"},
	})
	set.Put(&intent.ProxyGroup{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindProxyGroup}, Metadata: intent.Metadata{Name: "g2"},
		Spec: intent.ProxyGroupSpec{Members: []intent.Member{{Node: lab.Proxies[1].Name}}, TunnelAddress: addr("100.64.0.5")},
	})
	a := set.Attachments[0]
	a.Spec.CIDRs[0] = topo.Subnet
	a.Spec.Group, a.Spec.Groups = "", []intent.Service{{Name: "g1"}, {Name: "g2"}}
	a.Spec.ENIs = nil
	for _, p := range lab.Proxies {
		a.Spec.ENIs = append(a.Spec.ENIs, intent.ENI{Node: p.Name, Name: p.ENIs["red"].Name})
	}
	return set
}
