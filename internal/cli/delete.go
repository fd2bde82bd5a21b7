package cli

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (a *app) deleteCommand() *cobra.Command {
	c := group("delete KIND NAME", "Delete an object that nothing refers to")
	for _, n := range nouns {
		c.AddCommand(a.deleteNounCommand(n))
	}
	return c
}

func (a *app) deleteNounCommand(n noun) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:               n.singular + " NAME",
		Aliases:           append([]string{n.plural}, n.short...),
		Short:             fmt.Sprintf("Delete %s %s that nothing refers to", article(n.singular), n.singular),
		Args:              oneArg("NAME"),
		ValidArgsFunction: a.completeNames(n.kind),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.control()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, callTimeout)
			defer cancel()
			_, err = client.Delete(ctx, connect.NewRequest(&apiv1.DeleteRequest{Kind: string(n.kind), Name: args[0], DryRun: dryRun}))
			if err != nil {
				return a.controlError(err)
			}
			return a.printDeleted(n.kind, args[0], dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check and print what would be, change nothing")
	return c
}

func article(word string) string {
	if word[0] == 'a' {
		return "an"
	}
	return "a"
}

func (a *app) printDeleted(k intent.Kind, name string, dryRun bool) error {
	return a.write(fmt.Appendf(nil, "%s/%s deleted%s\n", nounOf(k).singular, name, dryRunMark(dryRun)), nil)
}
