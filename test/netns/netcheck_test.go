package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// tunnelWay is what a node has measured through a tunnel.
type tunnelWay struct {
	Node         string
	Sent         int
	ArrivedThere int
	Answered     int
	RTT          time.Duration `json:"rttNanoseconds"`
	MTUThere     int
	MTUBack      int
	NeededMTU    int
}

// measured is one node's answer of netcheck.
type measured struct {
	Node     string
	Tunnels  []tunnelWay
	Findings []finding
}

// measure runs netcheck on both ends: what the host says, and the proxy.
func (c *clinic) measure(t *testing.T) (host, proxy measured) {
	t.Helper()
	out, _ := c.vpcproxyctl(t, c.host.Machine, "netcheck", "--proxy-socket", c.proxySocket, "-o", "json")
	var all []measured
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil || len(all) != 2 || len(all[0].Tunnels) != 1 || len(all[1].Tunnels) != 1 {
		t.Fatal(errors.Join(err, fmt.Errorf("want a tunnel of each of two nodes:\n%s", out)))
	}
	return all[0], all[1]
}

func (m measured) found(code string) bool {
	return slices.ContainsFunc(m.Findings, func(f finding) bool { return f.Code == code && f.Node == m.Node })
}

// netchecks plants what concerns GRE alone, in one direction: pings on the underlay
// do not notice.
func (c *clinic) netchecks(t *testing.T) {
	const full = 1472 // 1500 less GRE with a key
	// gre drops GRE on its way to the proxy.
	gre := func(condition string) string {
		return chain("forward", "accept", "ip daddr "+c.Proxies[0].Underlay.String()+" ip protocol gre "+condition+" drop")
	}
	// What a smaller packet size, planted before, has taught the kernels.
	for _, m := range []*topo.Machine{c.Hosts[0].Machine, c.Proxies[0].Machine} {
		typeLines(t, m, "ip route flush cache")
	}
	for _, tc := range []struct {
		name, plant, mend string
		code              string // found on both nodes, if on any
		want              func(host, proxy tunnelWay) bool
	}{
		{name: "sound", want: func(h, p tunnelWay) bool {
			return h.Sent == 20 && h.ArrivedThere == 20 && h.Answered == 20 && h.MTUThere == full && h.MTUBack == full && h.NeededMTU == full && h.RTT > 0 &&
				p.Sent == 20 && p.ArrivedThere == 20 && p.Answered == 20 && p.MTUThere == full && p.MTUBack == full
		}},
		{"one in four is lost on the way to the proxy", gre("numgen inc mod 4 0"), dropOther, "tunnel-loss", func(h, p tunnelWay) bool {
			// Each direction's loss is the other node's in the other direction.
			return h.Sent == 20 && h.ArrivedThere >= 12 && h.ArrivedThere <= 18 && h.Answered == h.ArrivedThere && h.MTUThere == full && h.MTUBack == full &&
				p.ArrivedThere == 20 && p.Answered >= 12 && p.Answered <= 18
		}},
		{"large ones are lost on the way to the proxy", gre("ip length 1401-65535"), dropOther, "tunnel-mtu", func(h, p tunnelWay) bool {
			const most = 1400 - 28
			return h.Answered == 20 && h.MTUThere <= most && h.MTUThere > most-4 && h.MTUBack == full && p.MTUThere == full && p.MTUBack <= most && p.MTUBack > most-4
		}},
		{"a long way", "tc qdisc add dev proxy1 root netem delay 60ms", "tc qdisc del dev proxy1 root", "", func(h, p tunnelWay) bool {
			return h.Answered == 20 && p.Answered == 20 && h.RTT >= 60*time.Millisecond && h.RTT < 400*time.Millisecond && p.RTT >= 60*time.Millisecond
		}},
		{"none arrive", gre(""), dropOther, "tunnel-silent", func(h, p tunnelWay) bool {
			return h.Sent == 20 && h.ArrivedThere == -1 && h.Answered == 0 && p.ArrivedThere == -1
		}},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "-"), func(t *testing.T) {
			if tc.plant != "" {
				typeLines(t, c.Router, tc.plant)
				defer typeLines(t, c.Router, tc.mend)
			}
			host, proxy := c.measure(t)
			if !tc.want(host.Tunnels[0], proxy.Tunnels[0]) {
				t.Errorf("measured %+v\nand from the proxy %+v", host.Tunnels[0], proxy.Tunnels[0])
			}
			for _, code := range []string{"tunnel-loss", "tunnel-mtu", "tunnel-silent"} {
				if want := code == tc.code; host.found(code) != want || proxy.found(code) != want {
					t.Errorf("%s: found on the host %t, on the proxy %t; want %t", code, host.found(code), proxy.found(code), want)
				}
			}
			if host.found("peer-loss") || host.found("path-mtu") || host.found("peer-unreachable") {
				t.Errorf("the underlay is blamed: %+v", host.Findings)
			}
		})
	}
}
