package cli

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const drainLong = `Drain has a proxy hand over its role in every group, and keeps it from being active
until ` + "`vpcproxyctl uncordon`" + `, also when its agent or its machine is restarted. It
waits until the proxy is active nowhere. A group in which no other proxy is known to
be fit refuses, unless --force is given: then its attachments are served by nobody.`

func (a *app) drainCommand() *cobra.Command {
	var force bool
	var limit time.Duration
	c := &cobra.Command{
		Use:               "drain NODE",
		Short:             "Keep a proxy from being active, for maintenance",
		Long:              drainLong,
		Example:           "  vpcproxyctl drain proxy-a",
		Args:              oneArg("NODE"),
		ValidArgsFunction: a.completeNames(intent.KindNode),
	}
	c.Flags().BoolVar(&force, "force", false, "do so though nobody may be fit to take over")
	c.Flags().DurationVar(&limit, "timeout", time.Minute, "how long to wait")
	c.RunE = func(c *cobra.Command, args []string) error { return a.drain(c, args[0], force, limit) }
	return c
}

func (a *app) drain(c *cobra.Command, node string, force bool, limit time.Duration) error {
	client, err := a.control()
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	resp, err := client.Cordon(ctx, connect.NewRequest(&apiv1.CordonRequest{Node: node, Cordoned: true, Force: force}))
	if err != nil {
		return a.controlError(err)
	}
	groups := resp.Msg.GetGroups()
	err = a.awaitElections(c.Context(), client, limit, func(reports map[string]*apiv1.NodeReport) string {
		r := reports[node]
		for _, name := range groups {
			if g := electionOf(r, name); r.GetConnected() && g.GetState() != "Fault" && g.GetProblem() == "" {
				return fmt.Sprintf("%s is %s in group %s", node, orDash(g.GetState()), name)
			}
		}
		return ""
	})
	if err != nil {
		return err
	}
	return a.write(fmt.Appendf(nil, "node/%s drained\n", node), nil)
}

func (a *app) uncordonCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "uncordon NODE",
		Short:             "Let a proxy that was drained be active again",
		Args:              oneArg("NODE"),
		ValidArgsFunction: a.completeNames(intent.KindNode),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.control()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, callTimeout)
			defer cancel()
			resp, err := client.Cordon(ctx, connect.NewRequest(&apiv1.CordonRequest{Node: args[0]}))
			if err != nil {
				return a.controlError(err)
			}
			done := "uncordoned"
			if !resp.Msg.GetChanged() {
				done = "was not cordoned"
			}
			return a.write(fmt.Appendf(nil, "node/%s %s\n", args[0], done), nil)
		},
	}
}
