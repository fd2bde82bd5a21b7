package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// errFound ends a command that has printed what does not work.
var errFound = errors.New("something does not work; the answer names each cause and what mends it")

// witness is a node's agent that diagnoses.
type witness func(ctx context.Context, req *apiv1.DiagnoseRequest) ([]byte, error)

// ask has a node's agent diagnose, and reads its report.
func ask[T any](ctx context.Context, w witness, req *apiv1.DiagnoseRequest) (*T, error) {
	b, err := w(ctx, req)
	if err != nil {
		return nil, err
	}
	report := new(T)
	if err := json.Unmarshal(b, report); err != nil {
		return nil, fmt.Errorf("the agent's report is of another release: %w", err)
	}
	return report, nil
}

// witnessAt is the agent behind a unix socket.
func (a *app) witnessAt(socket, flag string) (witness, error) {
	address, err := transport.ParseAddress("unix://" + socket)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	c, err := transport.NewClient(address, nil)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	a.clients = append(a.clients, c)
	client := vpcproxyv1alpha1connect.NewNodeServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions())
	return func(ctx context.Context, req *apiv1.DiagnoseRequest) ([]byte, error) {
		resp, err := client.Diagnose(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, callError("the node agent at "+socket+" ("+flag+")", err)
		}
		return resp.Msg.GetReport(), nil
	}, nil
}

// witnessOf is a node's agent, asked through the controller.
func (a *app) witnessOf(node string) (witness, error) {
	client, err := a.control()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, req *apiv1.DiagnoseRequest) ([]byte, error) {
		resp, err := client.DiagnoseNode(ctx, connect.NewRequest(&apiv1.DiagnoseNodeRequest{Node: node, Request: req}))
		if err != nil {
			return nil, a.controlError(err)
		}
		return resp.Msg.GetReport(), nil
	}, nil
}

// witnessFlags say whose agent is asked.
type witnessFlags struct {
	node, proxySocket string
}

func (f *witnessFlags) add(c *cobra.Command, a *app, proxy bool) {
	c.Flags().StringVar(&f.node, "node", "", "`name` of another node, whose agent is asked through the controller")
	completeFlag(c, "node", a.completeNames(intent.KindNode))
	if proxy {
		c.Flags().StringVar(&f.proxySocket, "proxy-socket", "",
			"unix socket `path` of the proxy's node agent, as forwarded by `ssh -L`: both ends are looked at")
	}
}

// first is the agent of this machine, or of the node that the flag names.
func (f *witnessFlags) first(a *app) (witness, error) {
	if f.node != "" {
		return a.witnessOf(f.node)
	}
	return a.witnessAt(a.nodeSocket, "--node-socket")
}

// all are the first, and the one at the proxy's socket.
func (f *witnessFlags) all(a *app) ([]witness, error) {
	w, err := f.first(a)
	if err != nil || f.proxySocket == "" {
		return []witness{w}, err
	}
	other, err := a.witnessAt(f.proxySocket, "--proxy-socket")
	return []witness{w, other}, err
}

// down is the finding that an agent does not answer, if that is what an error says.
func (a *app) down(f witnessFlags, err error) ([]diagnose.Finding, bool) {
	if f.node != "" || !unavailable(err) {
		return nil, false
	}
	return []diagnose.Finding{diagnose.AgentDown(a.nodeSocket, err)}, true
}

func evidenceRequest(pings int32) *apiv1.DiagnoseRequest {
	return &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_Evidence{Evidence: &apiv1.EvidenceRequest{Pings: pings}}}
}

// findingsText is findings for people.
func findingsText(list []diagnose.Finding) string {
	var b strings.Builder
	for _, f := range list {
		where := f.Node
		if f.Attachment != "" {
			where += ", attachment " + f.Attachment
		}
		fmt.Fprintf(&b, "%-8s %s (%s): %s\n", strings.ToUpper(string(f.Severity)), f.Code, where, f.Summary)
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "           %s\n", e)
		}
		for _, c := range f.Fix {
			fmt.Fprintf(&b, "      mend: %s\n", c)
		}
		fmt.Fprintf(&b, "      see:  docs/%s\n", f.Page)
	}
	return b.String()
}

// summary counts findings.
func summary(list []diagnose.Finding) string {
	n := map[diagnose.Severity]int{}
	for _, f := range list {
		n[f.Severity]++
	}
	if len(list) == 0 {
		return "nothing found\n"
	}
	return fmt.Sprintf("%d errors, %d warnings, %d notes\n", n[diagnose.Error], n[diagnose.Warning], n[diagnose.Info])
}

// judged ends a command that prints findings.
func judged(list []diagnose.Finding) error {
	if diagnose.Worst(list) == diagnose.Error {
		return &exitError{codeFound, errFound}
	}
	return nil
}
