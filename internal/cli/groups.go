package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

var (
	groupHead     = []string{"NAME", "MEMBERS", "ATTACHMENTS"}
	groupHeadWide = []string{"TUNNEL"}
)

func (v *view) groupRow(g *intent.ProxyGroup, wide bool) []string {
	n := len(v.served(g.ObjectName()))
	return pick(wide, []string{g.ObjectName(), members(g), strconv.Itoa(n)}, []string{addrText(g.Tunnel())})
}

// members lists a group's proxies, with what they are preferred by.
func members(g *intent.ProxyGroup) string {
	names := make([]string, 0, len(g.Spec.Members))
	for _, m := range g.Spec.Members {
		name := m.Node
		if m.Priority != 0 {
			name += fmt.Sprintf("(%d)", m.Priority)
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

// served returns the attachments that a group serves.
func (v *view) served(group string) []*intent.Attachment {
	var out []*intent.Attachment
	for _, at := range v.set.Attachments {
		if at.ServedBy(group) {
			out = append(out, at)
		}
	}
	return out
}

func (v *view) describeGroup(g *intent.ProxyGroup) []byte {
	var d description
	d.field("Name", g.ObjectName())
	d.field("Members", members(g))
	d.field("Tunnel address", addrText(g.Tunnel()))
	if g.Elects() {
		d.field("HaVip", addrText(g.Spec.HaVip))
		d.field("VRID", strconv.FormatUint(uint64(g.Spec.VRID), 10))
		d.field("Adverts", fmt.Sprintf("every %v", g.Interval()))
	}
	d.field("Revision", strconv.FormatInt(g.Metadata.Revision, 10))
	served := v.served(g.ObjectName())
	rows := append(make([][]string, 0, 1+len(served)), attachmentHead)
	for _, at := range served {
		rows = append(rows, v.attachmentRow(at, false))
	}
	d.section("Attachments", rows)
	return d.bytes()
}
