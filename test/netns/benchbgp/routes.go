package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp/gobgp"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// announceMode is the argument with which this program announces paths that it
// reads from a file.
const announceMode = "announce"

func copyAll(w io.Writer, r io.Reader) (int64, error) { return io.Copy(w, r) }

// firstKey is the key of the first attachment.
const firstKey = 100_000

func subnet(i int) netip.Prefix {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(0xac000000+i<<8)) // from 172.0.0.0/24 on
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

// platform is n attachments of one group, for one pod of one host.
func platform(n int, host *topo.Host, proxy *topo.Proxy) *intent.Set {
	meta := func(kind intent.Kind, name string) (intent.TypeMeta, intent.Metadata) {
		return intent.TypeMeta{APIVersion: intent.APIVersion, Kind: kind}, intent.Metadata{Name: name}
	}
	s := &intent.Set{Revision: 1, Pool: intent.DefaultPool}
	node := func(name string, a netip.Addr, role intent.Role, tunnel string) {
		o := &intent.Node{Spec: intent.NodeSpec{Roles: []intent.Role{role}, UnderlayAddress: a}}
		o.TypeMeta, o.Metadata = meta(intent.KindNode, name)
		if tunnel != "" {
			o.Spec.TunnelAddress = addr(tunnel)
		}
		s.Put(o)
	}
	node(host.Name, host.Underlay, intent.RoleFunction, "100.64.0.80")
	node(proxy.Name, proxy.Underlay, intent.RoleProxy, "")
	g := &intent.ProxyGroup{Spec: intent.ProxyGroupSpec{Members: []intent.Member{{Node: proxy.Name}}, TunnelAddress: addr("100.64.0.4")}}
	g.TypeMeta, g.Metadata = meta(intent.KindProxyGroup, "g1")
	s.Put(g)
	for i := range n {
		key := uint32(firstKey + i)
		a := &intent.Attachment{Spec: intent.AttachmentSpec{
			VPC: "vpc", CIDRs: []netip.Prefix{subnet(i)}, Group: "g1", GREKey: &key,
			Pods: []netip.Prefix{netip.PrefixFrom(host.Pods[0].Address, 32)}, ENIs: []intent.ENI{{Name: fmt.Sprintf("eni%d", i)}},
		}}
		a.TypeMeta, a.Metadata = meta(intent.KindAttachment, fmt.Sprintf("a%06d", i))
		s.Attachments = append(s.Attachments, a)
	}
	return s
}

// measureRoutes has a proxy announce many attachments to a reflector, ours and
// then BIRD, and lets a function host that has everything but the routes hear of
// them. The host hears another reflector all the time, that knows none: one that
// hears nobody would go by the intent.
func measureRoutes(ctx context.Context, dir string, n int) error {
	lab, err := topo.Build(ctx, dir, topo.Layout{Hosts: 1, Pods: 1, Proxies: 2})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	host := lab.Hosts[0]
	if err := remember(host.Machine, platform(n, host, lab.Proxies[0])); err != nil {
		return err
	}
	silent, err := startReflector(lab.Proxies[1].Machine, lab.Proxies[1].Underlay)
	if err != nil {
		return err
	}
	defer func() { _ = silent.process.Kill() }()
	for _, by := range []string{ours, bird} {
		if err := measureReflected(ctx, lab, n, by); err != nil {
			return fmt.Errorf("reflected by %s: %w", by, err)
		}
	}
	return nil
}

func measureReflected(ctx context.Context, lab *topo.Lab, n int, by string) error {
	start, families := startReflector, ""
	if by == bird {
		start, families = startBIRD, ", families: [vpnv4]"
	}
	reflector, err := start(lab.Control, topo.ControlAddress)
	if err != nil {
		return err
	}
	defer func() { _ = reflector.process.Kill() }()
	host := lab.Hosts[0]
	client := fmt.Sprintf("bgp: {mode: client, reflectors: [%s, %s]%s}", topo.ControlAddress, lab.Proxies[1].Underlay, families)
	cut := fmt.Sprintf("blackhole from %s to %s", host.Underlay, topo.ControlAddress)
	if err := lab.Router.Type(ctx, "ip rule add "+cut); err != nil {
		return err
	}
	if err := host.Type(ctx, "rm -f /var/lib/vpcproxy/bgp.json"); err != nil {
		return err
	}
	agent, err := startAgent(host.Machine, "node: "+host.Name, "roles: [function]", awayController, client, "reconcile: {refresh: 1h}")
	if err != nil {
		return err
	}
	defer func() { _ = agent.process.Kill() }()
	if err := agent.withoutRoutes(ctx, n, by); err != nil {
		return fmt.Errorf("%w\n%s", err, agent.process.Log())
	}
	announcer, err := announceAll(ctx, lab, n, reflector, by)
	if err != nil {
		return err
	}
	defer func() { _ = announcer.Kill() }()
	if err := lab.Router.Type(ctx, "ip rule del "+cut); err != nil {
		return err
	}
	connected, established, err := agent.hearAll(ctx, n)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, agent.process.Log())
	}
	fmt.Printf("  in the kernel's tables %.2f s after Established, %.2f s after the connection was there\n", established.Seconds(), connected.Seconds())
	if err := agent.weigh("function host's agent"); err != nil {
		return err
	}
	return reflector.weigh("reflector")
}

// withoutRoutes waits until the agent has made everything but the routes.
func (a *agent) withoutRoutes(ctx context.Context, n int, by string) error {
	began := time.Now()
	if err := a.await(ctx, 1, "vpcproxy_bgp_session_synced"); err != nil {
		return err
	}
	// It knows that nobody is alive when the routes that it began with are gone.
	if err := awaitRoutes(ctx, a.Machine, 0); err != nil {
		return err
	}
	if err := a.await(ctx, 1, "vpcproxy_in_sync"); err != nil {
		return err
	}
	fmt.Printf("%d attachments, reflected by %s: the function host has all but the routes after %v\n", n, by, time.Since(began).Round(100*time.Millisecond))
	return nil
}

// hearAll returns how long after the connection to the reflector so many routes
// were in the kernel. Whoever measures keeps quiet meanwhile, for there is one
// processor: it looks at how many messages of routes the kernel has queued, and lists
// routes when no more have come for a while.
//
// The agent's log says when the session was established, as soon as it is told.
func (a *agent) hearAll(ctx context.Context, n int) (connected, established time.Duration, err error) {
	var watch *routeWatch
	if err := a.InNetwork(func() (err error) {
		watch, err = newRouteWatch()
		return err
	}); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, watch.close()) }()
	var since time.Time
	if err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		out, err := a.Run(ctx, "ss", "-tnH", "state", "established", "dst", topo.ControlAddress.String(), "dport", "=", ":179")
		since = time.Now()
		return strings.TrimSpace(out) != "", err
	}); err != nil {
		return 0, 0, err
	}
	const calm = 2 * time.Second
	var last, listed time.Time
	err = a.look(func(h kernel.Handle) error {
		return poll(ctx, watchEvery, func() (bool, error) {
			at, err := watch.look()
			if err != nil || at.IsZero() || at.Equal(listed) || time.Since(at) < calm {
				return false, err
			}
			last, listed = at, at
			return hasWays(ctx, h, kernel.RouteFilter{Protocol: desired.Protocol}, n)
		})
	})
	if err != nil {
		return 0, 0, err
	}
	// All that is there was written before the last message was seen.
	if added, err := watch.routes(); err != nil || added < n {
		return 0, 0, errors.Join(fmt.Errorf("the kernel told of %d routes, want %d", added, n), err)
	}
	up, err := a.established(topo.ControlAddress)
	return last.Sub(since), last.Sub(up), err
}

// established returns when the agent was last told that its session with a peer is
// established.
func (a *agent) established(peer netip.Addr) (at time.Time, err error) {
	for line := range strings.Lines(a.process.Log()) {
		if stamp, ok := strings.CutPrefix(line, "time="); ok && strings.Contains(line, `msg="BGP session established" peer=`+peer.String()+"\n") {
			stamp, _, _ = strings.Cut(stamp, " ")
			if at, err = time.Parse(time.RFC3339, stamp); err != nil {
				return at, err
			}
		}
	}
	if at.IsZero() {
		return at, fmt.Errorf("the agent does not say that its session with %v was established", peer)
	}
	return at, nil
}

// look reads the machine's kernel.
func (a *agent) look(read func(kernel.Handle) error) error {
	var host kernel.Host
	if err := a.InNetwork(func() (err error) {
		host, err = kernel.NewHost(kernel.HostOptions{})
		return err
	}); err != nil {
		return err
	}
	h, err := host.In("")
	if err == nil {
		err = read(h)
	}
	return errors.Join(err, host.Close())
}

// hasWays tells whether so many routes lead somewhere.
func hasWays(ctx context.Context, h kernel.Handle, f kernel.RouteFilter, n int) (bool, error) {
	routes, err := h.Routes(ctx, f)
	for _, r := range routes {
		if r.Via.IsValid() {
			n--
		}
	}
	return n == 0, err
}

// announceAll announces from the proxy's machine, until the reflector has all.
func announceAll(ctx context.Context, lab *topo.Lab, n int, reflector *agent, by string) (*topo.Process, error) {
	proxy := lab.Proxies[0]
	var paths []bgp.Path
	for i := range n {
		key := uint32(firstKey + i)
		paths = append(paths, bgp.Path{
			NLRI:    bgp.NLRI{RD: bgp.RouteDistinguisher(plan.Distinguisher(proxy.Underlay, key)), Prefix: subnet(i)},
			NextHop: proxy.Underlay, Encapsulation: bgp.Encapsulation{GRE: true, Keyed: true, Key: key}, Targets: []bgp.Target{{ASN: asn, Number: key}},
		})
	}
	text, err := json.Marshal(paths)
	if err != nil {
		return nil, err
	}
	const file = "/run/paths.json"
	if err := proxy.WriteFile(file, string(text)); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	announcer, err := proxy.Start(nil, self, announceMode, file, proxy.Underlay.String(), topo.ControlAddress.String(), by)
	if err != nil {
		return nil, err
	}
	if by == bird {
		err = awaitBIRD(ctx, lab.Control, n)
	} else {
		err = reflector.await(ctx, float64(n), "vpcproxy_bgp_routes_received", `family="vpnv4"`, proxy.Underlay.String())
	}
	if err != nil {
		return nil, err
	}
	fmt.Printf("  announced, and in the reflector's table, after %v\n", time.Since(start).Round(10*time.Millisecond))
	return announcer, nil
}

// announce speaks until the context ends.
func announce(ctx context.Context, args []string) error {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var paths []bgp.Path
	if err := json.Unmarshal(text, &paths); err != nil {
		return err
	}
	local := addr(args[1])
	options := bgp.Options{ASN: asn, RouterID: local, Local: local, HoldTime: 90 * time.Second, GracefulRestart: time.Minute}
	if args[3] == bird {
		options.Families = []bgp.Family{bgp.VPNv4}
	}
	s, err := gobgp.New(options, slog.Default())
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-s.Ready():
	}
	for _, err := range s.Announce(ctx, paths) {
		if err != nil {
			return err
		}
	}
	if err := s.SetNeighbors(ctx, bgp.Neighbors{Peers: []bgp.Peer{{Address: addr(args[2])}}}); err != nil {
		return err
	}
	return <-done
}

// awaitRoutes waits until so many routes of ours lead somewhere.
func awaitRoutes(ctx context.Context, m *topo.Machine, want int) error {
	got := -1
	err := poll(ctx, 300*time.Millisecond, func() (bool, error) {
		out, err := m.Run(ctx, "sh", "-c", "ip route show table all proto 176 | grep -c ' via ' || true")
		if err != nil {
			return false, err
		}
		_, err = fmt.Sscan(strings.TrimSpace(out), &got)
		return got == want, err
	})
	if err != nil {
		return fmt.Errorf("%d routes, want %d: %w", got, want, err)
	}
	return nil
}
