package controller

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// checkENIs compares an attachment's interfaces with those that the proxies
// have reported. A proxy that is not connected cannot be asked: that is a
// warning.
func (c *Controller) checkENIs(set *intent.Set, a *intent.Attachment) (warnings []string, err error) {
	var members []intent.Member
	for _, g := range set.GroupsOf(a) {
		members = append(members, g.Spec.Members...)
	}
	var errs []error
	for _, m := range members {
		e, ok := a.ENIOn(m.Node)
		if !ok {
			continue
		}
		field := fmt.Sprintf("spec.enis[%d]", slices.IndexFunc(a.Spec.ENIs, func(o intent.ENI) bool { return o.Node == e.Node }))
		interfaces, connected := c.agents.interfaces(m.Node)
		switch {
		case !connected:
			warnings = append(warnings, fmt.Sprintf("proxy %s is not connected: nobody knows yet whether it has the interface %s", m.Node, describe(e)))
		case len(interfaces) == 0:
			warnings = append(warnings, fmt.Sprintf("proxy %s has not told its interfaces: nobody knows yet whether it has %s", m.Node, describe(e)))
		default:
			if r := checkInterface(set, a, m.Node, e, field, interfaces); r != nil {
				errs = append(errs, r)
			}
		}
	}
	return warnings, errors.Join(errs...)
}

func describe(e intent.ENI) string {
	switch {
	case e.Name != "":
		return "name=" + e.Name
	case e.MAC != "":
		return "mac=" + e.MAC
	}
	return "pci=" + e.PCI
}

func matches(e intent.ENI, i *apiv1.Interface) bool {
	switch {
	case e.Name != "":
		return e.Name == i.GetName()
	case e.MAC != "":
		return strings.EqualFold(e.MAC, i.GetMac())
	}
	return strings.EqualFold(e.PCI, i.GetPci())
}

func checkInterface(set *intent.Set, a *intent.Attachment, node string, e intent.ENI, field string, interfaces []*apiv1.Interface) error {
	n := slices.IndexFunc(interfaces, func(i *apiv1.Interface) bool { return matches(e, i) })
	if n < 0 {
		return refuse(connect.CodeNotFound, apiv1.FieldProblem_REASON_NOT_FOUND, a, field,
			"proxy %s has no interface %s; it has %s", node, describe(e), inventory(interfaces))
	}
	found := interfaces[n]
	if self := set.Node(node); self != nil && holds(found, self.Spec.UnderlayAddress) {
		return refuse(connect.CodeInvalidArgument, apiv1.FieldProblem_REASON_INVALID, a, field,
			"%s is the interface by which proxy %s is reached (%s); name one in the user's subnet", describe(e), node, self.Spec.UnderlayAddress)
	}
	// The interface may be named in another way by another attachment.
	for _, other := range set.Attachments {
		if other.ObjectName() == a.ObjectName() {
			continue
		}
		if set.GroupOn(other, node) == nil {
			continue
		}
		if oe, ok := other.ENIOn(node); ok && matches(oe, found) {
			return refuse(connect.CodeAlreadyExists, apiv1.FieldProblem_REASON_CONFLICT, a, field,
				"%s of proxy %s serves attachment %s already, as %s; an ENI serves one attachment", describe(e), node, other.ObjectName(), describe(oe))
		}
	}
	return nil
}

func holds(i *apiv1.Interface, a netip.Addr) bool {
	return slices.ContainsFunc(i.GetAddresses(), func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Addr() == a
	})
}

// inventory lists interfaces for a message.
func inventory(interfaces []*apiv1.Interface) string {
	var list []string
	for _, i := range interfaces {
		s := fmt.Sprintf("%s (mac %s", i.GetName(), i.GetMac())
		if i.GetPci() != "" {
			s += ", pci " + i.GetPci()
		}
		if i.GetAttachment() != "" {
			s += ", of attachment " + i.GetAttachment()
		}
		list = append(list, s+")")
	}
	slices.Sort(list)
	const most = 10
	if len(list) > most {
		list = append(list[:most], fmt.Sprintf("%d more", len(list)-most))
	}
	return strings.Join(list, ", ")
}
