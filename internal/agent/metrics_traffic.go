package agent

import (
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/meter"
	"github.com/vpcproxy/vpcproxy/internal/node"
)

// newMeter returns the meter of this machine's traffic.
func newMeter(t *nodeTask, kinds node.Kinds) *meter.Meter {
	return meter.New(meter.Options{
		Host:   t.host,
		Places: t.places,
		Open:   openTable,
		Drops:  kinds.Drops,
		Log:    t.log,
	})
}

// openTable opens the connection tracking table of a namespace.
func openTable(netns string) (meter.Table, error) { return conntrack.Open(netnsPath(netns)) }

// netnsPath is where a namespace is mounted; "" is the agent's own.
func netnsPath(netns string) string {
	if netns == "" {
		return ""
	}
	return filepath.Join(kernel.DefaultNetnsDir, netns)
}

// places says where the traffic of the node's attachments is.
func (t *nodeTask) places() []meter.Place {
	footprints := t.node.Footprints()
	places := make([]meter.Place, 0, len(footprints))
	for _, f := range footprints {
		p := meter.Place{Attachment: f.Attachment, Netns: f.Netns, Tunnel: f.Link, ENI: f.ENI}
		if f.HostWide {
			p.CIDRs = f.CIDRs
		}
		for _, s := range f.Steers {
			p.Pods = append(p.Pods, meter.Pair{Src: s.Src, Dst: s.Dst})
		}
		places = append(places, p)
	}
	return places
}

// trafficCollector tells Prometheus what a meter has read.
type trafficCollector struct {
	meter *meter.Meter
	links []linkMetric

	connections, entries, limit, drops                  *prometheus.Desc
	sourceConnections, ports, portLimit, portsExhausted *prometheus.Desc
}

// linkMetric is one counter of a device.
type linkMetric struct {
	desc  *prometheus.Desc
	value func(*kernel.LinkStats) uint64
}

func newTrafficCollector(m *meter.Meter) *trafficCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("vpcproxy_"+name, help, labels, nil)
	}
	c := &trafficCollector{
		meter:       m,
		connections: desc("attachment_connections", "Tracked connections of an attachment, of any state.", "attachment"),
		entries:     desc("conntrack_entries", "Entries of a connection tracking table; without attachment, the node's own table.", "attachment"),
		limit:       desc("conntrack_limit", "Entries that a connection tracking table may have.", "attachment"),
		drops: desc("dropped_packets_total",
			"Packets that our filters dropped, by reason; without attachment, before it is known whose they are.", "attachment", "reason"),
		sourceConnections: desc("snat_connections", "Connections translated to a source address.", "attachment", "source"),
		ports: desc("snat_ports_used",
			"Ports of a source address in use to one destination; the busiest destinations only.", "attachment", "source", "protocol", "destination"),
		portLimit: desc("snat_ports_limit", "Ports of a source address that can be in use to one destination."),
		portsExhausted: desc("snat_ports_exhausted_seconds",
			"Time until no port is left if their use goes on growing as now; absent if it does not grow.", "attachment", "source", "protocol", "destination"),
	}
	for _, l := range []struct {
		name, help string
		value      func(*kernel.LinkStats) uint64
	}{
		{"receive_bytes", "Bytes received", func(s *kernel.LinkStats) uint64 { return s.RxBytes }},
		{"transmit_bytes", "Bytes sent", func(s *kernel.LinkStats) uint64 { return s.TxBytes }},
		{"receive_packets", "Packets received", func(s *kernel.LinkStats) uint64 { return s.RxPackets }},
		{"transmit_packets", "Packets sent", func(s *kernel.LinkStats) uint64 { return s.TxPackets }},
		{"receive_errors", "Packets that could not be accepted", func(s *kernel.LinkStats) uint64 { return s.RxErrors }},
		{"transmit_errors", "Packets that could not be sent", func(s *kernel.LinkStats) uint64 { return s.TxErrors }},
		{"receive_dropped", "Packets dropped before they were looked at", func(s *kernel.LinkStats) uint64 { return s.RxDropped }},
		{"transmit_dropped", "Packets dropped for want of room, or of a neighbor", func(s *kernel.LinkStats) uint64 { return s.TxDropped }},
	} {
		c.links = append(c.links, linkMetric{
			desc:  desc("attachment_"+l.name+"_total", l.help+" by an attachment's device: its tunnel or its eni.", "attachment", "device"),
			value: l.value,
		})
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, l := range c.links {
		ch <- l.desc
	}
	for _, d := range []*prometheus.Desc{
		c.connections, c.entries, c.limit, c.drops, c.sourceConnections, c.ports, c.portLimit, c.portsExhausted,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.meter.Last()
	gauge(c.portLimit, meter.PortLimit)
	for _, t := range s.Attachments {
		for device, stats := range map[string]*kernel.LinkStats{"tunnel": t.Tunnel, "eni": t.ENI} {
			if stats == nil {
				continue
			}
			for _, l := range c.links {
				ch <- prometheus.MustNewConstMetric(l.desc, prometheus.CounterValue, float64(l.value(stats)), t.Attachment, device)
			}
		}
		if t.Connections >= 0 {
			gauge(c.connections, float64(t.Connections), t.Attachment)
		}
	}
	for _, n := range s.Namespaces {
		gauge(c.entries, float64(n.Entries), n.Attachment)
		if n.Limit > 0 {
			gauge(c.limit, float64(n.Limit), n.Attachment)
		}
		for reason, packets := range n.Drops {
			ch <- prometheus.MustNewConstMetric(c.drops, prometheus.CounterValue, float64(packets), n.Attachment, reason)
		}
		for _, source := range n.Sources {
			gauge(c.sourceConnections, float64(source.Connections), source.Attachment, source.Addr.String())
		}
		for _, d := range n.Busiest {
			labels := []string{d.Attachment, d.Source.String(), meter.ProtocolName(d.Protocol), d.Addr.String()}
			gauge(c.ports, float64(d.Ports), labels...)
			if d.Exhausted > 0 {
				gauge(c.portsExhausted, d.Exhausted.Seconds(), labels...)
			}
		}
	}
}
