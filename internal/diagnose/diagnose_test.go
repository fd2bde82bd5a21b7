package diagnose

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/diagnose anew")

const docs = "../../docs/diagnose"

// TestPages keeps docs/diagnose, which is made here, as the codes are.
func TestPages(t *testing.T) {
	pages := map[string]string{"README.md": Index()}
	for _, c := range Codes() {
		if pages[c.Name+".md"] != "" || c.Title == "" || c.Means == "" || c.Mend == "" || severityOrder[c.Severity] == 0 && c.Severity != Error {
			t.Errorf("%+v is not whole, or there twice", c)
		}
		pages[c.Name+".md"] = c.Markdown()
	}
	if *update {
		if err := os.MkdirAll(docs, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, want := range pages {
			if err := os.WriteFile(filepath.Join(docs, name), []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	there, err := filepath.Glob(docs + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(there) != len(pages) {
		t.Errorf("%d pages for %d codes and an index", len(there), len(pages)-1)
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil || string(got) != want {
			t.Errorf("%s differs from the catalog; write it anew with `go test ./internal/diagnose -update` (%v)", name, err)
		}
	}
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// sound is a node of which there is nothing to say.
func sound() *Evidence {
	return &Evidence{
		Node: "n", IPTables: "nft", Time: time.Unix(1e9, 0), Clock: Clock{Synchronized: true},
		Underlay:    Underlay{Address: ip("192.168.4.4"), Link: "eth0", MTU: 1500, Up: true},
		Sysctls:     map[string]string{"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/vpx-red/rp_filter": "0"},
		Attachments: []Attachment{{Name: "red", Link: "vpx-red", LinkMTU: 1472, Ready: true}, {Name: "blue", Netns: "vpx-blue", Link: "vpx-blue", LinkMTU: 1472, Ready: true, ENI: &ENI{Name: "eth1", Up: true, Carrier: true, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.101.10/24")}}}},
		Rooms:       []Room{{Forwarding: true, Connections: 10, Limit: 1000}},
		Neighbors:   NeighborTable{Entries: 10, Limit: 1024},
		Certificate: &Certificate{Directory: "/etc/tls", Expires: time.Unix(1e9, 0).Add(300 * 24 * time.Hour)},
		Disk:        Disk{Path: "/var/lib/vpcproxy", Free: 1 << 30, Inodes: 1000},
		Peers:       []Peer{{Node: "host", Address: ip("192.168.80.8"), Sent: 5, Received: 5, MTU: 1500, Needed: 1500}},
		Tunnels: []Tunnel{
			{Attachment: "red", Node: "host", Address: ip("192.168.80.8"), Sent: 5, There: 5, Back: 5, MTUThere: 1472, MTUBack: 1472, Needed: 1472},
			{Attachment: "blue", Node: "host", Idle: "this proxy is not the active one", There: -1},
		},
	}
}

func TestDoctor(t *testing.T) {
	if got := Doctor(sound()); len(got) != 0 {
		t.Fatalf("found on a sound node: %+v", got)
	}
	no := false
	for _, tc := range []struct {
		code string
		with func(*Evidence)
	}{
		{"intent-lost", func(e *Evidence) { e.Agent.IntentProblem = "refused" }},
		{"intent-held", func(e *Evidence) { e.Agent.Held = "3 of 4 vanished" }},
		{"plan-stale", func(e *Evidence) { e.Agent.PlanProblem = "facts: denied" }},
		{"plan-problem", func(e *Evidence) { e.Agent.Problems = []Problem{{"red", "no interface"}} }},
		{"routes-differ", func(e *Evidence) {
			e.Differences = []Difference{{Kind: "routes", Op: "create", Key: "k", Commands: []string{"ip route add"}, Attachment: "red"}}
		}},
		{"kernel-feature", func(e *Evidence) { e.Missing = []MissingFeature{{"gre", "unknown", "modprobe ip_gre"}} }},
		{"ip-forward", func(e *Evidence) { e.Rooms[0].Forwarding = false }},
		{"rp-filter", func(e *Evidence) {
			e.Sysctls["net/ipv4/conf/all/rp_filter"], e.Sysctls["net/ipv4/conf/vpx-red/rp_filter"] = "1", "2"
		}},
		{"rp-filter-drops", func(e *Evidence) { e.Sysctls["net/ipv4/conf/vpx-red/rp_filter"] = "1" }},
		{"neighbor-table", func(e *Evidence) { e.Neighbors.Entries = 1000 }},
		{"conntrack-full", func(e *Evidence) { e.Rooms[0].Connections = 900 }},
		{"port-exhaustion", func(e *Evidence) {
			e.Rooms[0].Busiest = []Ports{{ip("172.16.101.10"), "172.16.101.5:80", PortLimit - 1}}
		}},
		{"foreign-chain", func(e *Evidence) {
			e.Chains = []Chain{{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: "forward", Policy: "drop"}}
		}},
		{"gre-blocked", func(e *Evidence) {
			e.Chains = []Chain{{Family: "ip", Table: "filter", Name: "INPUT", Hook: "input", Policy: "accept", Drops: 1, GRE: 1}}
		}},
		{"iptables-two", func(e *Evidence) { e.LegacyToo = true }},
		{"network-manager", func(e *Evidence) { e.Managers = []Manager{{"systemd-networkd", true, "removes rules"}} }},
		{"certificate-expired", func(e *Evidence) { e.Certificate.Expires = e.Time }},
		{"certificate-expires", func(e *Evidence) { e.Certificate.Expires = e.Time.Add(24 * time.Hour) }},
		{"clock", func(e *Evidence) { e.Clock.Synchronized = false }},
		{"disk-full", func(e *Evidence) { e.Disk.Free = 0 }},
		{"not-observed", func(e *Evidence) { e.Failed = []string{"x"} }},
		{"underlay-missing", func(e *Evidence) { e.Underlay.Up = false }},
		{"peer-unreachable", func(e *Evidence) { e.Peers[0].Received = 0 }},
		{"peer-loss", func(e *Evidence) { e.Peers[0].Received = 4 }},
		{"path-mtu", func(e *Evidence) { e.Peers[0].MTU = 1400 }},
		{"foreign-chain", func(e *Evidence) {
			e.Legacy = []LegacyChain{{Family: "IPv4", Table: "filter", Name: "FORWARD", Policy: "DROP"}}
		}},
		{"foreign-chain", func(e *Evidence) {
			e.Legacy = []LegacyChain{{Family: "IPv6", Table: "filter", Name: "INPUT", Policy: "DROP"}}
		}},
		{"gre-blocked", func(e *Evidence) {
			e.Legacy = []LegacyChain{{Family: "IPv4", Table: "raw", Name: "PREROUTING", Policy: "ACCEPT", GRE: 1, Rules: []string{"-A PREROUTING -p gre -j DROP"}}}
		}},
		{"legacy-nat", func(e *Evidence) {
			e.Legacy = []LegacyChain{{Family: "IPv4", Table: "nat", Name: "POSTROUTING", Policy: "ACCEPT", Rules: []string{"-A POSTROUTING -j MASQUERADE"}, More: 2}}
		}},
		{"tunnel-silent", func(e *Evidence) { e.Tunnels[0].There, e.Tunnels[0].Back = -1, 0 }},
		{"tunnel-loss", func(e *Evidence) { e.Tunnels[0].There, e.Tunnels[0].Back = 5, 4 }},
		{"tunnel-mtu", func(e *Evidence) { e.Tunnels[0].MTUBack = 1400 }},
		{"eni-down", func(e *Evidence) { e.Attachments[1].ENI.Carrier = false }},
		{"eni-address", func(e *Evidence) { e.Attachments[1].ENI.Addresses = nil }},
		{"gateway-silent", func(e *Evidence) { e.Attachments[1].ENI.Answers = &no }},
		{"egress-drops", func(e *Evidence) { e.Attachments[1].ENI.Drops = 3 }},
		{"havip-mismatch", func(e *Evidence) { e.Groups = []Group{{Name: "g", State: "Active", Discrepancies: []string{"x"}}} }},
		{"no-election", func(e *Evidence) { e.Groups = []Group{{Name: "g", Problem: "no link"}} }},
		{"no-active", func(e *Evidence) { e.Groups = []Group{{Name: "g", State: "Backup"}} }},
		{"unfit", func(e *Evidence) {
			e.Groups = []Group{{Name: "g", State: "Fault", Active: "p2", Down: []string{"eni"}}}
		}},
		{"source-check", func(e *Evidence) { e.Attachments[1].ENI.SNAT = ip("172.16.101.99") }},
	} {
		t.Run(tc.code, func(t *testing.T) {
			e := sound()
			tc.with(e)
			got := Doctor(e)
			if len(got) != 1 || got[0].Code != tc.code || got[0].Summary == "" || got[0].Node != "n" {
				t.Fatalf("got %+v", got)
			}
			i := slices.IndexFunc(Codes(), func(c Code) bool { return c.Name == tc.code })
			if i < 0 || Codes()[i].Severity != got[0].Severity || Codes()[i].Page() != got[0].Page {
				t.Errorf("the catalog has another %s", tc.code)
			}
		})
	}
	// Rules of iptables come after ours.
	e := sound()
	e.Chains = []Chain{{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Policy: "drop", Drops: 3}}
	if got := Doctor(e); len(got) != 0 {
		t.Errorf("docker's policy is none of our business: %+v", got)
	}
}

// walks are sightings of a probe that comes through.
func walks() (host, proxy *Side) {
	seen := func(netns, device string, out, gre bool, kind string) Sighting {
		return Sighting{Netns: netns, Device: device, Out: out, GRE: gre, Kind: kind, To: netip.AddrPortFrom(ip("10.244.1.5"), 1), From: netip.AddrPortFrom(ip("172.16.101.5"), 80)}
	}
	host = &Side{Node: "host", Attachment: "red", Tunnel: "vpx-red", Mark: 1, Lookup: Lookup{Link: "vpx-red", NBMA: ip("192.168.4.4")}, Seen: []Sighting{
		seen("", "vpx-red", true, false, Request), seen("", "eth0", true, true, Request),
		seen("", "eth0", false, true, Answer), seen("", "vpx-red", false, false, Answer), seen("", "veth1", true, false, Answer),
	}}
	proxy = &Side{Node: "proxy", Attachment: "red", Netns: "vpx-red", Tunnel: "vpx-red", ENI: "eth1", Back: Lookup{NBMA: ip("192.168.80.8")}, Seen: []Sighting{
		seen("", "eth0", false, true, Request), seen("vpx-red", "vpx-red", false, false, Request), seen("vpx-red", "eth1", true, false, Request),
		seen("vpx-red", "eth1", false, false, Answer), seen("vpx-red", "vpx-red", true, false, Answer), seen("", "eth0", true, true, Answer),
	}}
	return host, proxy
}

func TestExplain(t *testing.T) {
	from, to := ip("10.244.1.5"), netip.MustParseAddrPort("172.16.101.5:80")
	host, proxy := walks()
	for _, p := range []*Side{proxy, nil} {
		if got := Explain(from, to, host, p); !got.Reached || len(got.Findings) != 0 {
			t.Fatalf("%+v", got)
		}
	}
	// How much of the way is seen, in order of the way, and what follows.
	way := []struct {
		onHost, onProxy int
		code            string
	}{
		{0, 0, "dropped-on-host"}, {1, 0, "dropped-at-tunnel"}, {2, 0, "gre-lost"}, {2, 1, "peer-refused"}, {2, 2, "dropped-on-proxy"},
		{2, 3, "server-silent"}, {2, 4, "answer-dropped-on-proxy"}, {2, 5, "answer-dropped-on-proxy"}, {2, 6, "gre-lost"},
		{3, 6, "peer-refused"}, {4, 6, "answer-dropped-on-host"},
	}
	for _, w := range way {
		host, proxy := walks()
		host.Seen, proxy.Seen = host.Seen[:w.onHost], proxy.Seen[:w.onProxy]
		got := Explain(from, to, host, proxy)
		if got.Reached || len(got.Findings) != 1 || got.Findings[0].Code != w.code {
			t.Errorf("seen %d and %d times: %+v", w.onHost, w.onProxy, got.Findings)
		}
		stops := 0
		for _, h := range got.Hops {
			if h.State == "stopped" {
				stops++
			}
		}
		if stops != 1 {
			t.Errorf("seen %d and %d times: %d hops are where it stopped", w.onHost, w.onProxy, stops)
		}
	}
	for code, with := range map[string]func(*Side){
		"no-attachment": func(s *Side) { s.Attachment = "" },
		"no-path":       func(s *Side) { s.Lookup = Lookup{Error: "no route to host"} },
		"other-way":     func(s *Side) { s.Lookup.Link = "eth0" },
		"no-answer":     func(s *Side) { s.Seen = s.Seen[:2] },
		"port-closed":   func(s *Side) { s.Seen[2].Kind, s.Seen[3].Kind, s.Seen[4].Kind = Refused, Refused, Refused },
		"refused-on-the-way": func(s *Side) {
			s.Seen = append(s.Seen[:2:2], Sighting{Kind: Unreachable, Code: 1, From: netip.AddrPortFrom(ip("192.168.4.4"), 0)})
		},
	} {
		host, _ := walks()
		with(host)
		if got := Explain(from, to, host, nil); len(got.Findings) == 0 || got.Findings[0].Code != code {
			t.Errorf("%s: %+v", code, got.Findings)
		}
	}
	host, proxy = walks()
	host.Seen, proxy.Seen, proxy.Silent = host.Seen[:2], proxy.Seen[:2], ip("172.16.101.5")
	if got := Explain(from, to, host, proxy); got.Findings[0].Code != "server-absent" || !strings.Contains(got.Findings[0].Summary, "172.16.101.5") {
		t.Errorf("%+v", got.Findings)
	}
}
