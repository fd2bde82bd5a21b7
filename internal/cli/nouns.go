package cli

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
)

// noun is a kind of object as commands name it.
type noun struct {
	kind             intent.Kind
	singular, plural string
	short            []string
}

var nouns = []noun{
	{intent.KindAttachment, "attachment", "attachments", []string{"att"}},
	{intent.KindProxyGroup, "group", "groups", []string{"pg", "proxygroup", "proxygroups"}},
	{intent.KindNode, "node", "nodes", []string{"no"}},
}

func nounOf(k intent.Kind) noun {
	return nouns[slices.IndexFunc(nouns, func(n noun) bool { return n.kind == k })]
}

// toStruct is how an object travels.
func toStruct(o intent.Object) (*structpb.Struct, error) {
	text, err := manifest.EncodeJSON(o)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(text); err != nil {
		return nil, fmt.Errorf("encode %s/%s: %w", o.ObjectKind(), o.ObjectName(), err)
	}
	return s, nil
}

func fromStruct(s *structpb.Struct) (intent.Object, error) {
	o, err := intent.Decode(s.AsMap())
	if err != nil {
		return nil, fmt.Errorf("the controller sent an object of another release: %w", err)
	}
	return o, nil
}

func (a *app) list(ctx context.Context, c vpcproxyv1alpha1connect.ControlServiceClient, k intent.Kind) ([]intent.Object, error) {
	resp, err := c.List(ctx, connect.NewRequest(&apiv1.ListRequest{Kind: string(k)}))
	if err != nil {
		return nil, a.controlError(err)
	}
	var out []intent.Object
	for _, s := range resp.Msg.GetObjects() {
		o, err := fromStruct(s)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

func (a *app) get(ctx context.Context, c vpcproxyv1alpha1connect.ControlServiceClient, k intent.Kind, name string) (intent.Object, error) {
	resp, err := c.Get(ctx, connect.NewRequest(&apiv1.GetRequest{Kind: string(k), Name: name}))
	if err != nil {
		return nil, a.controlError(err)
	}
	return fromStruct(resp.Msg.GetObject())
}

// completeNames completes the names of objects of one kind.
func (a *app) completeNames(k intent.Kind) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), askTimeout)
		defer cancel()
		client, err := a.control()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		objects, err := a.list(ctx, client, k)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, o := range objects {
			names = append(names, o.ObjectName())
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
