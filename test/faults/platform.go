package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// Addresses that move between the proxies.
var (
	outerVip = netip.MustParseAddr("192.168.4.100")
	innerVip = netip.MustParseAddr("172.16.101.100")
)

// tenants own the same subnet; the first pod of each host is the first one's.
var tenants = []string{"red", "blue"}

const group = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec:
  members: [{node: proxy1, priority: 200}, {node: proxy2, priority: 100}]
  haVip: 192.168.4.100
  vrid: 51
  preemptDelay: 500ms
  sends: 4
`

// platform is a whole installation under load: a controller, two function
// hosts, a pair of proxies, two tenants.
type platform struct {
	lab     *topo.Lab
	files   string
	agents  map[string]*agent
	servers []*traffic.Server
	probes  []*probe
	watch   *watch
}

// agent is a vpcproxyd on a machine.
type agent struct {
	*topo.Machine
	config  string
	process *topo.Process
	read    int // octets of its log that complaints has been through
}

func program(name string) string { return filepath.Join(os.Getenv("VPCPROXY_BIN"), name) }

// newPlatform builds all of it and waits until every pod is served.
func newPlatform(ctx context.Context) (p *platform, err error) {
	if os.Getenv("VPCPROXY_BIN") == "" {
		return nil, errors.New("VPCPROXY_BIN does not say where the built programs are; run make faults")
	}
	files, err := os.MkdirTemp("", "vpcproxy-faults-")
	if err != nil {
		return nil, err
	}
	p = &platform{files: files, agents: map[string]*agent{}}
	defer func() {
		if err != nil {
			p.explain()
			err = errors.Join(err, p.close())
		}
	}()
	layout := topo.Layout{Hosts: 2, Pods: 2, Proxies: 2, VPCs: tenants, OneLink: true}
	if p.lab, err = topo.Build(ctx, files, layout); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, step := range []func(context.Context) error{p.serve, p.install, p.attach, p.load} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	err = errors.Join(p.awaitSound(ctx, time.Minute, preferred, inRoutes), p.watch.sees())
	if complaints := p.complaints(nil); len(complaints) > 0 {
		err = errors.Join(err, errors.New(strings.Join(complaints, "\n")))
	}
	return p, err
}

// close ends everything.
func (p *platform) close() error {
	var errs []error
	for _, probe := range p.probes {
		probe.stop()
	}
	if p.watch != nil {
		errs = append(errs, p.watch.stop())
	}
	for _, s := range p.servers {
		errs = append(errs, s.Close())
	}
	if p.lab != nil {
		errs = append(errs, p.lab.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(p.files))...)
}

// explain shows what the agents have logged last, and leaves all of it among
// the artifacts.
func (p *platform) explain() {
	const last = 2000 // characters
	directory := os.Getenv("VPCPROXY_ARTIFACTS")
	for name, a := range p.agents {
		if a.process == nil {
			continue
		}
		log := a.process.Log()
		fmt.Fprintf(os.Stderr, "\n%s:\n%s\n", name, log[max(0, len(log)-last):])
		if directory == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(directory, "faults-"+name+".log"), []byte(log), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
		}
	}
}

func (p *platform) serve(context.Context) error {
	for name, vpc := range p.lab.VPCs {
		s, err := traffic.Serve(vpc.Machine, name)
		if err != nil {
			return err
		}
		p.servers = append(p.servers, s)
	}
	return nil
}

// install makes certificates and starts all agents.
func (p *platform) install(ctx context.Context) error {
	pki := filepath.Join(p.files, "pki")
	control := topo.ControlAddress.String()
	if err := p.ctl(ctx, "pki", "init", "--ca", pki); err != nil {
		return err
	}
	follow := "controller: {address: 'https://" + control + ":9443'}"
	type node struct {
		on    *topo.Machine
		lines []string
	}
	nodes := []node{{p.lab.Control, []string{"roles: [controller]", "controller: {listen: ':9443'}"}}}
	for _, h := range p.lab.Hosts {
		nodes = append(nodes, node{h.Machine, []string{"roles: [function]", follow, speaking, "podCIDRs: [" + h.PodCIDR.String() + "]"}})
	}
	for _, x := range p.lab.Proxies {
		nodes = append(nodes, node{x.Machine, []string{"roles: [proxy]", follow, speaking}})
	}
	for _, n := range nodes {
		issue := []string{"pki", "issue", n.on.Name, "--ca", pki}
		if n.on == p.lab.Control {
			issue = append(issue, "--role", "controller", "--host", control)
		}
		if err := p.ctl(ctx, issue...); err != nil {
			return err
		}
		a := &agent{Machine: n.on, config: filepath.Join(p.files, n.on.Name+".yaml")}
		lines := append(n.lines, "metrics: {address: '"+metricsAddress+"'}", "tls: {directory: "+filepath.Join(pki, n.on.Name)+"}")
		if err := os.WriteFile(a.config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			return err
		}
		p.agents[n.on.Name] = a
		if err := a.start(); err != nil {
			return err
		}
	}
	return nil
}

// attach gives each tenant's subnet to its pods.
func (p *platform) attach(ctx context.Context) error {
	for _, n := range []string{"host1", "host2", "proxy1", "proxy2"} {
		if err := p.until(ctx, func(ctx context.Context) error { return p.ctl(ctx, "get", "nodes", n) }); err != nil {
			return err
		}
	}
	if _, err := p.lab.Control.RunInput(ctx, group, program("vpcproxyctl"), "apply", "-f", "-"); err != nil {
		return err
	}
	for i, tenant := range tenants {
		args := []string{"attach", "--subnet", topo.Subnet.String(), "--vpc", tenant, "--name", tenant, "--group", "g1", "--havip", innerVip.String()}
		for _, x := range p.lab.Proxies {
			args = append(args, "--eni", x.Name+":mac="+x.ENIs[tenant].MAC)
		}
		for _, h := range p.lab.Hosts {
			args = append(args, "--pods", h.Pods[i].Address.String())
		}
		if err := p.until(ctx, func(ctx context.Context) error { return p.ctl(ctx, args...) }); err != nil {
			return err
		}
		if i == 0 {
			if err := p.keepStore(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// load starts the traffic and the eyes.
func (p *platform) load(ctx context.Context) error {
	var err error
	if p.watch, err = startWatch(p.lab); err != nil {
		return err
	}
	for _, h := range p.lab.Hosts {
		for i, tenant := range tenants {
			if err := h.Pods[i].Type(ctx, tagLines(tenant)...); err != nil {
				return err
			}
			p.probes = append(p.probes, startProbe(h.Pods[i].Machine, tenant))
		}
	}
	return nil
}

// ctl runs vpcproxyctl on the controller's machine.
func (p *platform) ctl(ctx context.Context, args ...string) error {
	_, err := p.lab.Control.Run(ctx, program("vpcproxyctl"), args...)
	return err
}

// patience is the pause between two looks: each runs a program, which takes a
// guest with one processor a sixth of a second from the agents.
const patience = 500 * time.Millisecond

// until repeats something until it succeeds. When the context ends, it returns
// why it last failed by itself.
func (p *platform) until(ctx context.Context, do func(context.Context) error) error {
	var last error
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(patience):
		}
	}
}

func (p *platform) machine(name string) *topo.Machine {
	for _, m := range p.lab.Machines() {
		if m.Name == name {
			return m
		}
	}
	return nil
}

func (p *platform) typeOn(ctx context.Context, machine string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return p.machine(machine).Type(ctx, lines...)
}

func (a *agent) start() (err error) {
	a.process, err = a.Start(nil, program("vpcproxyd"), "--config", a.config)
	return err
}

// send returns what sends a signal to agents.
func send(s syscall.Signal, names ...string) func(context.Context, *platform) error {
	return func(_ context.Context, p *platform) error {
		var errs []error
		for _, name := range names {
			errs = append(errs, p.agents[name].process.Signal(s))
		}
		return errors.Join(errs...)
	}
}

// revive returns what starts agents again that have ended.
func revive(names ...string) func(context.Context, *platform) error {
	return func(ctx context.Context, p *platform) error {
		for _, name := range names {
			a := p.agents[name]
			select {
			case <-a.process.Ended():
			case <-ctx.Done():
				return fmt.Errorf("vpcproxyd on %s has not ended", name)
			}
			if err := a.start(); err != nil {
				return err
			}
		}
		return nil
	}
}

// sound tells whether every agent has all in place, as the controller knows
// it, one proxy the HaVips, and every pod an answer.
func (p *platform) sound(ctx context.Context) error {
	for name, a := range p.agents {
		if !a.process.Running() {
			return fmt.Errorf("vpcproxyd on %s has ended", name)
		}
	}
	first, second := p.watch.heldBy(p.lab.Proxies[0]), p.watch.heldBy(p.lab.Proxies[1])
	if first != nil && second != nil {
		return first
	}
	for _, probe := range p.probes {
		if err := probe.well(); err != nil {
			return err
		}
	}
	return p.inPlace(ctx)
}

// inPlace asks the controller.
func (p *platform) inPlace(ctx context.Context) error {
	out, err := p.lab.Control.Run(ctx, program("vpcproxyctl"), "status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		Held  string
		Nodes []struct {
			Name, Held        string
			Connected, InSync bool
			Problems          []string
			Attachments       []struct {
				Name, Message string
				Ready         bool
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if status.Held != "" {
		return errors.New(status.Held)
	}
	for _, n := range status.Nodes {
		if !n.Connected || !n.InSync || n.Held != "" || len(n.Problems) > 0 {
			return fmt.Errorf("%s: connected %t, in sync %t %s %s", n.Name, n.Connected, n.InSync, n.Held, strings.Join(n.Problems, "; "))
		}
		for _, at := range n.Attachments {
			if !at.Ready {
				return fmt.Errorf("%s: %s is not in place: %s", n.Name, at.Name, at.Message)
			}
		}
	}
	return nil
}

// awaitSound waits until all is in place, and then whatever else must hold.
func (p *platform) awaitSound(ctx context.Context, limit time.Duration, also ...func(context.Context, *platform) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.until(ctx, func(ctx context.Context) error {
		if err := p.sound(ctx); err != nil {
			return err
		}
		for _, do := range also {
			if err := do(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
}
