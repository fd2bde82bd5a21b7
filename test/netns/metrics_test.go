package netns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// metricsConfig has an agent serve metrics.
const (
	metricsAddress = "127.0.0.1:9464"
	metricsConfig  = "metrics: {address: \"" + metricsAddress + "\"}"
)

// scrape is what Prometheus would read from an agent.
func (a *agent) scrape(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return traffic.Dial(ctx, a.Machine, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// value sums the samples of a metric that have the labels.
func value(families map[string]*dto.MetricFamily, name string, labels map[string]string) (sum float64, found bool) {
	for _, m := range families[name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		matches := true
		for k, v := range labels {
			matches = matches && has[k] == v
		}
		if matches {
			found = true
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum, found
}

// sample is a metric with what it must at least be.
type sample struct {
	metric string
	labels map[string]string
	least  float64
}

func (a *agent) measures(t *testing.T, samples ...sample) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		families, err := a.scrape(ctx)
		if err != nil {
			return err
		}
		for _, s := range samples {
			got, found := value(families, s.metric, s.labels)
			if !found || got < s.least {
				return fmt.Errorf("%s: %s%v is %v (found: %v), want at least %v", a.Name, s.metric, s.labels, got, found, s.least)
			}
		}
		return nil
	})
}

// TestMetrics lets things happen and reads of them at /metrics.
func TestMetrics(t *testing.T) {
	w := newWorld(t, tenants)
	w.attach(t, "red", redKey, w.Hosts[0].Pods[0])
	w.attach(t, "blue", blueKey, w.Hosts[0].Pods[1])
	host := w.startAgent(t, w.Hosts[0].Machine, "function", metricsConfig)
	proxy := w.startAgent(t, w.Proxies[0].Machine, "proxy", metricsConfig)
	host.awaitReady(t)
	proxy.awaitReady(t)
	w.settle(t)
	w.reached(t)

	const size = 1 << 20
	pod := w.Hosts[0].Pods[0].Machine
	if err := traffic.Download(t.Context(), pod, topo.ServerAddress, size); err != nil {
		t.Fatal(err)
	}
	flow, err := traffic.StartFlow(t.Context(), pod, topo.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Stop(time.Second)

	// What must not get through: GRE from a stranger, GRE that is forwarded,
	// a connection from the user VPC, and packets that nobody translated.
	key := uint32(redKey)
	smuggle := func(from *topo.Machine, source traffic.IPv4) {
		if err := traffic.Inject(from, source.Packet(traffic.GRE{Key: &key}.Packet(smuggled(topo.AttackerAddress)))); err != nil {
			t.Fatal(err)
		}
	}
	smuggle(w.Attacker, traffic.IPv4{Source: topo.AttackerAddress, Destination: w.Proxies[0].Underlay, Protocol: unix.IPPROTO_GRE})
	smuggle(pod, traffic.IPv4{Source: w.Hosts[0].Pods[0].Address, Destination: w.Proxies[0].Underlay, Protocol: unix.IPPROTO_GRE})
	attempt, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	_, _ = traffic.Get(attempt, w.VPCs["red"].Machine, w.Proxies[0].ENIs["red"].Address.Addr())
	proxy.kill(t)
	typeLines(t, proxy.Machine, inRed+"iptables -t nat -F")
	attempt, cancel = context.WithTimeout(t.Context(), never)
	defer cancel()
	_, _ = traffic.Get(attempt, pod, topo.ServerAddress)
	proxy.restart(t)
	typeLines(t, proxy.Machine, inRed+"ip route del 100.64.0.0/16")

	red := map[string]string{"attachment": "red"}
	proxy.measures(t,
		sample{"vpcproxy_attachment_receive_bytes_total", map[string]string{"attachment": "red", "device": "eni"}, size},
		sample{"vpcproxy_attachment_transmit_bytes_total", map[string]string{"attachment": "red", "device": "tunnel"}, size},
		sample{"vpcproxy_attachment_connections", red, 1},
		sample{"vpcproxy_attachment_ready", map[string]string{"attachment": "red", "role": "proxy"}, 1},
		sample{"vpcproxy_conntrack_entries", red, 1},
		sample{"vpcproxy_conntrack_limit", red, 1},
		sample{"vpcproxy_snat_connections", map[string]string{"attachment": "red", "source": w.Proxies[0].ENIs["red"].Address.Addr().String()}, 1},
		sample{"vpcproxy_dropped_packets_total", map[string]string{"attachment": "", "reason": "unknown_peer"}, 1},
		sample{"vpcproxy_dropped_packets_total", map[string]string{"attachment": "red", "reason": "inbound_user_vpc"}, 1},
		sample{"vpcproxy_dropped_packets_total", map[string]string{"attachment": "red", "reason": "no_source_nat"}, 1},
		sample{"vpcproxy_drift_detected_total", map[string]string{"kind": "routes"}, 1},
		sample{"vpcproxy_reconcile_duration_seconds", nil, 1},
		sample{"vpcproxy_reconcile_passes_total", nil, 1},
		sample{"vpcproxy_netlink_overruns_total", nil, 0},
	)
	host.measures(t,
		sample{"vpcproxy_attachment_receive_bytes_total", map[string]string{"attachment": "red", "device": "tunnel"}, size},
		sample{"vpcproxy_attachment_connections", red, 1},
		sample{"vpcproxy_attachment_connections", map[string]string{"attachment": "blue"}, 0},
		sample{"vpcproxy_conntrack_entries", nil, 1},
		sample{"vpcproxy_snat_connections", map[string]string{"source": fmt.Sprintf(hostTunnel, 80)}, 1},
		sample{"vpcproxy_dropped_packets_total", map[string]string{"attachment": "", "reason": "forged_gre"}, 1},
	)
}
