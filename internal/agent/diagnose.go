package agent

import (
	"context"
	"encoding/json"
	"errors"
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
		Legacy:         kinds.LegacyBeside,
		StateDirectory: t.cfg.StateDirectory,
		Intent:         func() (string, error) { return t.gate.Held(), t.source.Problem() },
		Groups:         t.groupEvidence,
		Certificate: func() *diagnose.Certificate {
			c := creds()
			if c == nil {
				return nil
			}
			return &diagnose.Certificate{Directory: t.cfg.TLS.Directory, Expires: c.Expires()}
		},
	})
}

// groupEvidence is what this node is in the elections of its groups.
func (t *nodeTask) groupEvidence() []diagnose.Group {
	var out []diagnose.Group
	for _, g := range t.groupReports() {
		out = append(out, diagnose.Group{Name: g.GetName(), State: g.GetState(), Active: g.GetActive(), Down: g.GetDown(),
			Discrepancies: g.GetDiscrepancies(), Problem: g.GetProblem()})
	}
	return out
}

// maxPings bounds how many pings a caller may ask for.
const maxPings = 100

// Diagnose implements NodeServiceHandler.
func (t *nodeTask) Diagnose(ctx context.Context, req *connect.Request[apiv1.DiagnoseRequest]) (*connect.Response[apiv1.DiagnoseResponse], error) {
	report, err := t.diagnose(ctx, req.Msg)
	if err != nil {
		var bad *badRequestError
		if errors.As(err, &bad) {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&apiv1.DiagnoseResponse{Report: report}), nil
}

// badRequestError is the caller's fault.
type badRequestError struct{ error }

// diagnose answers an operator here, or through the controller.
func (t *nodeTask) diagnose(ctx context.Context, req *apiv1.DiagnoseRequest) ([]byte, error) {
	report, err := t.look(ctx, req)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("encode the report: %w", err)
	}
	return b, nil
}

func (t *nodeTask) look(ctx context.Context, req *apiv1.DiagnoseRequest) (any, error) {
	switch {
	case req.GetEvidence() != nil:
		pings := req.GetEvidence().GetPings()
		if pings < 0 || pings > maxPings {
			return nil, &badRequestError{fmt.Errorf("pings: %d is not between 0 and %d", pings, maxPings)}
		}
		return t.surveyor.Evidence(ctx, int(pings))
	case req.GetTraffic() != nil:
		return t.surveyor.Traffic(ctx), nil
	case req.GetSendProbe() != nil:
		f, err := flowOf(req.GetSendProbe().GetProbe())
		if err != nil {
			return nil, &badRequestError{err}
		}
		if req.GetSendProbe().GetDryRun() {
			return t.surveyor.Walk(ctx, f)
		}
		return t.surveyor.Send(ctx, f)
	case req.GetWatchProbe() != nil:
		f, err := flowOf(req.GetWatchProbe().GetProbe())
		if err != nil {
			return nil, &badRequestError{err}
		}
		return t.surveyor.Watch(ctx, req.GetWatchProbe().GetAttachment(), f)
	}
	return nil, &badRequestError{errors.New("what to diagnose is missing")}
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
