package config

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Root returns the command vpcproxyd, which runs with a valid configuration.
func Root(version string, run func(*cobra.Command, *Config) error) *cobra.Command {
	c := &cobra.Command{
		Use:   "vpcproxyd",
		Short: "Node agent of vpcproxy: function host, proxy and controller",
		Long: `vpcproxyd keeps this machine's kernel as attachments ask: on function hosts, on
proxies, and as the controller that tells them, in any mix of these roles.

Packets stay in the kernel: a stopped, killed or upgraded vpcproxyd stops none.
What it made is removed by "vpcproxyctl node cleanup".`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := Load(c.Flags())
			if err != nil {
				return err
			}
			return run(c, cfg)
		},
	}
	AddFlags(c.Flags())
	c.AddCommand(Command())
	return c
}

// Command returns `config` with the subcommands minimal, reference and check.
// They need nothing of the flags of the command that they are put under.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Print or check configuration",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(minimalCommand(), referenceCommand(), checkCommand())
	return c
}

func minimalCommand() *cobra.Command {
	all := []string{string(intent.RoleFunction), string(intent.RoleProxy), string(intent.RoleController)}
	return &cobra.Command{
		Use:       "minimal [ROLE]...",
		Short:     "Print the least configuration of a node with these roles (function, if none is given)",
		Example:   "  vpcproxyd config minimal proxy > /etc/vpcproxy/vpcproxyd.yaml",
		Args:      cobra.OnlyValidArgs,
		ValidArgs: all,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = all[:1]
			}
			set := make([]intent.Role, 0, len(args))
			for _, a := range args {
				set = append(set, intent.Role(a))
			}
			_, err := io.WriteString(c.OutOrStdout(), Minimal(set))
			return err
		},
	}
}

func referenceCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reference",
		Short: "Print every key with its default and what it means",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), Reference())
			return err
		},
	}
}

func checkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and print what is in force and where it comes from",
		Long: "Check reads the configuration as vpcproxyd would with the same flags and environment, and\n" +
			"prints what is in force and where each value comes from. It looks at no other file.",
		Example: "  vpcproxyd config check --config /etc/vpcproxy/vpcproxyd.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := Load(c.Flags())
			if err != nil {
				return fmt.Errorf("configuration is not valid:\n%w", err)
			}
			return cfg.print(c.OutOrStdout())
		},
	}
	AddFlags(c.Flags())
	return c
}

// print writes every key's value and origin.
func (c *Config) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "KEY\tVALUE\tFROM")
	for _, s := range settings {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", s.key, strings.Join(s.codec.get(c), ","), c.origins[s.key])
	}
	return t.Flush()
}
