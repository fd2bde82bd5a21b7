package cli

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (a *app) describeCommand() *cobra.Command {
	c := group("describe", "Tell everything about one object, and how the nodes do with it")
	c.Example = "  vpcproxyctl describe attachment acme-172-16-101-0-24"
	for _, n := range nouns {
		c.AddCommand(a.describeNounCommand(n))
	}
	return c
}

func (a *app) describeNounCommand(n noun) *cobra.Command {
	return &cobra.Command{
		Use:               n.singular + " NAME",
		Aliases:           append([]string{n.plural}, n.short...),
		Short:             fmt.Sprintf("Tell everything about one %s", n.singular),
		Args:              oneArg("NAME"),
		ValidArgsFunction: a.completeNames(n.kind),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.control()
			if err != nil {
				return err
			}
			ctx, cancel := timeout(c, callTimeout)
			defer cancel()
			o, err := a.get(ctx, client, n.kind, args[0])
			if err != nil {
				return err
			}
			v, err := a.view(ctx, client)
			if err != nil {
				return err
			}
			switch o := o.(type) {
			case *intent.Attachment:
				return a.write(v.describeAttachment(ctx, client, o))
			case *intent.ProxyGroup:
				return a.write(v.describeGroup(o), nil)
			case *intent.Node:
				return a.write(v.describeNode(o), nil)
			}
			return fmt.Errorf("the controller sent %s %s, which is of another release", o.ObjectKind(), o.ObjectName())
		},
	}
}

// description is text in the form of `describe`: fields, then sections.
type description struct {
	fields   [][]string
	sections bytes.Buffer
}

func (d *description) field(name, value string) {
	d.fields = append(d.fields, []string{name + ":", value})
}

// section adds a table, whose first row is the head.
func (d *description) section(title string, rows [][]string) {
	if len(rows) < 2 {
		fmt.Fprintf(&d.sections, "\n%s: none\n", title)
		return
	}
	fmt.Fprintf(&d.sections, "\n%s:\n", title)
	for line := range bytes.Lines(table(rows)) {
		fmt.Fprintf(&d.sections, "  %s", line)
	}
}

func (d *description) lines(title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(&d.sections, "\n%s:\n", title)
	for _, l := range lines {
		fmt.Fprintf(&d.sections, "  %s\n", l)
	}
}

func (d *description) bytes() []byte {
	return append(table(d.fields), d.sections.Bytes()...)
}
