package cli

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

func (a *app) resyncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resync",
		Short: "List this machine's kernel state again and repair what differs",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.node()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, kernelTimeout)
			defer cancel()
			resp, err := client.Resync(ctx, connect.NewRequest(&apiv1.ResyncRequest{}))
			if err != nil {
				return a.nodeError(err)
			}
			answer := fmt.Appendf(nil, "%s changed\n", count(int(resp.Msg.GetChanged()), "object"))
			if err := a.write(answer, nil); err != nil {
				return err
			}
			var errs []error
			for _, e := range resp.Msg.GetErrors() {
				errs = append(errs, errors.New(e))
			}
			return errors.Join(errs...)
		},
	}
}
