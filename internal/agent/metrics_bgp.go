package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpcproxy/vpcproxy/internal/peering"
)

// routing adds what is read of BGP when it is asked for.
func (m *metrics) routing(r *routing) {
	if r != nil {
		m.registry.MustRegister(routingMetrics{r})
	}
}

// routingMetrics reads BGP. Its labels are bounded by the number of neighbors.
type routingMetrics struct{ routing *routing }

func bgpDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vpcproxy_bgp_"+name, help, labels, nil)
}

var (
	bgpUp        = bgpDesc("session_up", "1 if the session with a neighbor is established.", "peer")
	bgpSynced    = bgpDesc("session_synced", "1 if the neighbor has sent the end of its first update.", "peer")
	bgpFlaps     = bgpDesc("session_flaps_total", "Sessions that ended soon after they were established.", "peer")
	bgpReceived  = bgpDesc("routes_received", "Routes that a neighbor has sent and not withdrawn.", "peer", "family")
	bgpAnnounced = bgpDesc("paths_announced", "Paths that this node announces, by family.", "family")
	bgpAccepted  = bgpDesc("routes_accepted", "Routes that are believed.")
	bgpRefused   = bgpDesc("routes_refused", "Routes that are ignored, by reason.", "reason")
	bgpKept      = bgpDesc("routes_kept", "Routes that are believed though no neighbor has said so lately.")
)

// Describe implements prometheus.Collector.
func (routingMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{bgpUp, bgpSynced, bgpFlaps, bgpReceived, bgpAnnounced, bgpAccepted, bgpRefused, bgpKept} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m routingMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	peers, paths, judged, err := m.routing.view(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(bgpUp, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range peers {
		gauge(bgpUp, flag(p.Established), p.Address.String())
		gauge(bgpSynced, flag(p.Synced), p.Address.String())
		out <- prometheus.MustNewConstMetric(bgpFlaps, prometheus.CounterValue, float64(p.Flaps), p.Address.String())
		for _, f := range p.Families {
			gauge(bgpReceived, float64(f.Received), p.Address.String(), string(f.Family))
		}
	}
	families := map[string]float64{}
	for _, p := range paths {
		families[string(p.Family())]++
	}
	for f, n := range families {
		gauge(bgpAnnounced, n, f)
	}
	accepted, kept, refused := 0, 0, map[peering.Reason]int{}
	for _, j := range judged {
		if j.Reason != peering.Accepted {
			refused[j.Reason]++
			continue
		}
		accepted++
		if j.Kept {
			kept++
		}
	}
	gauge(bgpAccepted, float64(accepted))
	gauge(bgpKept, float64(kept))
	for _, r := range peering.Reasons {
		gauge(bgpRefused, float64(refused[r]), string(r))
	}
}
