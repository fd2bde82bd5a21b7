package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// clinic is a world in which faults are planted, with a proxy whose agent can be
// asked from elsewhere.
type clinic struct {
	*world
	host, proxy *agent
	proxySocket string
}

func newClinic(t *testing.T) *clinic {
	w := newWorld(t, topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}})
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
	c := &clinic{world: w, proxySocket: filepath.Join(t.TempDir(), "p.sock")}
	c.host = w.startAgent(t, w.Hosts[0].Machine, "function")
	c.proxy = w.startAgent(t, w.Proxies[0].Machine, "proxy", "socket: "+c.proxySocket)
	c.host.awaitReady(t)
	c.proxy.awaitReady(t)
	answeredBy(t, w.Hosts[0].Pods[0].Machine, topo.ServerAddress, "red", w.Proxies[0].ENIs["red"].Address.Addr())
	return c
}

// finding is what a person is told.
type finding struct {
	Code, Severity, Node, Attachment, Summary, Page string
	Evidence, Fix                                   []string
}

type diagnosis struct {
	Reached  bool
	Hops     []struct{ Node, What, State, Detail string }
	Findings []finding
}

// diagnose runs a command of the host that prints findings.
func (c *clinic) diagnose(t *testing.T, args ...string) (diagnosis, int) {
	t.Helper()
	out, code := c.vpcproxyctl(t, c.host.Machine, append(args, "-o", "json")...)
	var d diagnosis
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&d); err != nil {
		t.Fatalf("%v: %v in:\n%s", args, err, out)
	}
	return d, code
}

// Commands of the faults' table.
var (
	traceBoth = "trace --from 10.244.1.5 --to 172.16.101.5:80 --proxy-socket PROXY"
	doctor    = "doctor --proxy-socket PROXY"
)

// fault is something that somebody has done, and what it must be called.
type fault struct {
	name  string
	on    string // the machine: host, proxy, router, vpc or intent
	plant string // shell line, or for intent: what to replace in red's manifest
	ask   string
	code  string
	node  string // where it is found
	fix   string // part of a fix
	mend  string
}

// chain is a table of another program with one rule or policy.
func chain(hook, policy, rule string) string {
	s := "nft add table inet other; nft 'add chain inet other c { type filter hook " + hook + " priority 10; policy " + policy + "; }'"
	if rule != "" {
		s += "; nft add rule inet other c " + rule
	}
	return s
}

const dropOther = "nft delete table inet other"

var faults = []fault{
	{name: "no attachment covers it", ask: "trace --from 10.244.1.5 --to 10.99.0.1:80", code: "no-attachment", node: "host1", fix: "vpcproxyctl bind"},
	{name: "nothing listens", ask: "trace --from 10.244.1.5 --to 172.16.101.5:81", code: "port-closed", node: "host1", fix: "correct the port"},
	{name: "a server that is not there", ask: "trace --from 10.244.1.5 --to 172.16.101.77:80 --proxy-socket PROXY", code: "server-absent", node: "proxy1", fix: "neigh show dev eth1"},
	{"forward chain of another program on the host", "host", chain("forward", "drop", ""), traceBoth, "dropped-on-host", "host1", "inet other", dropOther},
	{"the same, before anybody complains", "host", chain("forward", "drop", ""), doctor, "foreign-chain", "host1", `oifname "vpx-*" accept`, dropOther},
	{"GRE dropped on its way out of the host", "host", "iptables -I OUTPUT -p gre -j DROP", traceBoth, "dropped-at-tunnel", "host1", "ip route get", "iptables -D OUTPUT -p gre -j DROP"},
	{"a rule against GRE on the proxy", "proxy", "iptables -I INPUT -p gre -j DROP", doctor, "gre-blocked", "proxy1", "list chain ip filter INPUT", "iptables -D INPUT -p gre -j DROP"},
	{"GRE not decapsulated for that rule", "proxy", "iptables -I INPUT -p gre -j DROP", traceBoth, "peer-refused", "proxy1", "peers4", "iptables -D INPUT -p gre -j DROP"},
	{"proto 47 dropped between the nodes", "router", "iptables -I FORWARD -p gre -j DROP", traceBoth, "gre-lost", "host1", "protocol 47", "iptables -D FORWARD -p gre -j DROP"},
	{"proto 47 dropped on the way back", "router", "iptables -I FORWARD -p gre -s 192.168.4.4 -j DROP", traceBoth, "gre-lost", "proxy1", "protocol 47", "iptables -D FORWARD -p gre -s 192.168.4.4 -j DROP"},
	{"the same, seen from the host alone", "router", "iptables -I FORWARD -p gre -j DROP", "trace --from 10.244.1.5 --to 172.16.101.5:80", "no-answer", "host1", "--proxy-socket", "iptables -D FORWARD -p gre -j DROP"},
	{"GRE from an unknown address", "router", "nft add table ip other; nft 'add chain ip other c { type filter hook postrouting priority 300; }'; nft add rule ip other c oifname proxy1 ip protocol gre ip saddr set 192.168.66.6", traceBoth, "peer-refused", "proxy1", "underlayAddress", "nft delete table ip other"},
	{"a rule of another program comes first", "host", "ip rule add from all lookup 999 priority 100; ip route add 172.16.101.0/24 via 192.168.80.1 dev eth0 table 999", traceBoth, "other-way", "host1", "ip rule show", "ip rule del priority 100; ip route flush table 999"},
	{"a filter of another program on the proxy", "proxy", "ip netns exec vpx-red sh -c \"" + strings.ReplaceAll(chain("forward", "accept", "iifname vpx-red drop"), `"`, `\"`) + "\"", traceBoth, "dropped-on-proxy", "proxy1", "route get", "ip netns exec vpx-red " + dropOther},
	{"a security group without the ENI", "vpc", "iptables -I INPUT -p tcp --dport 80 -j DROP", traceBoth, "server-silent", "host1", "security group", "iptables -D INPUT -p tcp --dport 80 -j DROP"},
	{"answers dropped on the proxy", "proxy", "ip netns exec vpx-red sh -c \"" + chain("prerouting", "accept", "iifname eth1 tcp sport 80 drop") + "\"", traceBoth, "answer-dropped-on-proxy", "proxy1", "neigh show", "ip netns exec vpx-red " + dropOther},
	{"answers dropped on the host", "host", chain("forward", "accept", "iifname vpx-red drop"), traceBoth, "answer-dropped-on-host", "host1", "inet other", dropOther},
	{"packets of full size do not pass", "router", "ip link set host1 mtu 1300", doctor, "path-mtu", "host1", "mtu 1", "ip link set host1 mtu 1500"},
	{"a peer that does not answer", "router", "iptables -I FORWARD -p icmp -j DROP", doctor, "peer-unreachable", "host1", "ip route get 192.168.4.4", "iptables -D FORWARD -p icmp -j DROP"},
	{"packets are lost", "router", chain("forward", "accept", "ip daddr 192.168.4.4 icmp type echo-request numgen inc mod 3 0 drop"), "netcheck --proxy-socket PROXY", "peer-loss", "host1", "netcheck", dropOther},
	{"an ENI without carrier", "vpc", "ip link set PORT down", doctor, "eni-down", "proxy1", "link set eth1 up", "ip link set PORT up"},
	{"reverse path filtering", "host", "sysctl -q -w net.ipv4.conf.all.rp_filter=1", doctor, "rp-filter", "host1", "rp_filter=2", "sysctl -q -w net.ipv4.conf.all.rp_filter=0"},
	{"an interface in the tunnel's place", "host", "until chrt --fifo 1 sh -c 'ip link del vpx-red; ip link add vpx-red type veth peer name other1' 2>/dev/null; do :; done", doctor, "links-differ", "host1", "resync", "ip link del vpx-red"},
	{"a gateway that is not there", "intent", "enis: [{=enis: [{gateway: 172.16.101.99, ", doctor, "gateway-silent", "proxy1", "neigh show", ""},
	{"a source that the cloud may not know", "intent", "greKey:=snatAddress: 172.16.101.99\n  greKey:", doctor, "source-check", "proxy1", "assign 172.16.101.99", ""},
	{"an ENI that is not there", "intent", `mac: "02:=mac: "06:`, doctor, "plan-problem", "proxy1", "describe attachment red", ""},
	{"a manifest that does not decode", "intent", "spec:=specc:", doctor, "intent-lost", "host1", "vpcproxyctl status", ""},
	{"a policy of iptables-legacy", "host", "iptables-legacy -P FORWARD DROP", doctor, "foreign-chain", "host1", "iptables-legacy -t filter -I FORWARD -o vpx-+ -j ACCEPT", "iptables-legacy -P FORWARD ACCEPT"},
	{"translation by iptables-legacy", "host", "iptables-legacy -t nat -A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE", doctor, "legacy-nat", "host1", "POSTROUTING -o vpx-+ -j ACCEPT", "iptables-legacy -t nat -F"},
	{"tables of iptables-legacy", "host", "iptables-legacy -t filter -S > /dev/null", doctor, "iptables-two", "host1", "iptables-legacy-save", "true"},
}

func TestDiagnose(t *testing.T) {
	c := newClinic(t)
	t.Run("sound", func(t *testing.T) {
		d, code := c.diagnose(t, strings.Fields(c.line(traceBoth))...)
		if !d.Reached || code != 0 || len(d.Hops) < 14 {
			t.Errorf("exit code %d: %+v", code, d)
		}
		d, code = c.diagnose(t, strings.Fields(c.line(doctor))...)
		if code != 0 || slices.ContainsFunc(d.Findings, func(f finding) bool { return f.Severity != "info" && f.Code != "clock" }) {
			t.Errorf("exit code %d: %+v", code, d.Findings)
		}
	})
	for _, f := range faults {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { c.planted(t, f) })
	}
	t.Run("netcheck", c.netchecks)
	t.Run("the agent is dead", func(t *testing.T) {
		c.host.kill(t)
		for _, line := range []string{traceBoth, "doctor"} {
			d, code := c.diagnose(t, strings.Fields(c.line(line))...)
			if len(d.Findings) != 1 || d.Findings[0].Code != "agent-down" || code != 6 {
				t.Errorf("%s: exit code %d: %+v", line, code, d.Findings)
			}
		}
	})
}

// line fills in what is known only now.
func (c *clinic) line(s string) string {
	return strings.NewReplacer("PROXY", c.proxySocket, "PORT", c.Proxies[0].ENIs["red"].Port).Replace(s)
}

func (c *clinic) machineOf(name string) *topo.Machine {
	switch name {
	case "host":
		return c.host.Machine
	case "proxy":
		return c.proxy.Machine
	case "router":
		return c.Router
	}
	return c.VPCs["red"].Machine
}

// planted plants a fault, wants it named, and mends it.
func (c *clinic) planted(t *testing.T, f fault) {
	before := c.attachment("red", redKey, c.Hosts[0].Pods[0])
	switch f.on {
	case "":
	case "intent":
		old, now, _ := strings.Cut(f.plant, "=")
		c.put(t, "red", strings.Replace(before, old, now, 1))
		defer c.put(t, "red", before)
	default:
		typeLines(t, c.machineOf(f.on), c.line(f.plant))
		defer typeLines(t, c.machineOf(f.on), c.line(f.mend))
	}
	args := strings.Fields(c.line(f.ask))
	eventually(t, soon, func(context.Context) error { // an intent takes a moment to be followed
		d, _ := c.findings(t, args)
		i := slices.IndexFunc(d.Findings, func(g finding) bool { return g.Code == f.code && g.Node == f.node })
		if i < 0 {
			err := fmt.Errorf("%s on %s is not found: %+v\nhops %+v", f.code, f.node, d.Findings, d.Hops)
			if f.on == "intent" {
				return err
			}
			t.Fatal(err)
		}
		got := d.Findings[i]
		if fixes := strings.Join(got.Fix, "\n"); !strings.Contains(fixes, f.fix) {
			t.Errorf("the fix for %s lacks %q:\n%s", f.code, f.fix, fixes)
		}
		if args[0] == "trace" && d.Findings[0].Code != f.code {
			t.Errorf("trace names %s first", d.Findings[0].Code)
		}
		t.Logf("%s: %s %q; mend: %q", got.Code, got.Summary, got.Evidence, got.Fix)
		return nil
	})
}

// findings asks; netcheck answers with a list, an element for each node.
func (c *clinic) findings(t *testing.T, args []string) (diagnosis, error) {
	if args[0] != "netcheck" {
		d, _ := c.diagnose(t, args...)
		return d, nil
	}
	out, _ := c.vpcproxyctl(t, c.host.Machine, append(args, "-o", "json")...)
	var all []diagnosis
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil || len(all) != 2 {
		t.Fatal(errors.Join(err, fmt.Errorf("%d nodes in:\n%s", len(all), out)))
	}
	return diagnosis{Findings: slices.Concat(all[0].Findings, all[1].Findings)}, nil
}
