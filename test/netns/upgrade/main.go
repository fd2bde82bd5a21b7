// Command upgrade installs the package on a function host and a proxy, starts the
// agents as its units say, and upgrades both while a connection goes on through
// them. make test-packages runs it.
//
// usage: upgrade OLD.deb NEW.deb
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// vpcproxyctl is as the package installs it, which no PATH but the machine's
	// leads to.
	vpcproxyctl = "/usr/bin/vpcproxyctl"
	// limit is far above what it takes, even where processors are emulated.
	limit = 8 * time.Minute
	// noticed is a gap that somebody may notice: a lost segment is sent again
	// after 200 ms (TCP_RTO_MIN), and a busy guest pauses by itself.
	noticed = 2 * time.Second
	// settled is how long the connection is watched after the last upgrade.
	settled = 3 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := errors.New("usage: upgrade OLD.deb NEW.deb")
	if len(os.Args) == 3 {
		err = run(ctx, os.Args[1], os.Args[2])
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "upgrade: FAILED:", err)
		os.Exit(1)
	}
}

// machine is one with the package installed.
type machine struct {
	*topo.Machine
	unit  string // of the agent
	agent *topo.Process
}

func run(ctx context.Context, before, after string) (err error) {
	files, err := os.MkdirTemp("", "vpcproxy-upgrade-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	lab, err := topo.Build(ctx, files, topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	server, err := traffic.Serve(lab.VPCs["red"].Machine, "red")
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	host, proxy := &machine{Machine: lab.Hosts[0].Machine, unit: "vpcproxyd"}, &machine{Machine: lab.Proxies[0].Machine, unit: "vpcproxyd-proxy"}
	for m, role := range map[*machine]string{host: "function", proxy: "proxy"} {
		if err := m.prepare(ctx, filepath.Join(files, m.Name+"-root")); err != nil {
			return err
		}
		if err := m.install(ctx, before); err != nil {
			return err
		}
		if err := m.configure(role, manifests(lab)); err != nil {
			return err
		}
		if err := m.start(ctx); err != nil {
			return err
		}
	}
	pod := lab.Hosts[0].Pods[0].Machine
	flow, err := connect(ctx, pod)
	if err != nil {
		return errors.Join(err, host.explain(), proxy.explain())
	}
	for _, m := range []*machine{proxy, host} { // as docs/upgrade.md has it
		if err := m.upgrade(ctx, after); err != nil {
			return errors.Join(err, m.explain())
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settled):
	}
	report := flow.Stop(noticed)
	switch {
	case report.Err != nil:
		return fmt.Errorf("the connection: %w", report.Err)
	case report.LongestGap > noticed:
		return fmt.Errorf("the connection stood still for %v", report.LongestGap)
	}
	if _, err := traffic.Get(ctx, pod, topo.ServerAddress); err != nil {
		return fmt.Errorf("a new connection after the upgrade: %w", err)
	}
	fmt.Printf("packages: a function host and a proxy upgraded under traffic: %d numbers came back over one connection, none was missing, and the longest gap was %d ms\n",
		report.Returned, report.LongestGap.Milliseconds())
	return nil
}

// prepare gives a machine its own copies of what packages write to, and a systemd
// that notes what it is asked. What changes the whole kernel is left out.
func (m *machine) prepare(ctx context.Context, root string) error {
	shim := func(name, text string) string {
		return fmt.Sprintf("printf '#!/bin/sh\\n%s\\n' >/usr/local/sbin/%s; chmod +x /usr/local/sbin/%s", text, name, name)
	}
	lines := []string{"mkdir -p " + root, "mount -t tmpfs upgrade " + root, "cd " + root}
	for _, d := range []string{"usr", "etc", "var"} {
		lines = append(lines, "mkdir "+d+" "+d+".work",
			fmt.Sprintf("mount -t overlay -o lowerdir=/%[1]s,upperdir=%[2]s/%[1]s,workdir=%[2]s/%[1]s.work %[1]s /%[1]s", d, root))
	}
	lines = append(lines, "mkdir -p /run/systemd/system /run/vpcproxy /var/lib/vpcproxy /usr/local/sbin",
		shim("systemctl", `echo "$@" >>/run/systemctl.log`), shim("modprobe", "true"), shim("sysctl", "true"))
	return m.Type(ctx, lines...)
}

// install has dpkg install a package, or upgrade to it. Directories are made before:
// dpkg renames new ones, and an overlay whose upper layer has no extended
// attributes, as in a guest, refuses that.
func (m *machine) install(ctx context.Context, deb string) error {
	out, err := m.Run(ctx, "sh", "-c", `: >/run/systemctl.log
		export DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		dpkg-deb -c "$0" | sed -n 's|^d.* \./|/|p' | xargs mkdir -p
		dpkg --force-confdef --force-confold -i "$0" 2>&1`, deb)
	if err != nil {
		return fmt.Errorf("%s: dpkg -i %s: %w\n%s", m.Name, deb, err, out)
	}
	return nil
}

// configure writes the configuration that the unit names, and the intent.
func (m *machine) configure(role, intent string) error {
	text := fmt.Sprintf("node: %s\nroles: [%s]\nintent: {directory: /etc/vpcproxy/intent.d}\ntls: {directory: \"\"}\n", m.Name, role)
	return errors.Join(m.WriteFile("/etc/vpcproxy/vpcproxyd.yaml", text), m.Do(func() error { return os.MkdirAll("/etc/vpcproxy/intent.d", 0o700) }),
		m.WriteFile("/etc/vpcproxy/intent.d/all.yaml", intent))
}

// start starts the agent as the installed unit says, and waits until it is ready.
func (m *machine) start(ctx context.Context) error {
	unit, err := m.ReadFile("/usr/lib/systemd/system/" + m.unit + ".service")
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(unit, "\nExecStart=")
	command, _, _ := strings.Cut(rest, "\n")
	words := strings.Fields(command)
	if !ok || len(words) == 0 {
		return fmt.Errorf("%s.service has no ExecStart", m.unit)
	}
	if m.agent, err = m.Start(nil, words[0], words[1:]...); err != nil {
		return err
	}
	for {
		out, err := m.Run(ctx, vpcproxyctl, "status", "--node-socket", "/run/vpcproxy/node.sock", "-o", "json")
		if err == nil && strings.Contains(out, `"inSync": true`) && strings.Contains(out, `"ready": true`) {
			return nil
		}
		select {
		case <-m.agent.Ended():
			return errors.Join(fmt.Errorf("vpcproxyd on %s ended", m.Name), m.explain())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("vpcproxyd on %s is not ready: %s: %w", m.Name, out, err), m.explain())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// upgrade installs the newer package, and does what it asks of systemd.
func (m *machine) upgrade(ctx context.Context, deb string) error {
	was, err := m.Run(ctx, vpcproxyctl, "version")
	if err != nil {
		return err
	}
	if err := m.install(ctx, deb); err != nil {
		return err
	}
	asked, err := m.ReadFile("/run/systemctl.log")
	if err != nil {
		return err
	}
	if !strings.Contains(asked, "try-restart "+m.unit+".service\n") || strings.Contains(asked, "stop ") || !m.agent.Running() {
		return fmt.Errorf("%s: the upgrade asked systemd for:\n%s", m.Name, asked)
	}
	if is, err := m.Run(ctx, vpcproxyctl, "version"); err != nil || is == was {
		return errors.Join(err, fmt.Errorf("%s: the version was %q and is %q", m.Name, was, is))
	}
	stop, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := m.agent.Stop(stop); err != nil {
		return err
	}
	return m.start(ctx)
}

// explain is what the agent has logged.
func (m *machine) explain() error { return fmt.Errorf("log of %s:\n%s", m.Name, m.agent.Log()) }

// connect waits until the pod reaches its VPC, and keeps a connection there.
func connect(ctx context.Context, pod *topo.Machine) (*traffic.Flow, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		flow, err := traffic.StartFlow(attempt, pod, topo.ServerAddress)
		cancel()
		if err == nil {
			return flow, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// manifests are all that the nodes need to know.
func manifests(lab *topo.Lab) string {
	host, proxy := lab.Hosts[0], lab.Proxies[0]
	return fmt.Sprintf(`apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: %s}
spec: {roles: [function], underlayAddress: %s, tunnelAddress: 100.64.0.80, podCIDRs: [%s]}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: %s}
spec: {roles: [proxy], underlayAddress: %s}
---
apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec: {members: [{node: %[4]s}], tunnelAddress: 100.64.0.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: red}
spec: {vpc: vpc-red, cidrs: [%[6]s], group: g1, greKey: 101, pods: [%[7]s/32], enis: [{node: %[4]s, mac: "%[8]s"}]}
`, host.Name, host.Underlay, host.PodCIDR, proxy.Name, proxy.Underlay, topo.Subnet, host.Pods[0].Address, proxy.ENIs["red"].MAC)
}
