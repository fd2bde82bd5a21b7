// Command demo shows the product's main jobs in a lab of its own: two users who
// own the same subnet, and pods that reach each their own; and a download that
// goes on though the proxy that carries it is killed. make demo runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// limit is far above what the demo takes, even where processors are emulated.
const limit = 4 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// tenant is a user of the platform, with one pod.
type tenant struct {
	name string
	pod  *topo.Pod
}

// demo is a lab and where its files are.
type demo struct {
	lab      *topo.Lab
	out      io.Writer
	programs string // directory of the built programs
	files    string // certificates, configurations and logs
	tenants  []tenant
	// downloader is the tenant of the second act.
	downloader tenant
	agents     map[string]*topo.Process // by machine
}

func run(ctx context.Context, out io.Writer) (err error) {
	programs := os.Getenv("VPCPROXY_BIN")
	if programs == "" {
		return errors.New("VPCPROXY_BIN does not say where the built programs are; run make demo")
	}
	files, err := os.MkdirTemp("", "vpcproxy-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	start := time.Now()
	lab, err := topo.Build(ctx, files, topo.Layout{Hosts: 1, Pods: 3, Proxies: 2, VPCs: []string{"acme", "globex", "initech"}, OneLink: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	d := &demo{lab: lab, out: out, programs: programs, files: files, agents: map[string]*topo.Process{}}
	for i, name := range []string{"acme", "globex", "initech"} {
		server, err := traffic.Serve(lab.VPCs[name].Machine, name)
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		d.tenants = append(d.tenants, tenant{name, lab.Hosts[0].Pods[i]})
	}
	d.tenants, d.downloader = d.tenants[:2], d.tenants[2]
	for _, act := range []func(context.Context) error{d.introduce, d.install, d.attach, d.ask, d.survive, d.look} {
		if err := act(ctx); err != nil {
			d.explain()
			return err
		}
	}
	d.say("\nDone in %.0f s: two pods asked %s, and each was answered out of its own VPC; a third\nfinished its download though the proxy that carried it was killed.", time.Since(start).Seconds(), topo.ServerAddress)
	return nil
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

// drawing has places for the pods' addresses, the nodes' and the server's.
const drawing = `
  pod1-1                                                    VPC acme
  %-11[1]s ──┐                                         ┌── eth1 ── 172.16.101.0/24, server %[5]s
               ├── host1 ═════════ GRE ═════════ proxy1 ┤
  pod1-2       │   %-12[3]s              %-11[4]s └── eth2 ── 172.16.101.0/24, server %[5]s
  %-11[2]s ──┘                                            VPC globex
`

// introduce shows the lab, and that a pod reaches no VPC yet.
func (d *demo) introduce(ctx context.Context) error {
	host := d.lab.Hosts[0]
	d.say("Two users, acme and globex, own the same subnet. Nothing routes to either.")
	d.say(drawing, host.Pods[0].Address, host.Pods[1].Address, host.Underlay, d.lab.Proxies[0].Underlay, topo.ServerAddress)
	for _, t := range d.tenants {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		answer, err := traffic.Get(attempt, t.pod.Machine, topo.ServerAddress)
		cancel()
		if err == nil {
			return fmt.Errorf("%s reaches %s before anything is attached: %+v", t.pod.Name, topo.ServerAddress, answer)
		}
		d.say("%s asks http://%s/: no answer", t.pod.Name, topo.ServerAddress)
	}
	return nil
}

// install makes certificates, and starts the controller and the node agents.
func (d *demo) install(ctx context.Context) error {
	d.say("\nCertificates, then the controller and the node agents:\n")
	pki := filepath.Join(d.files, "pki")
	control := topo.ControlAddress.String()
	if err := d.ctl(ctx, "pki", "init", "--ca", pki); err != nil {
		return err
	}
	if err := d.ctl(ctx, "pki", "issue", "control", "--role", "controller", "--host", control, "--ca", pki); err != nil {
		return err
	}
	for _, node := range []string{"host1", "proxy1", "proxy2"} {
		if err := d.ctl(ctx, "pki", "issue", node, "--ca", pki); err != nil {
			return err
		}
	}
	follow := "controller: {address: 'https://" + control + ":9443'}"
	for _, node := range []struct {
		on    *topo.Machine
		lines []string
	}{
		{d.lab.Control, []string{"roles: [controller]", "controller: {listen: ':9443'}"}},
		{d.lab.Proxies[0].Machine, []string{"roles: [proxy]", follow}},
		{d.lab.Proxies[1].Machine, []string{"roles: [proxy]", follow}},
		{d.lab.Hosts[0].Machine, []string{"roles: [function]", follow, "podCIDRs: [" + d.lab.Hosts[0].PodCIDR.String() + "]"}},
	} {
		lines := append(node.lines, "tls: {directory: "+filepath.Join(pki, node.on.Name)+"}")
		if err := d.startAgent(node.on, lines); err != nil {
			return err
		}
		// The first that starts is the one that the others follow.
		if err := d.untilRegistered(ctx, node.on); err != nil {
			return err
		}
	}
	return nil
}

// startAgent starts vpcproxyd with the lines as its configuration.
func (d *demo) startAgent(m *topo.Machine, lines []string) error {
	path := filepath.Join(d.files, m.Name+".yaml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	d.say("  %s# vpcproxyd --config %s.yaml    # %s", m.Name, m.Name, strings.Join(lines[:len(lines)-1], ", "))
	process, err := m.Start(nil, filepath.Join(d.programs, "vpcproxyd"), "--config", path)
	d.agents[m.Name] = process
	return err
}

// untilRegistered waits until the controller answers, and knows the node
// unless that is the controller itself.
func (d *demo) untilRegistered(ctx context.Context, m *topo.Machine) error {
	args := []string{"get", "nodes"}
	if m != d.lab.Control {
		args = append(args, m.Name)
	}
	for {
		_, err := d.lab.Control.Run(ctx, filepath.Join(d.programs, "vpcproxyctl"), args...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("vpcproxyd on %s has not come up: %w", m.Name, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const groupManifest = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: blue}
spec: {members: [{node: proxy1}]}
`

// attach types what an operator types.
func (d *demo) attach(ctx context.Context) error {
	path := filepath.Join(d.files, "group.yaml")
	if err := os.WriteFile(path, []byte(groupManifest), 0o600); err != nil {
		return err
	}
	if err := d.ctl(ctx, "apply", "-f", path); err != nil {
		return err
	}
	for _, t := range d.tenants {
		d.say("\n%s's subnet, for %s:\n", t.name, t.pod.Name)
		err := d.ctl(ctx, "attach", "--subnet", topo.Subnet.String(), "--vpc", t.name, "--group", "blue",
			"--eni", "mac="+d.lab.Proxies[0].ENIs[t.name].MAC, "--pods", t.pod.Address.String(), "--wait")
		if err != nil {
			return err
		}
	}
	return nil
}

// ctl types a vpcproxyctl command on the controller's machine.
func (d *demo) ctl(ctx context.Context, args ...string) error {
	d.say("  control# vpcproxyctl %s", strings.ReplaceAll(strings.Join(args, " "), d.files+string(filepath.Separator), ""))
	// A shell, to have progress and answer in the order in which they come.
	shell := append([]string{"-c", `exec "$0" "$@" 2>&1`, filepath.Join(d.programs, "vpcproxyctl")}, args...)
	out, err := d.lab.Control.Run(ctx, "sh", shell...)
	for line := range strings.Lines(out) {
		d.say("           %s", strings.ReplaceAll(strings.TrimRight(line, "\n"), d.files+string(filepath.Separator), ""))
	}
	return err
}

// ask sends each pod's request, and checks who answered and whom it saw.
func (d *demo) ask(ctx context.Context) error {
	d.say("\nThe same address, asked by two pods:\n")
	for _, t := range d.tenants {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		answer, err := traffic.Get(attempt, t.pod.Machine, topo.ServerAddress)
		cancel()
		if err != nil {
			return err
		}
		d.say("  %s (%s) asks http://%s/: answered by %s, which saw %s", t.pod.Name, t.pod.Address, topo.ServerAddress,
			answer.Server, answer.Client)
		if err := check(answer, t.name, d.lab.Proxies[0].ENIs[t.name].Address.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// look shows what an operator sees in the end: the platform, what passes the proxy
// that is left, and the ways of a pod of the first act and of the one whose
// proxy was killed.
func (d *demo) look(ctx context.Context) error {
	d.say("\nWhat an operator sees of it in the end:\n")
	commands := [][]string{{"status"}, {"top", "--node", d.lab.Proxies[0].Name}}
	for _, t := range []tenant{d.tenants[0], d.downloader} {
		commands = append(commands, []string{"trace", "--node", "host1", "--from", t.pod.Address.String(), "--to", topo.ServerAddress.String() + ":80"})
	}
	for _, args := range commands {
		if err := d.ctl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func check(answer traffic.Answer, server string, source netip.Addr) error {
	switch {
	case answer.Server != server:
		return fmt.Errorf("the wrong VPC answered: %s, not %s", answer.Server, server)
	case answer.Client.Addr() != source:
		return fmt.Errorf("%s saw %s, not the address of its own interface, %s", server, answer.Client.Addr(), source)
	}
	return nil
}

// explain prints what the agents have logged, after a failure.
func (d *demo) explain() {
	logs, err := filepath.Glob(filepath.Join(d.files, "*.log"))
	if err != nil {
		return
	}
	for _, path := range logs {
		if content, err := os.ReadFile(path); err == nil {
			d.say("\n%s:\n%s", filepath.Base(path), content)
		}
	}
}
