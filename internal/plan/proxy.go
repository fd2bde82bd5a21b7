package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// proxy plans a proxy node: each attachment in a namespace of its own, so that
// overlapping subnets never meet.
func (b *builder) proxy(attachments []*intent.Attachment) {
	for _, a := range attachments {
		b.serve(a)
	}
}

func (b *builder) serve(a *intent.Attachment) {
	g := b.set.GroupOn(a, b.self.ObjectName())
	netns := desired.LinkPrefix + ID(a.ObjectName())
	key, keyed, ok := b.key(a)
	b.plan.Footprints = append(b.plan.Footprints, Footprint{Attachment: a.ObjectName(), Role: intent.RoleProxy,
		Netns: netns, Link: desired.LinkPrefix + ID(a.ObjectName()), CIDRs: a.Spec.CIDRs, Keyed: keyed, Key: key, InUse: true})
	f := &b.plan.Footprints[len(b.plan.Footprints)-1]
	if !ok {
		return
	}
	if !g.Tunnel().IsValid() {
		b.problem(a, "group %s has no tunnel address yet; without a controller set spec.tunnelAddress", g.ObjectName())
		return
	}
	b.state.Namespaces[netns] = desired.Namespace{}
	b.accounting(netns)
	link := b.tunnelLink(netns, a, b.outer(g), key, keyed)
	b.state.Addresses[desired.AddressKey{Netns: netns, Link: link.Name, Prefix: host(g.Tunnel())}] = desired.Address{}
	b.hostsSide(a, link, b.outer(g), key, keyed)

	nat := desired.NAT{
		Clamp:   []desired.Clamp{{Link: link.Name, MTU: b.mtu(keyed)}},
		Guarded: []string{link.Name},
	}
	if eni, found := b.eni(a, netns); found {
		f.ENI = eni.Name
		b.vpcSide(a, g, netns, eni)
		nat.SNAT = []desired.SNAT{{Out: eni.Name, To: source(a, g), Except: b.ownSources(a, g, netns, eni.Name)}}
		nat.Forward = []desired.Forward{{In: link.Name, Out: eni.Name}}
		nat.Guarded = append(nat.Guarded, eni.Name)
		// Forwarding opens only when there is a way to forward to, and
		// after the filter is in place (stage order).
		b.state.Sysctls[desired.SysctlKey{Netns: netns, Name: "net/ipv4/ip_forward"}] = desired.Sysctl{Value: "1"}
		b.announce(a, g, netns, eni, key, keyed)
	}
	b.state.NAT[desired.NATKey{Netns: netns}] = nat
}

// ownSources are the addresses that a proxy of a group speaks from itself: as
// the HaVip, its probes would be answered to the other proxy.
func (b *builder) ownSources(a *intent.Attachment, g *intent.ProxyGroup, netns, link string) []netip.Addr {
	havip := a.HaVipIn(g.ObjectName())
	if !havip.IsValid() {
		return nil
	}
	own := slices.Clone(b.state.Egress[desired.EgressKey{Netns: netns, Link: link}].Sources)
	return slices.DeleteFunc(own, func(s netip.Addr) bool { return s == havip || !s.Is4() })
}

// hostsSide plans the way back to the function hosts.
func (b *builder) hostsSide(a *intent.Attachment, link desired.LinkKey, local netip.Addr, key uint32, keyed bool) {
	pool := b.set.Pool
	if !pool.IsValid() {
		pool = intent.DefaultPool
	}
	hosts := b.hosts(a)
	asks, onDemand := b.asks(a, len(hosts))
	if asks {
		l := b.state.Links[link]
		l.ARP = true
		b.state.Links[link] = l
	}
	for _, n := range hosts {
		tunnel := n.Tunnel()
		if !tunnel.IsValid() {
			b.problem(a, "function host %s has no tunnel address yet", n.ObjectName())
			continue
		}
		underlay := b.underlayOf(n)
		b.peer(local, underlay, key, keyed)
		if asks {
			b.solicit(link, tunnel)
		}
		b.state.Neighbors[desired.NeighborKey{Netns: link.Netns, Link: link.Name, Addr: tunnel}] =
			desired.Neighbor{NBMA: underlay, OnDemand: onDemand}
		dst := host(tunnel)
		if pool.Contains(tunnel) {
			dst = pool
		}
		b.state.Routes[desired.RouteKey{Netns: link.Netns, Table: mainTable, Dst: dst}] = desired.Route{Link: link.Name}
	}
}

// asks tells whether the kernel asks for the neighbors of an attachment's link,
// and whether they are made only then. It asks already if the latter may come to
// be: switching it on drops all neighbors of a link, so growth alone must not
// switch it. The plain recipe is left as it is.
func (b *builder) asks(a *intent.Attachment, hosts int) (asks, onDemand bool) {
	mode := b.cfg.Neighbors
	if a.EffectiveScope() == intent.ScopeHost || mode == NeighborsEager || mode == "" {
		return false, false
	}
	return true, mode == NeighborsOnDemand || hosts > AutoNeighbors
}

// solicit has the kernel ask for the neighbors of a link in an address's family:
// one question to the agent and no broadcast, which goes nowhere on a multipoint
// tunnel (arp(7)).
func (b *builder) solicit(link desired.LinkKey, a netip.Addr) {
	family := "ipv4"
	if a.Is6() {
		family = "ipv6"
	}
	for name, value := range map[string]string{"app_solicit": "1", "mcast_solicit": "0"} {
		b.state.Sysctls[desired.SysctlKey{Netns: link.Netns, Name: "net/" + family + "/neigh/" + link.Name + "/" + name}] = desired.Sysctl{Value: value}
	}
}

// underlayOf returns where a function host is: as it has announced, or as the
// intent has it.
func (b *builder) underlayOf(n *intent.Node) netip.Addr {
	if b.facts.Live != nil {
		if moved, ok := b.facts.Live.Moved[n.Tunnel()]; ok {
			return moved
		}
	}
	return n.Spec.UnderlayAddress
}

// eni finds the attachment's interface among the facts.
func (b *builder) eni(a *intent.Attachment, netns string) (Interface, bool) {
	spec, ok := a.ENIOn(b.self.ObjectName())
	if !ok {
		b.problem(a, "spec.enis names no interface for this proxy")
		return Interface{}, false
	}
	var found []Interface
	for _, i := range b.facts.Interfaces {
		if i.Netns != "" && i.Netns != netns || !matches(spec, i) {
			continue
		}
		if i.Netns == "" && i.Name == b.facts.UnderlayLink {
			b.problem(a, "interface %s with %s carries the underlay address and cannot be moved away; mend spec.enis", i.Name, describe(spec))
			return Interface{}, false
		}
		found = append(found, i)
	}
	switch len(found) {
	case 0:
		b.problem(a, "no interface with %s on this node; attach the ENI or mend spec.enis", describe(spec))
		return Interface{}, false
	case 1:
		return found[0], true
	}
	// One that is in place already is the one; a bridge or VLAN beside it
	// may carry the same MAC address.
	if i := slices.IndexFunc(found, func(i Interface) bool { return i.Netns == netns }); i >= 0 {
		return found[i], true
	}
	b.problem(a, "%d interfaces have %s (%s, %s); name one by pci or name", len(found), describe(spec), found[0].Name, found[1].Name)
	return Interface{}, false
}

func matches(spec intent.ENI, i Interface) bool {
	switch {
	case spec.Name != "":
		return spec.Name == i.Name
	case spec.MAC != "":
		return strings.EqualFold(spec.MAC, i.MAC)
	}
	return strings.EqualFold(spec.PCI, i.PCI)
}

func describe(e intent.ENI) string {
	switch {
	case e.Name != "":
		return "name " + e.Name
	case e.MAC != "":
		return "MAC address " + e.MAC
	}
	return "PCI address " + e.PCI
}

// vpcSide plans the ENI and the way into the user VPC.
func (b *builder) vpcSide(a *intent.Attachment, g *intent.ProxyGroup, netns string, eni Interface) {
	b.state.ENIs[desired.ENIKey{Netns: netns, Name: eni.Name}] = desired.ENI{MAC: eni.MAC}
	spec, _ := a.ENIOn(b.self.ObjectName())
	add := spec.Addresses
	if a.Spec.SNATAddress.IsValid() && !hasAddress(eni.Addresses, a.Spec.SNATAddress) && !hasAddress(add, a.Spec.SNATAddress) {
		add = append(slices.Clone(add), host(a.Spec.SNATAddress))
	}
	for _, p := range add {
		b.state.Addresses[desired.AddressKey{Netns: netns, Link: eni.Name, Prefix: p}] = desired.Address{}
	}
	all := append(slices.Clone(eni.Addresses), add...)
	var sources []netip.Addr
	for _, p := range all {
		sources = append(sources, p.Addr())
	}
	if havip := a.HaVipIn(g.ObjectName()); havip.IsValid() { // on a standby, too: the guard need not move
		sources = append(sources, havip)
		// A proxy that takes connections over, or back, has not seen all of
		// their segments: it must not take the next ones for invalid.
		b.state.Sysctls[desired.SysctlKey{Netns: netns, Name: "net/netfilter/nf_conntrack_tcp_be_liberal"}] = desired.Sysctl{Value: "1"}
	}
	slices.SortFunc(sources, netip.Addr.Compare)
	b.state.Egress[desired.EgressKey{Netns: netns, Link: eni.Name}] = desired.Egress{Sources: slices.Compact(sources)}
	if len(all) == 0 {
		b.problem(a, "interface %s has no address; give it one, or set spec.enis[].addresses", eni.Name)
	}
	// The tunnel addresses are nobody's business in the user VPC: answer
	// ARP only for the ENI's own addresses, and ask only from them.
	for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2"} {
		b.state.Sysctls[desired.SysctlKey{Netns: netns, Name: fmt.Sprintf("net/ipv4/conf/%s/%s", eni.Name, name)}] = desired.Sysctl{Value: value}
	}
	if !spec.Gateway.IsValid() {
		return
	}
	for _, dst := range a.Spec.CIDRs {
		if !onLink(all, dst) {
			b.state.Routes[desired.RouteKey{Netns: netns, Table: mainTable, Dst: dst}] =
				desired.Route{Link: eni.Name, Via: spec.Gateway, Onlink: true}
		}
	}
}

func hasAddress(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr() == a })
}

func onLink(addresses []netip.Prefix, dst netip.Prefix) bool {
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool {
		return p.Bits() <= dst.Bits() && p.Contains(dst.Addr())
	})
}
