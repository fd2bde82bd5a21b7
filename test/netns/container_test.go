package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// container is a script that starts a program as the DaemonSet's pod does: a root
// with nothing but the program, read-only, as is /proc/sys; NET_ADMIN and NET_RAW
// (SYS_CHROOT is for the script's own chroot); no_new_privs.
const container = `#!/bin/sh
set -e
root=/run/container
mkdir -p $root
mount -t tmpfs tmpfs $root
mkdir -p $root/proc $root/tmp $root/run/vpcproxy $root/var/lib/vpcproxy $root/host/proc/sys/net /run/vpcproxy /var/lib/vpcproxy
cp %s $root/vpcproxyd
mount --bind /tmp $root/tmp
mount --bind /run/vpcproxy $root/run/vpcproxy
mount --bind /var/lib/vpcproxy $root/var/lib/vpcproxy
mount -t proc proc $root/proc
mount --bind /proc/sys/net $root/host/proc/sys/net
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount -o remount,ro $root
exec setpriv --no-new-privs --bounding-set=-all,+net_admin,+net_raw,+sys_chroot --inh-caps=-all chroot $root /vpcproxyd "$@"
`

// TestContainer runs a host's agent with the rights and files that its pod in
// Kubernetes has, and not more.
func TestContainer(t *testing.T) {
	lab.Require(t, lab.Program("setpriv"))
	w := newWorld(t, tenants)
	host := w.Hosts[0]
	w.attach(t, "red", redKey, host.Pods[0])
	w.attach(t, "blue", blueKey, host.Pods[1])
	w.startAgent(t, w.Proxies[0].Machine, "proxy")
	program := filepath.Join(t.TempDir(), "container")
	if err := os.WriteFile(program, fmt.Appendf(nil, container, w.daemon), 0o755); err != nil {
		t.Fatal(err)
	}
	daemon := w.daemon
	w.daemon = program
	// The strictest host: the agent must set what it needs.
	typeLines(t, host.Machine, "sysctl -qw net.ipv4.conf.default.rp_filter=1")
	a := w.startAgent(t, host.Machine, "function", "sysctlDirectory: /host/proc/sys")
	w.daemon = daemon
	a.awaitReady(t)
	w.reached(t)
	if rules := look(t, host.Machine, "iptables-save; ip6tables-save"); strings.Contains(rules, "VPCPROXY-") {
		t.Errorf("there is no iptables in the container, and yet:\n%s", rules)
	}
	if caps := look(t, host.Machine, `for p in $(pgrep -x vpcproxyd); do [ "$(readlink /proc/$p/root)" = / ] || grep ^CapEff /proc/$p/status; done`); !strings.Contains(caps, "CapEff:\t0000000000043000") {
		t.Errorf("capabilities, want NET_ADMIN, NET_RAW and SYS_CHROOT:\n%s", caps)
	}
	typeLines(t, host.Machine, "nft flush ruleset", "ip route flush proto 176 table all")
	w.reached(t)
	if n := len(a.status(t).Report.Problems); n > 0 {
		t.Errorf("problems: %v", a.status(t).Report.Problems)
	}
	answeredBy(t, host.Pods[0].Machine, topo.ServerAddress, "red", w.Proxies[0].ENIs["red"].Address.Addr())
}
