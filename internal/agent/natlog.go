package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/natlog"
)

// keepNATLog opens the log of connections, if there is to be one.
func (t *nodeTask) keepNATLog(m *metrics) error {
	c := t.cfg.NATLog
	if c.Directory == "" {
		return nil
	}
	l, err := natlog.New(natlog.Options{
		Directory: c.Directory,
		Size:      int64(c.Size) << 20,
		Rate:      c.Rate,
		Places:    t.places,
		Listen:    func(netns string) (natlog.Listener, error) { return conntrack.ListenFlows(netnsPath(netns)) },
		Log:       t.log,
	})
	if err != nil {
		return err
	}
	t.natLog = l
	m.natLog(l)
	return nil
}

// natLog adds what becomes of records.
func (m *metrics) natLog(l *natlog.Log) {
	for outcome, value := range map[string]func() float64{
		"written":  func() float64 { n, _ := l.Stats(); return float64(n) },
		"left_out": func() float64 { _, n := l.Stats(); return float64(n) },
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "vpcproxy_nat_log_records_total", Help: "Records of the NAT log: written, or left out because there were more than natLog.rate.",
			ConstLabels: prometheus.Labels{"outcome": outcome},
		}, value))
	}
}

// maxConnections bounds an answer to Whois.
const maxConnections = 1000

// Whois implements the NodeService.
func (t *nodeTask) Whois(ctx context.Context, req *connect.Request[apiv1.WhoisRequest]) (*connect.Response[apiv1.WhoisResponse], error) {
	who, err := netip.ParseAddrPort(req.Msg.GetAddress())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("address: %q is not an address and port such as 172.16.101.10:40000", req.Msg.GetAddress()))
	}
	var found []natlog.Connection
	switch {
	case req.Msg.GetAt() == nil:
		found, err = natlog.Living(ctx, who, t.places(), openTable)
	case t.natLog == nil:
		return nil, connect.NewError(connect.CodeFailedPrecondition,
			errors.New("this node keeps no NAT log: set natLog.directory, or ask without a time for what lives now"))
	default:
		found, err = t.natLog.Logged(ctx, who, req.Msg.GetAt().AsTime())
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	resp := &apiv1.WhoisResponse{Node: t.cfg.Node}
	for _, c := range found[:min(len(found), maxConnections)] {
		resp.Connections = append(resp.Connections, &apiv1.TranslatedConnection{
			Attachment: c.Attachment, Protocol: c.Protocol, Source: c.Source.String(), To: c.To.String(), Translated: c.Translated.String(),
			Started: timestamp(c.Started), Ended: timestamp(c.Ended), OutBytes: c.OutBytes, InBytes: c.InBytes,
		})
	}
	return connect.NewResponse(resp), nil
}

// timestamp is a time; nil is none.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
