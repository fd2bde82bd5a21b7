package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

// metrics is what Prometheus sees. Labels are bounded: kinds of objects and
// outcomes, never names of pods.
type metrics struct {
	registry *prometheus.Registry
	duration prometheus.Histogram
	writes   *prometheus.CounterVec
	drift    *prometheus.CounterVec
	failures *prometheus.CounterVec
	passes   *prometheus.CounterVec
	overruns prometheus.Counter
	binds    *prometheus.HistogramVec
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vpcproxy_reconcile_duration_seconds", Help: "Time that a reconcile pass took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), // 1 ms to 16 s
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpcproxy_reconcile_writes_total", Help: "Kernel objects written, by kind and operation.",
		}, []string{"kind", "op"}),
		drift: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpcproxy_drift_detected_total", Help: "Differences in the kernel that somebody else had made, by kind.",
		}, []string{"kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpcproxy_reconcile_errors_total", Help: "Failed attempts to list or write kernel objects, by kind.",
		}, []string{"kind"}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpcproxy_reconcile_passes_total", Help: "Reconcile passes, by what asked for them; a pass may have several causes.",
		}, []string{"cause"}),
		overruns: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpcproxy_netlink_overruns_total", Help: "Times that the kernel's notifications came faster than they were taken, and all was listed again.",
		}),
	}
	m.binds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "vpcproxy_bind_duration_seconds", Help: "Time that binding and unbinding a pod took, by operation and outcome (ok or error).",
		Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16), // 0.25 ms to 8 s
	}, []string{"op", "outcome"})
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vpcproxy_build_info", Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.duration, m.writes, m.drift, m.failures, m.passes, m.overruns, m.binds, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ObservePass implements reconcile.Observer.
func (m *metrics) ObservePass(p reconcile.Pass) {
	m.duration.Observe(p.Duration.Seconds())
	for cause := range strings.SplitSeq(p.Cause.String(), "+") {
		m.passes.WithLabelValues(cause).Inc()
	}
	// Zeros too: a counter that appears with its first event has no increase.
	for _, k := range p.Kinds {
		for op, n := range map[reconcile.Op]int{reconcile.Create: k.Created, reconcile.Repair: k.Repaired, reconcile.Delete: k.Deleted} {
			m.writes.WithLabelValues(k.Name, op.String()).Add(float64(n))
		}
		m.drift.WithLabelValues(k.Name).Add(float64(k.Drift))
		failed := k.Failed
		if k.ListErr != nil {
			failed++
		}
		m.failures.WithLabelValues(k.Name).Add(float64(failed))
	}
}

// bound counts a request of BindService.
func (m *metrics) bound(op string, start time.Time, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.binds.WithLabelValues(op, outcome).Observe(time.Since(start).Seconds())
}

// gauge adds a number that is read when it is asked for.
func (m *metrics) gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// follow adds what is read from the node when it is asked for.
func (m *metrics) follow(t *nodeTask) {
	gauge := m.gauge
	if t.elections != nil {
		m.registry.MustRegister(electionMetrics{t.elections}, t.sessions)
	}
	gauge("vpcproxy_in_sync", "1 if the kernel holds all that is planned.", func() float64 { return flag(t.node.Status().InSync) })
	gauge("vpcproxy_intent_connected", "1 if intent is being followed, 0 if the last one is kept.", func() float64 { return flag(t.source.Problem() == nil) })
	gauge("vpcproxy_intent_held", "1 if an intent is held back because too many attachments vanished from it.", func() float64 { return flag(t.gate.Held() != "") })
	gauge("vpcproxy_intent_revision", "Revision of the intent that is wholly in the kernel.", func() float64 { return float64(t.node.Status().Revision) })
	m.neighbors(t)
	gauge("vpcproxy_bindings", "Pods that are bound to attachments.", func() float64 { return float64(t.node.BindingCount()) })
	gauge("vpcproxy_attachments_not_ready", "Attachments of this node that are not wholly in place.", func() float64 {
		n := 0
		for _, a := range t.node.Status().Attachments {
			if !a.Ready {
				n++
			}
		}
		return float64(n)
	})
	m.registry.MustRegister(&readyCollector{task: t, desc: prometheus.NewDesc("vpcproxy_attachment_ready",
		"1 if this node's part in an attachment is in place.", []string{"attachment", "role"}, nil)})
	if t.meter != nil {
		m.registry.MustRegister(newTrafficCollector(t.meter))
	}
}

// certificate tells when credentials expire.
func (m *metrics) certificate(c *pki.Credentials) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "vpcproxy_certificate_expiry_timestamp_seconds", Help: "When the certificate in use expires.",
	}, func() float64 { return float64(c.Expires().Unix()) }))
}

// readyCollector tells which attachments are in place.
type readyCollector struct {
	task *nodeTask
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *readyCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *readyCollector) Collect(ch chan<- prometheus.Metric) {
	for _, a := range c.task.node.Status().Attachments {
		v := 0.0
		if a.Ready {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, v, a.Name, string(a.Role))
	}
}

// neighbors adds what happens to neighbors that are made on demand.
func (m *metrics) neighbors(t *nodeTask) {
	counter := func(outcome string, value func(tunnel.ResponderStats) uint64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "vpcproxy_neighbor_requests_total", Help: "Neighbors that the kernel asked for: answered, unknown to us, or not taken by the kernel.",
			ConstLabels: prometheus.Labels{"outcome": outcome},
		}, func() float64 { return float64(value(t.node.Neighbors())) }))
	}
	counter("answered", func(s tunnel.ResponderStats) uint64 { return s.Answered })
	counter("unknown", func(s tunnel.ResponderStats) uint64 { return s.Unknown })
	counter("failed", func(s tunnel.ResponderStats) uint64 { return s.Failed })
	removed := func(reason string, value func(tunnel.ResponderStats) uint64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "vpcproxy_neighbors_removed_total", Help: "Neighbor entries removed because they were unused, or unknown in a flood.",
			ConstLabels: prometheus.Labels{"reason": reason},
		}, func() float64 { return float64(value(t.node.Neighbors())) }))
	}
	removed("unused", func(s tunnel.ResponderStats) uint64 { return s.Aged })
	removed("flood", func(s tunnel.ResponderStats) uint64 { return s.Cleared })
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "vpcproxy_neighbors_on_demand", Help: "Neighbor entries that were made on demand.",
	}, func() float64 { return float64(t.node.Neighbors().Present) }))
}

// metricsServer serves /metrics, /livez and /readyz.
type metricsServer struct {
	address string
	handler http.Handler
	ready   chan struct{}
}

func (m *metrics) server(address string, h health) *metricsServer {
	mux := http.NewServeMux()
	h.register(mux)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	return &metricsServer{address: address, handler: mux, ready: make(chan struct{})}
}

// String implements Task.
func (s *metricsServer) String() string { return "metrics" }

// Ready implements Task.
func (s *metricsServer) Ready() <-chan struct{} { return s.ready }

// Run implements Task.
func (s *metricsServer) Run(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	close(s.ready)
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
