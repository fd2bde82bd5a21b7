package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// pollEvery is how often the controller is asked while something is waited for.
const pollEvery = 100 * time.Millisecond

const failoverLong = `Failover has the active proxy of a group hand its role over to the standby, and
waits until that is active. Priorities do not take the role back: it stays where it
is until the next failover, or until that proxy fails.

With --node-socket the node agent of this machine, which must be the active one, is
told so, and nothing is waited for.`

func (a *app) failoverCommand() *cobra.Command {
	var to string
	var limit time.Duration
	c := &cobra.Command{
		Use:               "failover GROUP [--to NODE]",
		Short:             "Move a group's active role to the standby proxy",
		Long:              failoverLong,
		Example:           "  vpcproxyctl failover blue --to proxy-b",
		Args:              oneArg("GROUP"),
		ValidArgsFunction: a.completeNames(intent.KindProxyGroup),
	}
	c.Flags().StringVar(&to, "to", "", "`node` that must be the one to take over")
	c.Flags().DurationVar(&limit, "timeout", 15*time.Second, "how long to wait")
	completeFlag(c, "to", a.completeNames(intent.KindNode))
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("node-socket") {
			if to != "" {
				return usagef("--to and --node-socket exclude each other: a node agent can only hand over")
			}
			return a.yield(c, args[0])
		}
		return a.failover(c, args[0], to, limit)
	}
	return c
}

// yield tells this machine's agent.
func (a *app) yield(c *cobra.Command, group string) error {
	client, err := a.node()
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	if _, err := client.Yield(ctx, connect.NewRequest(&apiv1.YieldRequest{Group: group})); err != nil {
		return a.nodeError(err)
	}
	return a.write(fmt.Appendf(nil, "group/%s handed over\n", group), nil)
}

func (a *app) failover(c *cobra.Command, group, to string, limit time.Duration) error {
	client, err := a.control()
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	start := time.Now()
	resp, err := client.Failover(ctx, connect.NewRequest(&apiv1.FailoverRequest{Group: group, To: to}))
	if err != nil {
		return a.controlError(err)
	}
	from, to := resp.Msg.GetFrom(), resp.Msg.GetTo()
	err = a.awaitElections(c.Context(), client, limit, func(reports map[string]*apiv1.NodeReport) string {
		if g := electionOf(reports[to], group); g.GetState() != "Active" {
			return fmt.Sprintf("%s is not active in group %s: %s", to, group, orDash(g.GetReason()))
		}
		if electionOf(reports[from], group).GetState() == "Active" {
			return fmt.Sprintf("%s is still active in group %s", from, group)
		}
		return ""
	})
	if err != nil {
		return err
	}
	return a.write(fmt.Appendf(nil, "group/%s moved from %s to %s, after %s\n", group, from, to, since(start)), nil)
}

// awaitElections asks the controller until missing returns "", or the limit is
// over.
func (a *app) awaitElections(ctx context.Context, client vpcproxyv1alpha1connect.ControlServiceClient, limit time.Duration,
	missing func(map[string]*apiv1.NodeReport) string,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	why := "the controller told nothing"
	for {
		resp, err := client.Status(ctx, connect.NewRequest(&apiv1.StatusRequest{}))
		switch {
		case err == nil:
			reports := map[string]*apiv1.NodeReport{}
			for _, r := range resp.Msg.GetNodes() {
				reports[r.GetNode()] = r
			}
			if why = missing(reports); why == "" {
				return nil
			}
		case ctx.Err() == nil && !unavailable(err):
			return a.controlError(err)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("interrupted; what was asked for stays wanted: %w", ctx.Err())
			}
			return &exitError{codeNotConverged, fmt.Errorf("not within %s: %s; see `vpcproxyctl ha status`", limit, why)}
		case <-time.After(pollEvery):
		}
	}
}
