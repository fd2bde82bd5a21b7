package cli

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	var client bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this command and of the controller",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.write(fmt.Appendf(nil, "vpcproxyctl %s\n", version.Version), nil); err != nil || client {
				return err
			}
			control, err := a.control()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, askTimeout)
			defer cancel()
			resp, err := control.Status(ctx, connect.NewRequest(&apiv1.StatusRequest{}))
			if err != nil {
				// The answer about this command is given.
				a.message("%v", a.controlError(err))
				return nil
			}
			return a.write(fmt.Appendf(nil, "controller  %s\n", resp.Msg.GetVersion()), nil)
		},
	}
	c.Flags().BoolVar(&client, "client", false, "print only the version of this command")
	return c
}
