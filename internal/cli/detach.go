package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (a *app) detachCommand() *cobra.Command {
	var w waitFlags
	var dryRun bool
	c := &cobra.Command{
		Use:               "detach NAME",
		Short:             "Take an attachment away: its subnets are no longer reachable",
		Example:           "  vpcproxyctl detach acme-172-16-101-0-24 --wait",
		Args:              oneArg("NAME"),
		ValidArgsFunction: a.completeNames(intent.KindAttachment),
		RunE: func(c *cobra.Command, args []string) error {
			return a.detach(c, args[0], dryRun, w)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check and print what would be, change nothing")
	w.add(c.Flags(), "until it is gone from every node")
	return c
}

func (a *app) detach(c *cobra.Command, name string, dryRun bool, w waitFlags) error {
	if w.wait && dryRun {
		return usagef("--wait and --dry-run exclude each other: a dry run changes nothing to wait for")
	}
	start := time.Now()
	client, err := a.control()
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	_, err = client.Delete(ctx, connect.NewRequest(&apiv1.DeleteRequest{
		Kind: string(intent.KindAttachment), Name: name, DryRun: dryRun,
	}))
	if err != nil {
		return a.controlError(err)
	}
	if err := a.printDeleted(intent.KindAttachment, name, dryRun); err != nil || !w.wait {
		return err
	}
	return a.waitDetached(c.Context(), client, name, w.timeout, start)
}

func (a *app) waitDetached(ctx context.Context, client watcher, name string, limit time.Duration, start time.Time) error {
	last, err := a.await(ctx, client, awaited{name: name}, limit)
	if err != nil {
		return err
	}
	gone := 0
	for _, n := range last.GetNodes() {
		if n.GetReady() {
			gone++
		}
	}
	a.message("attachment %s is gone from %s, after %s", name, count(gone, "node"), since(start))
	return nil
}
