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
)

// errFound ends a command that has printed what does not work.
var errFound = errors.New("something does not work; the answer names each cause and what mends it")

// ask has a node agent diagnose, and reads its report.
func ask[T any](ctx context.Context, client vpcproxyv1alpha1connect.NodeServiceClient, req *apiv1.DiagnoseRequest) (*T, error) {
	resp, err := client.Diagnose(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	report := new(T)
	if err := json.Unmarshal(resp.Msg.GetReport(), report); err != nil {
		return nil, fmt.Errorf("the agent's report is of another release: %w", err)
	}
	return report, nil
}

// nodeAt returns a client of the node agent at a unix socket.
func (a *app) nodeAt(socket string) (vpcproxyv1alpha1connect.NodeServiceClient, error) {
	address, err := transport.ParseAddress("unix://" + socket)
	if err != nil {
		return nil, usagef("--proxy-socket: %w", err)
	}
	c, err := transport.NewClient(address, nil)
	if err != nil {
		return nil, usagef("--proxy-socket: %w", err)
	}
	a.clients = append(a.clients, c)
	return vpcproxyv1alpha1connect.NewNodeServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions()), nil
}

// addProxySocket adds the flag for the node at the other end.
func addProxySocket(c *cobra.Command, socket *string) {
	c.Flags().StringVar(socket, "proxy-socket", "",
		"unix socket `path` of the proxy's node agent, as forwarded by `ssh -L`: both ends are looked at")
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
