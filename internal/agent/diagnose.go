package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/probe"
	"github.com/vpcproxy/vpcproxy/internal/survey"
)

// newSurveyor returns what looks around on this node when somebody asks.
func newSurveyor(t *nodeTask, kinds node.Kinds, creds func() *pki.Credentials) *survey.Surveyor {
	return survey.New(survey.Options{
		Name: t.cfg.Node, Version: t.version, Roles: t.cfg.Roles, Host: t.host, Node: t.node,
		Tables:         nft.New(t.log, nft.Options{}),
		Meter:          newMeter(t, kinds),
		IPTables:       kinds.IPTables,
		StateDirectory: t.cfg.StateDirectory,
		Intent:         func() (error, string) { return t.source.Problem(), t.gate.Held() },
		Certificate: func() *diagnose.Certificate {
			c := creds()
			if c == nil {
				return nil
			}
			return &diagnose.Certificate{Directory: t.cfg.TLS.Directory, Expires: c.Expires()}
		},
	})
}

// maxPings bounds how many pings a caller may ask for.
const maxPings = 100

// Diagnose implements NodeServiceHandler.
func (t *nodeTask) Diagnose(ctx context.Context, req *connect.Request[apiv1.DiagnoseRequest]) (*connect.Response[apiv1.DiagnoseResponse], error) {
	var report any
	var err error
	switch {
	case req.Msg.GetEvidence() != nil:
		pings := req.Msg.GetEvidence().GetPings()
		if pings < 0 || pings > maxPings {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("pings: %d is not between 0 and %d", pings, maxPings))
		}
		report, err = t.surveyor.Evidence(ctx, int(pings))
	case req.Msg.GetTraffic() != nil:
		report = t.surveyor.Traffic(ctx)
	case req.Msg.GetSendProbe() != nil:
		f, ferr := flowOf(req.Msg.GetSendProbe().GetProbe())
		if ferr != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, ferr)
		}
		report, err = t.surveyor.Send(ctx, f)
	case req.Msg.GetWatchProbe() != nil:
		f, ferr := flowOf(req.Msg.GetWatchProbe().GetProbe())
		if ferr != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, ferr)
		}
		report, err = t.surveyor.Watch(ctx, req.Msg.GetWatchProbe().GetAttachment(), f)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("what to diagnose is missing"))
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	b, err := json.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("encode the report: %w", err)
	}
	return connect.NewResponse(&apiv1.DiagnoseResponse{Report: b}), nil
}

// flowOf reads a probe.
func flowOf(p *apiv1.Probe) (probe.Flow, error) {
	to, err := netip.ParseAddrPort(p.GetTo())
	if err != nil {
		return probe.Flow{}, fmt.Errorf("probe.to: %w", err)
	}
	from, err := netip.ParseAddr(p.GetFrom())
	if err != nil {
		return probe.Flow{}, fmt.Errorf("probe.from: %w", err)
	}
	if from.Is4() != to.Addr().Is4() {
		return probe.Flow{}, fmt.Errorf("probe: %s and %s are of different address families", from, to.Addr())
	}
	return probe.Flow{From: from, To: to, Token: p.GetToken()}, nil
}
