package netns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// systemctl notes what the scripts of a package ask of it.
const systemctl = "#!/bin/sh\necho \"$@\" >>/run/systemctl.log\n"

// maintainer runs a script of the package on the agent's machine, as a package
// manager does, and returns what it asked of systemctl.
func (a *agent) maintainer(t *testing.T, script string, args ...string) string {
	t.Helper()
	programs := t.TempDir()
	if err := os.WriteFile(filepath.Join(programs, "systemctl"), []byte(systemctl), 0o755); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", "package", "scripts", script))
	if err != nil {
		t.Fatal(err)
	}
	typeLines(t, a.Machine, "mkdir -p /run/systemd/system", "cp /dev/null /run/systemctl.log",
		fmt.Sprintf("env PATH=%s:%s:%s %s %s", programs, filepath.Dir(lab.Binary(t, "vpcproxyctl")), os.Getenv("PATH"), path, strings.Join(args, " ")))
	log, err := a.Run(t.Context(), "cat", "/run/systemctl.log")
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// TestUpgradeUnderTraffic runs what the package runs when it is upgraded, and
// restarts the agents as it asks: the load notices nothing. Then it runs what
// the package runs when it is removed: nothing of ours is left in the kernel.
func TestUpgradeUnderTraffic(t *testing.T) {
	w := newTenants(t)
	load := startLoad(t, w)
	for _, name := range []string{"host1", "proxy1"} {
		a := w.agents[name]
		if asked := a.maintainer(t, "preremove", "upgrade", "1.1.0"); asked != "" {
			t.Errorf("%s: before the files are replaced, systemctl was asked: %s", name, asked)
		}
		asked := a.maintainer(t, "postinstall", "configure", "1.0.0")
		if !strings.Contains(asked, "try-restart vpcproxyd.service\n") || strings.Contains(asked, "stop") {
			t.Errorf("%s: after the files are replaced, systemctl was asked: %s", name, asked)
		}
		a.end(t)
		a.restart(t)
		a.settled(t)
		if n := a.writes(t); n != 0 {
			t.Errorf("%s wrote %d objects after the upgrade", name, n)
		}
	}
	load.unharmed(t)
	for _, name := range []string{"host1", "proxy1"} {
		a := w.agents[name]
		a.end(t)
		if asked := a.maintainer(t, "preremove", "remove"); !strings.Contains(asked, "disable --now vpcproxyd.service\n") {
			t.Errorf("%s: at the removal, systemctl was asked: %s", name, asked)
		}
		state, err := a.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(state) {
			if strings.Contains(line, "vpx-") || strings.Contains(line, "VPCPROXY") || strings.Contains(line, "proto 176") {
				t.Errorf("%s: left behind: %s", name, line)
			}
		}
	}
	unreachable(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress)
}

// end stops the agent as systemd does.
func (a *agent) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := a.process.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFunctionRoleNeedsTwoCapabilities runs the agent of a function host with
// what its unit leaves it.
func TestFunctionRoleNeedsTwoCapabilities(t *testing.T) {
	lab.Require(t, lab.Program("setpriv"))
	w := newWorld(t, tenants)
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
	w.attach(t, "blue", blueKey, w.Hosts[0].Pods[1])
	w.startAgent(t, w.Proxies[0].Machine, "proxy")
	program := filepath.Join(t.TempDir(), "vpcproxyd")
	script := "#!/bin/sh\nexec setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all --no-new-privs " + w.daemon + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w.daemon = program
	w.startAgent(t, w.Hosts[0].Machine, "function")
	for _, a := range w.agents {
		a.awaitReady(t)
	}
	w.settle(t)
	w.reached(t)
}
