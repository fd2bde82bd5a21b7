package netns

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// The exit codes of vpcproxyctl.
const (
	exitFailed       = 1
	exitUsage        = 2
	exitNotConverged = 3
	exitNotFound     = 4
	exitConflict     = 5
)

// TestAttach is the product's main job: attach, and what the pod asks is
// answered out of a VPC that nothing routes to; detach, and it is over.
func TestAttach(t *testing.T) {
	p := newPlatform(t, tenants)
	red, blue := p.Hosts[0].Pods[0], p.Hosts[0].Pods[1]
	untouched := map[string]string{}
	for _, m := range []*topo.Machine{p.Hosts[0].Machine, p.Proxies[0].Machine} {
		untouched[m.Name] = fingerprint(t, m)
	}
	out := p.mustCtl(t, p.Control, append(p.attachArgs("red", red), "--wait", "--timeout", "30s")...)
	// Attached means attached: the first request succeeds.
	ctx, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	if err := askOnce(ctx, red.Machine, "red", p.Proxies[0].ENIs["red"].Address.Addr()); err != nil {
		t.Errorf("right after %q: %v", out, err)
	}
	p.mustCtl(t, p.Control, append(p.attachArgs("blue", blue), "--wait")...)
	p.reached(t)
	// Both ends of the path are diagnosed through the controller.
	trace := p.mustCtl(t, p.Control, "trace", "--node", "host1", "--from", red.Address.String(), "--to", topo.ServerAddress.String()+":80")
	if !strings.Contains(trace, "reached, and answered") || !strings.Contains(trace, "GRE arrives at the proxy") {
		t.Errorf("a sound path, traced:\n%s", trace)
	}
	writes := p.agents["host1"].writes(t)
	p.mustCtl(t, p.Control, append(p.attachArgs("red", red), "--wait")...)
	if after := p.agents["host1"].writes(t); after != writes {
		t.Errorf("attaching again wrote %d objects", after-writes)
	}
	for _, tenant := range []string{"red", "blue"} {
		p.mustCtl(t, p.Control, "detach", tenant, "--wait")
	}
	unreachable(t, red.Machine, topo.ServerAddress)
	answeredBy(t, red.Machine, topo.PlatformAddress, "platform", netip.Addr{})
	for name, before := range untouched {
		a := p.agents[name]
		// The filters stay while the agent is in charge; nothing else does.
		if err := a.process.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		p.mustCtl(t, a.Machine, "node", "cleanup", "--yes")
		same(t, a.Machine, before)
	}
}

// TestExitCodes holds the commands to their documented statuses. A command
// that is refused changes nothing.
func TestExitCodes(t *testing.T) {
	p := newPlatform(t, tenants)
	pod := p.Hosts[0].Pods[0]
	p.mustCtl(t, p.Control, append(p.attachArgs("red", pod), "--wait")...)
	before := p.mustCtl(t, p.Control, "get", "attachments", "-o", "json")
	with := func(vpc string, changes ...string) []string {
		args := p.attachArgs(vpc, p.Hosts[0].Pods[1])
		for i := 0; i < len(changes); i += 2 {
			for j := range args {
				if args[j] == changes[i] {
					args[j+1] = changes[i+1]
				}
			}
		}
		return args
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // in the message
	}{
		{"nothing", []string{"attach"}, exitUsage, "--subnet"},
		{"unknown flag", []string{"attach", "--subnett", "1.2.3.0/24"}, exitUsage, "--subnet"},
		{"unknown command", []string{"atach"}, exitUsage, "attach"},
		{"malformed CIDR", with("blue", "--subnet", "172.16.101.0/33"), exitUsage, "172.16.101.0/33"},
		{"host bits", with("blue", "--subnet", "172.16.101.7/24"), exitUsage, "172.16.101.0/24"},
		{"everything", with("blue", "--subnet", "0.0.0.0/0"), exitUsage, "0.0.0.0/0"},
		{"link-local", with("blue", "--subnet", "169.254.169.0/24"), exitUsage, "169.254.169.0/24"},
		{"tunnel pool", with("blue", "--subnet", "100.64.8.0/24"), exitConflict, "100.64"},
		{"underlay", with("blue", "--subnet", "192.168.80.0/24"), exitConflict, "allow-overlap"},
		{"unknown group", with("blue", "--group", "g2"), exitNotFound, "g2"},
		{"unknown ENI", with("blue", "--eni", "proxy1:mac=02:00:00:00:00:99"), exitNotFound, "02:00:00:00:00:99"},
		{"unknown proxy", with("blue", "--eni", "proxy9:mac=02:00:00:02:65:0a"), exitNotFound, "proxy9"},
		{"name taken", with("blue", "--name", "red"), exitConflict, "red"},
		{"pod taken", with("blue", "--pods", pod.Address.String()), exitConflict, pod.Address.String()},
		{"get the absent", []string{"get", "attachments", "blue"}, exitNotFound, "blue"},
		{"describe the absent", []string{"describe", "attachments", "blue"}, exitNotFound, "blue"},
		{"detach the absent", []string{"detach", "blue"}, exitNotFound, "blue"},
		{"delete what is in use", []string{"delete", "group", "g1"}, exitConflict, "red"},
		{"no controller", []string{"--controller", "unix:///run/nowhere.sock", "get", "nodes"}, exitFailed, "nowhere.sock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := p.vpcproxyctl(t, p.Control, tc.args...)
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("vpcproxyctl %s: exit status %d, want %d and %q in:\n%s", strings.Join(tc.args, " "), code, tc.code, tc.want, out)
			}
		})
	}
	if after := p.mustCtl(t, p.Control, "get", "attachments", "-o", "json"); after != before {
		t.Errorf("a refused command changed something.\nbefore: %s\nafter: %s", before, after)
	}
	p.mustCtl(t, p.Control, append(with("blue"), "--dry-run")...)
	if after := p.mustCtl(t, p.Control, "get", "attachments", "-o", "json"); after != before {
		t.Error("a dry run changed something")
	}
	// A proxy that is away keeps an attachment from converging.
	p.agents["proxy1"].kill(t)
	if out, code := p.vpcproxyctl(t, p.Control, append(with("blue"), "--wait", "--timeout", "2s")...); code != exitNotConverged {
		t.Errorf("with a dead proxy: exit status %d, want %d:\n%s", code, exitNotConverged, out)
	}
	p.agents["proxy1"].restart(t)
	answeredBy(t, p.Hosts[0].Pods[1].Machine, topo.ServerAddress, "blue", netip.Addr{})
}

// TestShow reads the platform back by get, describe, status and plan.
func TestShow(t *testing.T) {
	p := newAttachedPlatform(t)
	host := p.agents["host1"]
	for _, tc := range []struct {
		on   *topo.Machine
		args []string
		want []string
	}{
		{p.Control, []string{"get", "attachments"}, []string{"red", "blue", "vpc-red", "172.16.101.0/24"}},
		{p.Control, []string{"get", "nodes"}, []string{"host1", "proxy1"}},
		{p.Control, []string{"get", "groups", "-o", "wide"}, []string{"g1", "100.64."}},
		{p.Control, []string{"describe", "attachments", "red"}, []string{"host1", "proxy1", "10.244.1.5"}},
		{p.Control, []string{"status"}, []string{"host1", "proxy1", "2 in place everywhere"}},
		{host.Machine, []string{"status", "--node-socket", nodeSocket}, []string{"red", "blue"}},
		{host.Machine, []string{"resync"}, []string{"0"}},
		{host.Machine, []string{"version"}, []string{"vpcproxyctl"}},
		{host.Machine, []string{"completion", "bash"}, []string{"vpcproxyctl"}},
	} {
		out := p.mustCtl(t, tc.on, tc.args...)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("vpcproxyctl %s lacks %q:\n%s", strings.Join(tc.args, " "), want, out)
			}
		}
	}
	var objects struct{ Items []any }
	if out := p.mustCtl(t, p.Control, "get", "attachments", "-o", "json"); json.Unmarshal([]byte(out), &objects) != nil || len(objects.Items) != 2 {
		t.Errorf("get -o json is not a list of two objects:\n%s", out)
	}
	// What is printed can be applied, and changes nothing.
	p.apply(t, p.mustCtl(t, p.Control, "get", "attachments", "-o", "yaml"))
	if out := p.mustCtl(t, host.Machine, "plan"); strings.Contains(out, "ip ") {
		t.Errorf("a plan with nothing to do names commands:\n%s", out)
	}
}

// TestMutualTLS tries to get in without the right certificate.
func TestMutualTLS(t *testing.T) {
	p := newAttachedPlatform(t)
	address := "https://" + topo.ControlAddress.String() + ":9443"
	other := filepath.Join(t.TempDir(), "pki")
	p.mustCtl(t, p.Control, "pki", "init", "--ca", other)
	for _, tc := range []struct {
		name, address, tls string
		ok                 bool
	}{
		{"an operator", address, p.bundle("operator"), true},
		{"an operator of another CA", address, filepath.Join(other, "operator"), false},
		{"a node", address, p.bundle("host1"), false},
		{"plaintext", "http://" + topo.ControlAddress.String() + ":9443", p.bundle("operator"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := p.vpcproxyctl(t, p.Attacker, "--controller", tc.address, "--tls-directory", tc.tls, "get", "attachments")
			if got := code == 0; got != tc.ok {
				t.Errorf("exit status %d:\n%s", code, out)
			}
			if !tc.ok && strings.Contains(out, "vpc-red") {
				t.Errorf("intent was told:\n%s", out)
			}
		})
	}
	// A node with another node's certificate is not that node.
	thief := p.startConfigured(t, p.Attacker, "roles: [proxy]", "node: proxy1", "stateDirectory: /var/lib/thief",
		"controller: {address: '"+address+"'}", "tls: {directory: "+p.bundle("host1")+"}")
	select {
	case <-thief.process.Notified:
		t.Error("a node was served as another one")
	case <-thief.process.Ended():
	case <-time.After(never):
	}
}

// TestControllerAbsent stops the controller, and then lets its machine answer
// nothing at all, as when it is gone for an hour. Traffic and repairs go on,
// and an agent that is restarted meanwhile still has its last intent.
func TestControllerAbsent(t *testing.T) {
	p := newAttachedPlatform(t)
	load := startLoad(t, p.world)
	p.controller.kill(t)
	for _, silence := range []string{"", "ip link set eth0 down"} {
		if silence != "" {
			typeLines(t, p.Control, silence)
		}
		for _, name := range []string{"host1", "proxy1"} {
			a := p.agents[name]
			a.kill(t)
			a.restart(t)
			a.settled(t)
			if n := a.writes(t); n != 0 {
				t.Errorf("%s wrote %d objects after its restart without a controller", name, n)
			}
		}
		neighbors := look(t, p.Hosts[0].Machine, "ip neigh show dev vpx-blue nud permanent")
		typeLines(t, p.Hosts[0].Machine, "ip neigh flush dev vpx-blue nud permanent")
		eventually(t, unhurried(t, p.Hosts[0].Machine, repairLimit), func(ctx context.Context) error {
			now, err := p.Hosts[0].Run(ctx, "sh", "-c", "ip neigh show dev vpx-blue nud permanent")
			if err == nil && now != neighbors {
				err = errors.New("the neighbor is not back")
			}
			return err
		})
		p.reached(t)
	}
	typeLines(t, p.Control, "ip link set eth0 up", "ip route replace default via 192.168.4.1")
	p.controller.restart(t)
	load.unharmed(t)
	// And it is obeyed again.
	p.mustCtl(t, p.Control, "detach", "blue", "--wait", "--timeout", "60s")
}

// TestUpgrade replaces the programs under load, one machine after the other.
func TestUpgrade(t *testing.T) {
	p := newAttachedPlatform(t)
	load := startLoad(t, p.world)
	content, err := os.ReadFile(p.daemon)
	if err != nil {
		t.Fatal(err)
	}
	upgraded := filepath.Join(t.TempDir(), "vpcproxyd")
	if err := os.WriteFile(upgraded, content, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"control", "proxy1", "host1"} {
		a := p.agents[name]
		if err := a.process.Stop(t.Context()); err != nil {
			t.Errorf("vpcproxyd on %s: %v", name, err)
		}
		a.launch(t, upgraded)
		a.awaitReady(t)
	}
	for _, name := range []string{"proxy1", "host1"} {
		p.agents[name].settled(t)
		if n := p.agents[name].writes(t); n != 0 {
			t.Errorf("%s wrote %d objects after the upgrade", name, n)
		}
	}
	load.unharmed(t)
}

// TestMassRemoval loses all intent at once, by a directory that was emptied
// and by a store that was: it is held back and reported until confirmed.
func TestMassRemoval(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		w := newTenants(t)
		w.remove(t, "red")
		w.remove(t, "blue")
		for _, a := range w.agents {
			held(t, a)
		}
		w.reached(t)
		for _, a := range w.agents {
			w.mustCtl(t, a.Machine, "node", "confirm-removal")
			a.settled(t)
		}
		unreachable(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress)
	})
	t.Run("store", func(t *testing.T) {
		p := newAttachedPlatform(t)
		load := startLoad(t, p.world)
		p.controller.kill(t)
		typeLines(t, p.Control, "rm -rf /var/lib/vpcproxy/etcd")
		p.controller.restart(t)
		for _, name := range []string{"host1", "proxy1"} {
			held(t, p.agents[name])
		}
		load.unharmed(t)
		for _, name := range []string{"host1", "proxy1"} {
			p.mustCtl(t, p.agents[name].Machine, "node", "confirm-removal")
			p.agents[name].settled(t)
		}
		unreachable(t, p.Hosts[0].Pods[0].Machine, topo.ServerAddress)
	})
}

// held waits until an agent reports that it holds a removal back.
func held(t *testing.T, a *agent) {
	t.Helper()
	eventually(t, soon, func(context.Context) error {
		if a.status(t).Report.Held == "" {
			return errors.New(a.Name + " holds nothing back")
		}
		return nil
	})
}
