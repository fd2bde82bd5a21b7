package netns

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Configurations of other implementations as route reflectors, for the address
// %[1]s and the AS %[2]d; docs/operations.md has them for operators.
const (
	frrConfig = `router bgp %[2]d
 bgp router-id %[1]s
 bgp cluster-id %[1]s
 no bgp default ipv4-unicast
 bgp graceful-restart
 neighbor clients peer-group
 neighbor clients remote-as %[2]d
 neighbor clients timers 3 9
 neighbor clients passive
 bgp listen range 192.168.0.0/16 peer-group clients
 address-family ipv4 vpn
  neighbor clients activate
  neighbor clients route-reflector-client
  neighbor clients send-community both
 exit-address-family
exit
`
	birdConfig = `log stderr all;
router id %[1]s;
vpn4 table vpntab;
protocol device {}
protocol bgp {
	local %[1]s as %[2]d;
	neighbor range 192.168.0.0/16 as %[2]d;
	multihop;
	rr client;
	hold time 9;
	error wait time 2, 10;
	graceful restart on;
	vpn4 mpls { table vpntab; import all; export all; import table; };
}
`
	gobgpConfig = `[global.config]
  as = %[2]d
  router-id = "%[1]s"
  local-address-list = ["%[1]s"]
[[peer-groups]]
  [peer-groups.config]
    peer-group-name = "clients"
    peer-as = %[2]d
  [peer-groups.timers.config]
    hold-time = 9
  [peer-groups.route-reflector.config]
    route-reflector-client = true
    route-reflector-cluster-id = "%[1]s"
  [peer-groups.graceful-restart.config]
    enabled = true
    restart-time = 20
  [[peer-groups.afi-safis]]
    [peer-groups.afi-safis.config]
      afi-safi-name = "l3vpn-ipv4-unicast"
    [peer-groups.afi-safis.mp-graceful-restart.config]
      enabled = true
[[dynamic-neighbors]]
  [dynamic-neighbors.config]
    prefix = "192.168.0.0/16"
    peer-group = "clients"
`
)

// TestBGPInterop reflects routes by other implementations, one after another.
func TestBGPInterop(t *testing.T) {
	w := newRouted(t, bgpLayout)
	w.startNodes(t, "families: [vpnv4]")
	for _, r := range []struct {
		name, program, config string
		args                  []string
	}{
		{"FRR 8.4", "/usr/lib/frr/bgpd", frrConfig, []string{"-f", "/run/reflector.conf", "-Z", "-n", "-S", "-l", topo.ControlAddress.String(), "-i", "/run/bgpd.pid", "--vty_socket", "/run"}},
		{"BIRD 2.0", "bird", birdConfig, []string{"-f", "-c", "/run/reflector.conf", "-s", "/run/bird.ctl"}},
		{"GoBGP 3.10", "gobgpd", gobgpConfig, []string{"-f", "/run/reflector.conf", "--api-hosts", "unix:///run/gobgpd.sock"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			program, err := exec.LookPath(r.program)
			if err != nil {
				t.Fatalf("%v: run scripts/setup", err)
			}
			if err := w.Control.WriteFile("/run/reflector.conf", fmt.Sprintf(r.config, topo.ControlAddress, bgpASN)); err != nil {
				t.Fatal(err)
			}
			typeLines(t, w.Control, "chmod 755 /run", "chmod 644 /run/reflector.conf")
			reflector, err := w.Control.Start(nil, program, r.args...)
			if err != nil {
				t.Fatal(err)
			}
			host := w.agents["host1"]
			host.hears(t, 1)
			host.knows(t, 2)
			w.agents["proxy1"].has(t, 1)
			w.through(t, soon, 0)
			w.cordon(t, 0, true)
			w.through(t, routed, 1)
			w.cordon(t, 0, false)
			w.through(t, routed, 0)
			// An agent's restart loses nothing here, too.
			load := startLoad(t, w.world)
			w.agents["proxy1"].kill(t)
			w.agents["proxy1"].restart(t)
			w.agents["proxy1"].hears(t, 1)
			load.unharmed(t)
			if !reflector.Running() {
				t.Errorf("it has ended:\n%s", reflector.Log())
			}
			if err := reflector.Kill(); err != nil {
				t.Fatal(err)
			}
			host.hears(t, 0)
		})
	}
}
