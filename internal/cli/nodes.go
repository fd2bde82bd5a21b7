package cli

import (
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

var (
	nodeHead     = []string{"NAME", "ROLES", "STATE", "UNDERLAY", "SEEN"}
	nodeHeadWide = []string{"TUNNEL", "PODS", "REVISION", "VERSION"}
)

func (v *view) nodeRow(n *intent.Node, wide bool) []string {
	r := v.report(n.ObjectName())
	return pick(wide,
		[]string{n.ObjectName(), roles(n), nodeState(r), addrText(n.Spec.UnderlayAddress), v.seen(r.GetLastSeen())},
		[]string{addrText(n.Tunnel()), orDash(textList(n.Spec.PodCIDRs)), strconv.FormatInt(r.GetRevision(), 10), orDash(r.GetVersion())})
}

func roles(n *intent.Node) string {
	words := make([]string, 0, len(n.Spec.Roles))
	for _, r := range n.Spec.Roles {
		words = append(words, string(r))
	}
	return strings.Join(words, ",")
}

// nodeState is the one word that matters most.
func nodeState(r *apiv1.NodeReport) string {
	switch {
	case r == nil || !r.GetConnected() && r.GetLastSeen() == nil:
		return "never seen"
	case !r.GetConnected():
		return "disconnected"
	case r.GetHeld() != "":
		return "holding"
	case !r.GetInSync():
		return "working"
	case len(r.GetProblems()) > 0:
		return "problems"
	}
	return "in sync"
}

func (a *app) seen(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return a.age(t.AsTime()) + " ago"
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func (v *view) describeNode(n *intent.Node) []byte {
	var d description
	d.field("Name", n.ObjectName())
	d.field("Roles", roles(n))
	d.field("Underlay address", addrText(n.Spec.UnderlayAddress))
	d.field("Underlay ranges", orDash(textList(n.Spec.UnderlayCIDRs)))
	d.field("Tunnel address", addrText(n.Tunnel()))
	d.field("Pod ranges", orDash(textList(n.Spec.PodCIDRs)))
	d.report(v.app, v.report(n.ObjectName()))
	return d.bytes()
}

// report adds what a node says of itself.
func (d *description) report(a *app, r *apiv1.NodeReport) {
	d.field("State", nodeState(r))
	if r == nil {
		return
	}
	d.field("Seen", a.seen(r.GetLastSeen()))
	d.field("Version", orDash(r.GetVersion()))
	d.field("Revision", strconv.FormatInt(r.GetRevision(), 10))
	if r.GetHeld() != "" {
		d.field("Held", r.GetHeld())
	}
	rows := [][]string{{"NAME", "ROLE", "READY", "MESSAGE"}}
	for _, at := range r.GetAttachments() {
		rows = append(rows, []string{at.GetName(), at.GetRole(), yesNo(at.GetReady()), orDash(at.GetMessage())})
	}
	d.section("Attachments", rows)
	if len(r.GetInterfaces()) > 0 {
		rows := [][]string{{"NAME", "MAC", "PCI", "ADDRESSES", "ATTACHMENT"}}
		for _, i := range r.GetInterfaces() {
			rows = append(rows, []string{i.GetName(), orDash(i.GetMac()), orDash(i.GetPci()), orDash(strings.Join(i.GetAddresses(), ",")), orDash(i.GetAttachment())})
		}
		d.section("Interfaces", rows)
	}
	d.lines("Problems", r.GetProblems())
}
