package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

var (
	attachmentHead     = []string{"NAME", "VPC", "SUBNETS", "GROUP", "SCOPE", "READY"}
	attachmentHeadWide = []string{"PODS", "ENIS", "SNAT", "KEY"}
)

func (v *view) attachmentRow(o *intent.Attachment, wide bool) []string {
	ready, all := v.ready(o)
	row := append(attachmentBasics(o), fmt.Sprintf("%d/%d", ready, all))
	return pick(wide, row, attachmentDetails(o))
}

func attachmentBasics(o *intent.Attachment) []string {
	return []string{o.ObjectName(), o.Spec.VPC, textList(o.Spec.CIDRs), groupsText(o), string(o.EffectiveScope())}
}

func attachmentDetails(o *intent.Attachment) []string {
	enis := make([]string, 0, len(o.Spec.ENIs))
	for _, e := range o.Spec.ENIs {
		enis = append(enis, eniText(e))
	}
	return []string{orDash(textList(o.Spec.Pods)), strings.Join(enis, " "), snatText(o), keyText(o)}
}

func groupsText(o *intent.Attachment) string {
	var names []string
	for _, s := range o.Services() {
		names = append(names, s.Name)
	}
	return strings.Join(names, ",")
}

func snatText(o *intent.Attachment) string {
	if o.Spec.SNATAddress.IsValid() {
		return o.Spec.SNATAddress.String()
	}
	return "interface"
}

func keyText(o *intent.Attachment) string {
	key, keyed := o.Key()
	if !keyed {
		return "-"
	}
	return strconv.FormatUint(uint64(key), 10)
}

// wideRows is what `attach -o wide` prints: there is no state yet.
func wideRows(objects []intent.Object) [][]string {
	rows := [][]string{append(slices.Clone(attachmentHead[:len(attachmentHead)-1]), attachmentHeadWide...)}
	for _, o := range objects {
		if at, ok := o.(*intent.Attachment); ok {
			rows = append(rows, append(attachmentBasics(at), attachmentDetails(at)...))
		}
	}
	return rows
}

// describeAttachment adds to the specification what each node says of it.
func (v *view) describeAttachment(ctx context.Context, client watcher, o *intent.Attachment) ([]byte, error) {
	p, err := v.progressOf(ctx, client, o.ObjectName())
	if err != nil {
		return nil, err
	}
	var d description
	d.field("Name", o.ObjectName())
	d.field("VPC", o.Spec.VPC)
	d.field("Subnets", textList(o.Spec.CIDRs))
	d.field("Group", groupsText(o))
	d.field("Scope", string(o.EffectiveScope()))
	d.field("Pods", orDash(textList(o.Spec.Pods)))
	d.field("Nodes", orDash(strings.Join(o.Spec.Nodes, ",")))
	for _, e := range o.Spec.ENIs {
		d.field("ENI", eniText(e))
	}
	d.field("SNAT address", snatText(o))
	d.field("GRE key", keyText(o))
	d.field("Allow overlap", strconv.FormatBool(o.Spec.AllowOverlap))
	d.field("Revision", strconv.FormatInt(o.Metadata.Revision, 10))
	d.field("In place", map[bool]string{true: "yes", false: "not everywhere"}[p.GetConverged()])
	rows := [][]string{{"NODE", "ROLE", "READY", "CONNECTED", "MESSAGE"}}
	for _, n := range p.GetNodes() {
		rows = append(rows, []string{n.GetNode(), n.GetRole(), yesNo(n.GetReady()), yesNo(n.GetConnected()), orDash(n.GetMessage())})
	}
	d.section("Nodes", rows)
	return d.bytes(), nil
}

// progressOf returns an attachment's present state.
func (v *view) progressOf(ctx context.Context, client watcher, name string) (*apiv1.WatchAttachmentResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.WatchAttachment(ctx, connect.NewRequest(&apiv1.WatchAttachmentRequest{Name: name}))
	if err != nil {
		return nil, v.controlError(err)
	}
	defer func() { _ = stream.Close() }()
	if !stream.Receive() {
		return nil, v.controlError(stream.Err())
	}
	return stream.Msg(), nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
