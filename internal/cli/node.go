package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

const confirmLong = `More than a third of all attachments vanishing at once looks like a store that
lost its data. Such a change is held back and reported, and what is in force stays
until it is confirmed here.`

func (a *app) nodeCommand() *cobra.Command {
	c := group("node", "Act on this machine")
	c.AddCommand(a.nodeConfirmCommand())
	if a.Cleanup != nil {
		c.AddCommand(a.cleanupCommand())
	}
	if a.Release != nil {
		c.AddCommand(a.releaseCommand())
	}
	return c
}

func (a *app) nodeConfirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm-removal",
		Short: "Accept that the attachments which this node holds on to are gone",
		Long:  confirmLong,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.node()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, callTimeout)
			defer cancel()
			resp, err := client.ConfirmRemoval(ctx, connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
			if err != nil {
				return a.nodeError(err)
			}
			return a.printGivenUp(resp.Msg)
		},
	}
}

func (a *app) printGivenUp(r *apiv1.ConfirmRemovalResponse) error {
	var b strings.Builder
	for _, name := range r.GetRemoved() {
		fmt.Fprintf(&b, "attachment/%s given up\n", name)
	}
	return a.write([]byte(b.String()), nil)
}

func (a *app) releaseCommand() *cobra.Command {
	var state string
	c := &cobra.Command{
		Use:   "release",
		Short: "Remove the HaVips that an agent which was killed has left behind",
		Long: "Release removes the addresses of proxy groups that vpcproxyd held on this machine when it was\n" +
			"killed: by now another proxy holds them. An agent that starts does so itself; systemd runs this\n" +
			"for one that does not. It may run twice, and not beside an agent.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.Release(c.Context(), state, a.Out) },
	}
	c.Flags().StringVar(&state, "state-directory", envOr(stateEnv, "/var/lib/vpcproxy"), "the agent's state `directory`; environment "+stateEnv)
	return c
}

func (a *app) cleanupCommand() *cobra.Command {
	var yes bool
	var state string
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything of ours from this machine's kernel",
		Long: "Cleanup removes every kernel object that vpcproxyd made on this machine: devices, routes,\n" +
			"rules, chains, namespaces. Interfaces of users are given back to the host. What is not ours\n" +
			"stays. Stop vpcproxyd first, or it makes them again. It may run twice.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.refuseBesideAgent(c); err != nil {
				return err
			}
			if !yes {
				if err := a.confirm("Traffic of all attachments on this machine ends. Remove everything?"); err != nil {
					return err
				}
			}
			return a.Cleanup(c.Context(), state, a.Out)
		},
	}
	c.Flags().StringVar(&state, "state-directory", envOr(stateEnv, "/var/lib/vpcproxy"),
		"state `directory` of vpcproxyd, which says what interfaces brought; environment "+stateEnv)
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// refuseBesideAgent keeps cleanup from a race that it cannot win.
func (a *app) refuseBesideAgent(c *cobra.Command) error {
	client, err := a.node()
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, askTimeout)
	defer cancel()
	if _, err = client.NodeStatus(ctx, connect.NewRequest(&apiv1.NodeStatusRequest{})); unavailable(err) {
		return nil
	}
	return &exitError{codeConflict, fmt.Errorf(
		"vpcproxyd runs on this machine (%s) and would make everything again; stop it first, as with `systemctl stop vpcproxyd`", a.nodeSocket)}
}

// confirm asks a question that only "yes" answers. Who is not at a terminal
// cannot be asked.
func (a *app) confirm(question string) error {
	if !isTerminal(a.In) {
		return usagef("standard input is not a terminal, so nobody can be asked; give --yes if it is meant")
	}
	_, _ = fmt.Fprintf(a.Err, "%s [yes/no] ", question)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		return fmt.Errorf("read the answer: %w", err)
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "yes" && answer != "y" {
		return errors.New("not confirmed; nothing was changed")
	}
	return nil
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
