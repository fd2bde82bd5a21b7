package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// TestDashboardAndAlertsNameRealMetrics has a pair do all that there are
// metrics of, and looks for what the dashboard and the alerts ask for.
func TestDashboardAndAlertsNameRealMetrics(t *testing.T) {
	p := &pair{world: newWorld(t, pairLayout), interval: time.Second}
	pki := filepath.Join(t.TempDir(), "pki")
	p.mustCtl(t, p.Control, "pki", "init", "--ca", pki)
	for _, node := range []string{"host1", "proxy1", "proxy2"} {
		p.mustCtl(t, p.Control, "pki", "issue", node, "--ca", pki)
	}
	p.config = metricsConfig + "\ntls: {directory: " + pki + "/NODE}\nbgp: {mode: mesh}"
	p.begin(t)
	// Flows that nobody ends add up.
	long := "sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=600 net.netfilter.nf_conntrack_udp_timeout_stream=600"
	typeLines(t, p.Hosts[0].Machine, long)
	stranger := traffic.IPv4{Source: topo.AttackerAddress, Destination: p.Proxies[0].Underlay, Protocol: protocolVRRP}
	if err := traffic.Inject(p.Attacker, stranger.Packet(make([]byte, 20))); err != nil {
		t.Fatal(err)
	}

	wanted := queries(t)
	real := map[string]map[string]bool{}
	flows := 0
	var lacks error // at the last look that came to its end
	eventually(t, soon, func(ctx context.Context) error {
		// Ever more connections, so that ports run out some day. A few looks must
		// do: scraping what has BGP takes a second where processors are busy.
		var ports []int
		for range 500 {
			flows++
			ports = append(ports, 10000+flows%50000)
		}
		if err := openFlows(p.Hosts[0].Pods[0].Machine, ports...); err != nil {
			return err
		}
		for _, a := range p.agents {
			families, err := a.scrape(ctx)
			if err != nil {
				return errors.Join(err, lacks)
			}
			for name, f := range families {
				for _, m := range f.GetMetric() {
					// As Prometheus stores histograms.
					for _, stored := range []string{name, name + "_bucket"} {
						if real[stored] == nil {
							real[stored] = map[string]bool{"instance": true, "job": true, "le": strings.HasSuffix(stored, "_bucket")}
						}
						for _, l := range m.GetLabel() {
							real[stored][l.GetName()] = true
						}
					}
				}
			}
		}
		var missing []string
		for _, q := range wanted {
			missing = append(missing, q.missing(real)...)
		}
		if len(missing) > 0 {
			slices.Sort(missing)
			lacks = fmt.Errorf("after %d connections:\n%s", flows, strings.Join(slices.Compact(missing), "\n"))
			return lacks
		}
		return nil
	})
}

// openFlows sends datagrams to red's server, each from a port of its own.
func openFlows(m *topo.Machine, ports ...int) error {
	server := net.UDPAddrFromAddrPort(netip.AddrPortFrom(topo.ServerAddress, traffic.HTTPPort))
	return m.InNetwork(func() error {
		for _, port := range ports {
			c, err := net.DialUDP("udp4", &net.UDPAddr{Port: port}, server)
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			if err := errors.Join(err, c.Close()); err != nil {
				return err
			}
		}
		return nil
	})
}

// query is what one selector asks for.
type query struct {
	where  string
	metric string
	labels []string
}

func (q query) missing(real map[string]map[string]bool) []string {
	labels, ok := real[q.metric]
	if !ok {
		return []string{q.where + ": no metric " + q.metric}
	}
	var out []string
	for _, l := range q.labels {
		if !labels[l] {
			out = append(out, fmt.Sprintf("%s: metric %s has no label %s, but %v", q.where, q.metric, l, slices.Sorted(maps.Keys(labels))))
		}
	}
	return out
}

var (
	selector = regexp.MustCompile(`\b((?:vpcproxy|process|go)_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)\s*(?:=|!=|=~|!~)\s*"`)
	grouping = regexp.MustCompile(`by \(([^)]*)\) \(`)
)

// queries are the selectors of the dashboard and of the alerts, with the labels
// that are matched and grouped by.
func queries(t *testing.T) []query {
	t.Helper()
	var out []query
	add := func(where, expression string) {
		var groups []string
		for _, g := range grouping.FindAllStringSubmatch(expression, -1) {
			for l := range strings.SplitSeq(g[1], ",") {
				groups = append(groups, strings.TrimSpace(l))
			}
		}
		for _, s := range selector.FindAllStringSubmatch(expression, -1) {
			q := query{where: where, metric: s[1], labels: slices.Clone(groups)}
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				q.labels = append(q.labels, m[1])
			}
			out = append(out, q)
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(shipped(t, "grafana/vpcproxy.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			add("panel "+p.Title, target.Expr)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(shipped(t, "prometheus/vpcproxy.rules.yaml"), &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			add("alert "+r.Alert, r.Expr)
		}
	}
	if len(out) < 60 {
		t.Fatalf("only %d selectors were found", len(out))
	}
	return out
}

// shipped reads a file below deploy.
func shipped(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
