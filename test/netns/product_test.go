package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Tunnel addresses of static intent: a host's number is added to the first.
const (
	hostTunnel  = "100.64.0.%d"
	groupTunnel = "100.64.0.4"
)

// world is a lab whose intent is a directory of manifests that every agent
// reads.
type world struct {
	*testLab
	intent string // the directory
	daemon string // the built vpcproxyd
	config string // what every agent's configuration has besides; NODE is its node's name
	agents map[string]*agent
}

// newWorld builds a lab with a manifest for every node and one group "g1" of
// all proxies. No agent runs yet.
func newWorld(t *testing.T, layout topo.Layout) *world {
	t.Helper()
	w := &world{
		testLab: newLab(t, layout), intent: t.TempDir(), agents: map[string]*agent{},
		daemon: lab.Binary(t, "vpcproxyd"),
	}
	for i, h := range w.Hosts {
		w.put(t, h.Name, fmt.Sprintf(`kind: Node
metadata: {name: %s}
spec:
  roles: [function]
  underlayAddress: %s
  tunnelAddress: %s
  podCIDRs: [%s]
`, h.Name, h.Underlay, fmt.Sprintf(hostTunnel, 80+i), h.PodCIDR))
	}
	members := make([]string, 0, len(w.Proxies))
	for _, p := range w.Proxies {
		members = append(members, "{node: "+p.Name+"}")
		w.put(t, p.Name, fmt.Sprintf(`kind: Node
metadata: {name: %s}
spec:
  roles: [proxy]
  underlayAddress: %s
`, p.Name, p.Underlay))
	}
	w.put(t, "g1", fmt.Sprintf(`kind: ProxyGroup
metadata: {name: g1}
spec:
  members: [%s]
  tunnelAddress: %s
`, strings.Join(members, ", "), groupTunnel))
	return w
}

// put writes a manifest, at once or not at all.
func (w *world) put(t *testing.T, name, manifest string) {
	t.Helper()
	path := filepath.Join(w.intent, name+".yaml")
	if err := os.WriteFile(path+".new", []byte("apiVersion: vpcproxy.io/v1alpha1\n"+manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// remove removes a manifest.
func (w *world) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(w.intent, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// attach writes an attachment of a VPC, named like it, for pods.
func (w *world) attach(t *testing.T, vpc string, key uint32, pods ...*topo.Pod) {
	t.Helper()
	w.put(t, vpc, w.attachment(vpc, key, pods...))
}

// attachment is a manifest with the VPC's first proxy's ENI, found by its MAC.
func (w *world) attachment(vpc string, key uint32, pods ...*topo.Pod) string {
	sources := make([]string, 0, len(pods))
	for _, p := range pods {
		sources = append(sources, p.Address.String()+"/32")
	}
	proxy := w.Proxies[0]
	return fmt.Sprintf(`kind: Attachment
metadata: {name: %[1]s}
spec:
  vpc: vpc-%[1]s
  cidrs: [%[2]s]
  group: g1
  greKey: %[3]d
  pods: [%[4]s]
  enis: [{node: %[5]s, mac: "%[6]s"}]
`, vpc, topo.Subnet, key, strings.Join(sources, ", "), proxy.Name, proxy.ENIs[vpc].MAC)
}

// agent is a vpcproxyd on a machine.
type agent struct {
	*topo.Machine
	world   *world
	config  string // path of its configuration
	nice    int    // as its unit has it
	process *topo.Process
}

// start starts an agent with static intent on every host and proxy and waits
// until all are ready.
func (w *world) start(t *testing.T) {
	t.Helper()
	for _, h := range w.Hosts {
		w.startAgent(t, h.Machine, "function")
	}
	for _, p := range w.Proxies {
		w.startAgent(t, p.Machine, "proxy")
	}
	for _, a := range w.agents {
		a.awaitReady(t)
	}
}

// startAgent starts an agent with static intent; extra lines are added to its
// configuration.
func (w *world) startAgent(t *testing.T, m *topo.Machine, role string, extra ...string) *agent {
	t.Helper()
	lines := append([]string{"roles: [" + role + "]", "intent: {directory: " + w.intent + "}", strings.ReplaceAll(w.config, "NODE", m.Name)}, extra...)
	return w.startConfigured(t, m, lines...)
}

// startConfigured starts an agent whose configuration is the lines.
func (w *world) startConfigured(t *testing.T, m *topo.Machine, lines ...string) *agent {
	t.Helper()
	a := &agent{Machine: m, world: w, config: filepath.Join(t.TempDir(), "vpcproxyd.yaml")}
	if err := os.WriteFile(a.config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(w.Proxies, func(p *topo.Proxy) bool { return p.Machine == m }) {
		a.nice = unitNice(t)
	}
	w.agents[m.Name] = a
	a.launch(t, w.daemon)
	return a
}

// unitNice is the nice value that the unit gives to a proxy's agent.
func unitNice(t *testing.T) int {
	t.Helper()
	unit, err := os.ReadFile("../../deploy/systemd/vpcproxyd-proxy.service")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(unit), "\nNice=")
	line, _, _ = strings.Cut(line, "\n")
	nice, err := strconv.Atoi(line)
	if err != nil {
		t.Fatalf("the proxy's unit gives it no nice value: %v", err)
	}
	return nice
}

// launch starts the process; awaitReady waits for it.
func (a *agent) launch(t *testing.T, daemon string) {
	t.Helper()
	notify := filepath.Join(filepath.Dir(a.config), "notify")
	if err := os.Remove(notify); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				return
			}
			if strings.Contains("\n"+string(buffer[:n])+"\n", "\nREADY=1\n") {
				close(ready)
				return
			}
		}
	}()
	t.Cleanup(func() { _ = socket.Close() })
	a.process, err = a.StartNice(a.nice, []string{"NOTIFY_SOCKET=" + notify}, daemon, "--config", a.config)
	if err != nil {
		t.Fatal(err)
	}
	a.process.Notified = ready
}

// awaitReady waits until the agent has told systemd that it is ready.
func (a *agent) awaitReady(t *testing.T) {
	t.Helper()
	select {
	case <-a.process.Notified:
	case <-a.process.Ended():
		t.Fatalf("vpcproxyd on %s ended:\n%s", a.Name, a.process.Log())
	case <-time.After(soon):
		t.Fatalf("vpcproxyd on %s is not ready after %v:\n%s", a.Name, soon, a.process.Log())
	}
}

// kill ends the agent as a crash would (SIGKILL).
func (a *agent) kill(t *testing.T) {
	t.Helper()
	if err := a.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// restart starts the agent again and waits until it is ready.
func (a *agent) restart(t *testing.T) {
	t.Helper()
	a.launch(t, a.world.daemon)
	a.awaitReady(t)
}

// vpcproxyctl runs the command on a machine and returns its standard output
// and exit code.
func (w *world) vpcproxyctl(t *testing.T, m *topo.Machine, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := m.Run(ctx, lab.Binary(t, "vpcproxyctl"), args...)
	exit, ok := errors.AsType[*topo.ExitError](err)
	switch {
	case ok:
		return out + exit.Output, exit.Code
	case err != nil:
		t.Fatal(err)
	}
	return out, 0
}

// mustCtl is vpcproxyctl that must succeed.
func (w *world) mustCtl(t *testing.T, m *topo.Machine, args ...string) string {
	t.Helper()
	out, code := w.vpcproxyctl(t, m, args...)
	if code != 0 {
		t.Fatalf("%s: vpcproxyctl %s: exit status %d:\n%s", m.Name, strings.Join(args, " "), code, out)
	}
	return out
}

// edit changes a manifest.
func (w *world) edit(t *testing.T, name string, changes *strings.Replacer) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(w.intent, name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(changes.Replace(string(content)), "\n")
	w.put(t, name, body)
}
