package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/keepalived"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
)

const haImportLong = `Import reads keepalived configurations, one for each member of a group, and writes
the ProxyGroup that their vrrp_instance and vrrp_sync_group parts amount to. What
has no place in a ProxyGroup is told on standard error, with where it goes.
Nothing is applied.

A file is given with the name of its Node, as NODE=FILE; FILE alone is this
machine's.`

func (a *app) haImportCommand() *cobra.Command {
	var underlay string
	c := &cobra.Command{
		Use:     "import [NODE=]FILE...",
		Short:   "Turn keepalived configurations into a ProxyGroup",
		Long:    haImportLong,
		Example: "  vpcproxyctl ha import proxy-a=a/keepalived.conf proxy-b=b/keepalived.conf >group.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("FILE is missing; see `vpcproxyctl ha import --help`")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.haImport(args, underlay) },
	}
	c.Flags().StringVar(&underlay, "underlay", "", "`interface` that carries GRE (default: that of the first instance of a group)")
	return c
}

func (a *app) haImport(args []string, underlay string) error {
	var files []keepalived.File
	for _, arg := range args {
		node, path, named := strings.Cut(arg, "=")
		if !named {
			host, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("%s: give the name of its Node, as NODE=%s: %w", arg, arg, err)
			}
			host, _, _ = strings.Cut(host, ".")
			node, path = strings.ToLower(host), arg
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // read only
		files = append(files, keepalived.File{Node: node, Name: path, Text: f})
	}
	r, err := keepalived.Import(files, underlay)
	if err != nil {
		return err
	}
	for _, l := range r.LeftOut {
		a.message("left out: %s", l)
	}
	if len(r.Groups) == 0 {
		return fmt.Errorf("no vrrp_instance in %s", strings.Join(args, ", "))
	}
	objects := make([]intent.Object, len(r.Groups))
	for i, g := range r.Groups {
		objects[i] = g
		if err := g.Validate(); err != nil {
			a.message("to mend before it can be applied: %v", err)
		}
	}
	return a.write(manifest.EncodeYAML(objects...))
}
