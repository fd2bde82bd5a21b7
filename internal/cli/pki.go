package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/pki"
)

const pkiLong = `A controller and its nodes and operators trust each other by certificates of one
certificate authority (CA), which is a directory on a machine of your choice:

  vpcproxyctl pki init
  vpcproxyctl pki issue ctl-1 --role controller --host controller.example
  vpcproxyctl pki issue host-a

Each issue writes a bundle, the directory CA/NAME with ca.crt, tls.crt and tls.key.
Copy it to the machine, as tls.directory of its configuration. Keep ca.key to yourself.`

func (a *app) pkiCommand() *cobra.Command {
	var directory string
	c := group("pki", "Make certificates for nodes, operators and controllers")
	c.Long = pkiLong
	c.PersistentFlags().StringVar(&directory, "ca", "/etc/vpcproxy/pki", "`directory` of the certificate authority")
	c.AddCommand(a.pkiInitCommand(&directory), a.pkiIssueCommand(&directory))
	return c
}

func (a *app) pkiInitCommand(directory *string) *cobra.Command {
	var o pki.Options
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority, and an operator's bundle for this command",
		Args:  noArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			bundle, err := pki.Init(*directory, o)
			if err != nil {
				return pkiError(err)
			}
			a.message("Made a certificate authority in %s. Keep %s to yourself.", *directory, filepath.Join(*directory, pki.CAKeyFile))
			a.message("Next: vpcproxyctl pki issue NAME --role controller --host ADDRESS, and vpcproxyctl pki issue NODE for each node")
			return a.write([]byte(bundle+"\n"), nil)
		},
	}
	pkiFlags(c, &o, "10 years")
	return c
}

func (a *app) pkiIssueCommand(directory *string) *cobra.Command {
	var o pki.Options
	var words []string
	known := []string{string(pki.RoleNode), string(pki.RoleController), string(pki.RoleOperator)}
	c := &cobra.Command{
		Use:   "issue NAME",
		Short: "Issue a bundle: a certificate and its key",
		Long: "Issue signs a certificate and prints the directory of the bundle. A node's bundle has the\n" +
			"node's name; a controller's says under which --host it is reached.",
		Args: oneArg("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			roles := make([]pki.Role, 0, len(words))
			for _, w := range words {
				roles = append(roles, pki.Role(w))
			}
			bundle, err := pki.Issue(*directory, args[0], roles, o)
			if err != nil {
				return pkiError(err)
			}
			a.message("Copy %s to %s as /etc/vpcproxy/tls.", bundle, args[0])
			return a.write([]byte(bundle+"\n"), nil)
		},
	}
	c.Flags().StringSliceVar(&words, "role", known[:1], "`role` of the owner: "+strings.Join(known, ", ")+"; may be repeated")
	c.Flags().StringSliceVar(&o.Hosts, "host", nil, "DNS `name` or address at which a controller is reached; may be repeated")
	completeFlag(c, "role", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp))
	pkiFlags(c, &o, "1 year")
	return c
}

func pkiFlags(c *cobra.Command, o *pki.Options, validity string) {
	c.Flags().Var(&daysValue{&o.Validity}, "days", "how many `days` the certificate is valid (default "+validity+")")
	c.Flags().BoolVar(&o.Force, "force", false, "replace what exists")
}

// daysValue is a flag that gives a duration in days.
type daysValue struct{ d *time.Duration }

const day = 24 * time.Hour

func (v *daysValue) String() string {
	if v.d == nil || *v.d == 0 {
		return ""
	}
	return strconv.Itoa(int(*v.d / day))
}

func (v *daysValue) Type() string { return "days" }

func (v *daysValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	// 100 years: a time.Duration holds 292.
	if err != nil || n < 1 || n > 36500 {
		return fmt.Errorf("%q is not a number of days from 1 to 36500", s)
	}
	*v.d = time.Duration(n) * day
	return nil
}

// pkiError gives what exists the exit code of a conflict.
func pkiError(err error) error {
	if errors.Is(err, pki.ErrExists) {
		return &exitError{codeConflict, err}
	}
	return err
}
