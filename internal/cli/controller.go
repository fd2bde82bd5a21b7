package cli

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

func (a *app) controllerCommand() *cobra.Command {
	c := group("controller", "Act on the controller")
	c.AddCommand(&cobra.Command{
		Use:   "confirm-removal",
		Short: "Accept that the attachments which the controller holds on to are gone",
		Long:  confirmLong,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.control()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, callTimeout)
			defer cancel()
			resp, err := client.ConfirmRemoval(ctx, connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
			if err != nil {
				return a.controlError(err)
			}
			return a.printGivenUp(resp.Msg)
		},
	})
	return c
}
