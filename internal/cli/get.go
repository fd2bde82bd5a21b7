package cli

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (a *app) getCommand() *cobra.Command {
	c := group("get", "List objects, or print one")
	c.Example = "  vpcproxyctl get attachments\n  vpcproxyctl get group blue -o yaml"
	for _, n := range nouns {
		c.AddCommand(a.getNounCommand(n))
	}
	c.AddCommand(a.getBindingsCommand())
	return c
}

func (a *app) getNounCommand(n noun) *cobra.Command {
	c := &cobra.Command{
		Use:               n.plural + " [NAME]",
		Aliases:           append([]string{n.singular}, n.short...),
		Short:             fmt.Sprintf("List %s, or print one", n.plural),
		Args:              maybeOneArg("NAME"),
		ValidArgsFunction: a.completeNames(n.kind),
	}
	out := addFormat(c, formatWide, formatJSON, formatYAML, formatName)
	c.RunE = func(c *cobra.Command, args []string) error {
		client, err := a.control()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		objects, err := a.some(ctx, client, n.kind, args)
		if err != nil {
			return err
		}
		if out.word != "" && out.word != formatWide {
			return a.write(encodeObjects(out, objects, len(args) > 0))
		}
		if len(objects) == 0 {
			a.message("no %s; see `vpcproxyctl %s --help`", n.plural, map[bool]string{true: "attach", false: "apply"}[n.kind == intent.KindAttachment])
			return nil
		}
		v, err := a.view(ctx, client)
		if err != nil {
			return err
		}
		return a.write(table(v.rows(objects, out.word == formatWide)), nil)
	}
	return c
}

// some returns the object that is named, or all.
func (a *app) some(ctx context.Context, client vpcproxyv1alpha1connect.ControlServiceClient, k intent.Kind, args []string) ([]intent.Object, error) {
	if len(args) == 0 {
		return a.list(ctx, client, k)
	}
	o, err := a.get(ctx, client, k, args[0])
	return []intent.Object{o}, err
}

// view is all objects, and what nodes report of them.
type view struct {
	*app
	status *apiv1.StatusResponse
	set    intent.Set
}

func (a *app) view(ctx context.Context, client vpcproxyv1alpha1connect.ControlServiceClient) (*view, error) {
	resp, err := client.Status(ctx, connect.NewRequest(&apiv1.StatusRequest{}))
	if err != nil {
		return nil, a.controlError(err)
	}
	v := &view{app: a, status: resp.Msg}
	for _, k := range intent.Kinds {
		objects, err := a.list(ctx, client, k)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			v.set.Put(o)
		}
	}
	return v, nil
}

// report returns what a node has reported, or nil.
func (v *view) report(node string) *apiv1.NodeReport {
	for _, r := range v.status.GetNodes() {
		if r.GetNode() == node {
			return r
		}
	}
	return nil
}

// ready counts the nodes that have a part in an attachment, as proxy or as
// function host, and those of them that have it in place.
func (v *view) ready(at *intent.Attachment) (ready, all int) {
	count := func(node string, role intent.Role) {
		all++
		r := v.report(node)
		if r.GetConnected() && slices.ContainsFunc(r.GetAttachments(), func(a *apiv1.AttachmentReport) bool {
			return a.GetName() == at.ObjectName() && a.GetRole() == string(role) && a.GetReady()
		}) {
			ready++
		}
	}
	for _, g := range v.set.GroupsOf(at) {
		for _, m := range g.Spec.Members {
			count(m.Node, intent.RoleProxy)
		}
	}
	for _, n := range v.set.Nodes {
		if at.Uses(n) {
			count(n.ObjectName(), intent.RoleFunction)
		}
	}
	return ready, all
}

// rows lists objects of one kind with their state.
func (v *view) rows(objects []intent.Object, wide bool) [][]string {
	var rows [][]string
	for _, o := range objects {
		if len(rows) == 0 {
			rows = append(rows, v.head(o.ObjectKind(), wide))
		}
		switch o := o.(type) {
		case *intent.Attachment:
			rows = append(rows, v.attachmentRow(o, wide))
		case *intent.ProxyGroup:
			rows = append(rows, v.groupRow(o, wide))
		case *intent.Node:
			rows = append(rows, v.nodeRow(o, wide))
		}
	}
	return rows
}

func (v *view) head(k intent.Kind, wide bool) []string {
	switch k {
	case intent.KindAttachment:
		return pick(wide, attachmentHead, attachmentHeadWide)
	case intent.KindProxyGroup:
		return pick(wide, groupHead, groupHeadWide)
	case intent.KindNode:
	}
	return pick(wide, nodeHead, nodeHeadWide)
}

// pick adds the columns that only the wide format has.
func pick(wide bool, columns, more []string) []string {
	if !wide {
		return columns
	}
	return append(append([]string{}, columns...), more...)
}
