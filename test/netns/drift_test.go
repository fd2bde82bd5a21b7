package netns

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// repairLimit is the product's promise: from the event until it is undone.
const repairLimit = time.Second

// repairForks is how many programs the repair of a packet filter may run:
// iptables for both families, three tables each, before and after, and whatever
// disturbs it meanwhile.
const repairForks = 20

// unhurried is a limit where programs are slow to start, as on emulated
// processors: longer by those that a repair may run. Elsewhere that is nothing.
func unhurried(t *testing.T, m *topo.Machine, limit time.Duration) time.Duration {
	t.Helper()
	const runs = 5
	start := time.Now()
	for range runs {
		typeLines(t, m, "true")
	}
	return limit + repairForks*time.Since(start)/runs
}

// drift is something that somebody else does to what is ours.
type drift struct {
	name string
	do   string // the shell line that does it
	look string // the shell line whose output must become what it was
}

// In the namespace of red's attachment on the proxy.
const inRed = "ip netns exec vpx-red "

var (
	showNAT    = "iptables-save -t nat | grep VPCPROXY | sort"
	showMangle = "iptables-save -t mangle | grep VPCPROXY | sort"
	showFilter = "iptables-save -t filter | grep VPCPROXY | sort"
	showTable  = "nft -s list table inet vpcproxy | sort"
	showRed    = "ip -o -d link show dev vpx-red | sed 's/^[0-9]*: //; s/numtxqueues.*//'; ip -o -4 address show dev vpx-red | sed 's/^[0-9]*: //'; ip neigh show dev vpx-red; ip route show table all proto 176 | sort"
)

// rename renames a link, which must be down for it, against whoever sets it up: that
// one does not get the only processor of a guest meanwhile.
func rename(link string) string {
	return `until chrt --fifo 1 sh -c "ip link set ` + link + ` down && ip link set ` + link + ` name other0" 2>/dev/null; do :; done`
}

var hostDrifts = []drift{
	{"rule deleted", "ip rule del priority 17600", "ip rule show | sort"},
	{"all rules deleted", "ip rule del priority 17600; ip rule del priority 17600", "ip rule show | sort"},
	{"route deleted", "ip route show table all proto 176 | grep 'via.*vpx-red' | sed 's/onlink//' | xargs ip route del", "ip route show table all proto 176 | sort"},
	{"routes flushed", "ip route flush table all proto 176", "ip route show table all proto 176 | sort"},
	{"neighbor deleted", "ip neigh del 100.64.0.4 dev vpx-red", "ip neigh show dev vpx-red"},
	{"neighbor changed", "ip neigh replace 100.64.0.4 lladdr 192.168.4.99 nud permanent dev vpx-red", "ip neigh show dev vpx-red"},
	{"address deleted", "ip address flush dev vpx-red", showRed},
	{"nat chain deleted", "iptables -t nat -D POSTROUTING 1; iptables -t nat -F VPCPROXY-POSTROUTING; iptables -t nat -X VPCPROXY-POSTROUTING", showNAT},
	{"jump deleted", "n=$(iptables -n -t nat -L POSTROUTING --line-numbers | awk '/VPCPROXY/{print $1; exit}'); iptables -t nat -D POSTROUTING $n", showNAT},
	{"rule inserted into a chain of ours", "iptables -I VPCPROXY-FORWARD -j ACCEPT", showFilter},
	{"iptables -F", "iptables -F", showFilter},
	{"iptables -t nat -F", "iptables -t nat -F", showNAT},
	{"iptables -t mangle -F", "iptables -t mangle -F", showMangle},
	{"nft table deleted", "nft delete table inet vpcproxy", showTable},
	{"nft map flushed", "nft flush map inet vpcproxy steer4_32_24", showTable},
	{"nft flush ruleset", "nft flush ruleset", showTable + "; " + showNAT + "; " + showFilter},
	{"device down", "ip link set vpx-red down", showRed},
	{"device down and up", "ip link set vpx-red down; ip link set vpx-red up", showRed},
	{"MTU changed", "ip link set vpx-red mtu 1300", showRed},
	{"key changed", "ip link change vpx-red type gre local 192.168.80.8 key 999 ttl 64", showRed},
	{"device renamed", rename("vpx-red"), showRed},
	{"device deleted", "ip link del vpx-red", showRed},
	{"ip_forward", "sysctl -q -w net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward"},
	{"rp_filter", "sysctl -q -w net.ipv4.conf.vpx-red.rp_filter=1", "sysctl net.ipv4.conf.vpx-red.rp_filter"},
	{"route replaced", "t=$(ip route show table all proto 176 | sed -n 's/.*vpx-red table \\([0-9]*\\).*/\\1/p'); ip route replace 172.16.101.0/24 via 192.168.80.1 dev eth0 table $t", "ip route show table all | grep 172.16.101"},
}

var proxyDrifts = []drift{
	{"neighbor deleted", "ip -n vpx-red neigh del 100.64.0.80 dev vpx-red", "ip -n vpx-red neigh show dev vpx-red"},
	{"route deleted", "ip -n vpx-red route flush proto 176", "ip -n vpx-red route show"},
	{"iptables -F", inRed + "iptables -F", inRed + showFilter},
	{"iptables -t nat -F", inRed + "iptables -t nat -F", inRed + showNAT},
	{"nft flush ruleset", inRed + "nft flush ruleset", inRed + showNAT + "; " + inRed + showFilter},
	{"nft flush ruleset on the underlay", "nft flush ruleset", showTable},
	{"egress guard removed", inRed + "tc qdisc del dev eth1 clsact", inRed + "tc filter show dev eth1 egress | grep -v pref"},
	{"device deleted", "ip -n vpx-red link del vpx-red", inRed + "sh -c \"" + showRed + "\""},
	{"device down and up", inRed + "sh -c 'ip link set vpx-red down; ip link set vpx-red up'", inRed + "sh -c \"" + showRed + "\""},
	{"device renamed", inRed + "sh -c '" + rename("vpx-red") + "'", inRed + "sh -c \"" + showRed + "\""},
	{"ENI down", "ip -n vpx-red link set eth1 down", "ip -n vpx-red -o link show eth1 | sed 's/^[0-9]*: //; s/state.*//'"},
	{"ENI's addresses flushed", "ip -n vpx-red address flush dev eth1", "ip -n vpx-red -o -4 address show eth1"},
	{"ENI's route deleted", "ip -n vpx-red route del 172.16.200.0/24", "ip -n vpx-red route show 172.16.200.0/24"},
	{"ip_forward", inRed + "sysctl -q -w net.ipv4.ip_forward=0", inRed + "sysctl net.ipv4.ip_forward"},
}

func TestDriftOnHost(t *testing.T) {
	w := newTenants(t)
	repaired(t, w, w.Hosts[0].Machine, hostDrifts)
}

func TestDriftOnProxy(t *testing.T) {
	w := newWorld(t, tenants)
	// A route that the ENI brings along.
	typeLines(t, w.Proxies[0].Machine, "ip route add 172.16.200.0/24 via 172.16.101.1 dev eth1")
	w.startTenants(t)
	repaired(t, w, w.Proxies[0].Machine, proxyDrifts)
}

// repaired does each drift and waits until what it changed looks as before,
// and traffic flows as before.
func repaired(t *testing.T, w *world, m *topo.Machine, drifts []drift) {
	t.Helper()
	for _, d := range drifts {
		ok := t.Run(strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
			before := look(t, m, d.look)
			if before == "" {
				t.Fatalf("%s shows nothing", d.look)
			}
			typeLines(t, m, d.do)
			done := time.Now()
			eventually(t, soon, func(context.Context) error {
				patient, cancel := context.WithTimeout(t.Context(), soon)
				defer cancel()
				after, err := m.Run(patient, "sh", "-c", d.look)
				if err == nil && after != before {
					err = fmt.Errorf("after %s, before:\n%safter:\n%s", d.do, before, after)
				}
				return err
			})
			// Looking takes longer than the repair, so the agent's log
			// says when that was.
			took, limit := w.agents[m.Name].lastWrite(t).Sub(done), unhurried(t, m, repairLimit)
			t.Logf("repaired after %v, of %v", took, limit)
			if took > limit {
				t.Errorf("the repair took %v, want %v", took, limit)
			}
			w.reached(t)
		})
		if !ok {
			// The next drift needs a sound state to begin with.
			w.agents[m.Name].resync(t)
		}
	}
}

// lastWrite is when the agent last logged that it changed something.
func (a *agent) lastWrite(t *testing.T) time.Time {
	t.Helper()
	var last time.Time
	for line := range strings.Lines(a.process.Log()) {
		var stamp string
		if _, err := fmt.Sscanf(line, "time=%s level=INFO msg=", &stamp); err != nil || !strings.Contains(line, " kind=") {
			continue
		}
		at, err := time.Parse(time.RFC3339, stamp)
		if err != nil {
			t.Fatalf("%s logged %q: %v", a.Name, line, err)
		}
		last = at
	}
	return last
}
