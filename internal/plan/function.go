package plan

import (
	"net/netip"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// allTunnels matches every tunnel device of ours, as iptables patterns do.
const allTunnels = desired.LinkPrefix + "+"

// function plans a function host: all in the agent's own namespace.
func (b *builder) function(attachments []*intent.Attachment) {
	if len(attachments) == 0 {
		return
	}
	tunnel := b.self.Tunnel()
	if !tunnel.IsValid() {
		b.problem(nil, "node %s has no tunnel address yet; without a controller set spec.tunnelAddress", b.self.ObjectName())
	}
	slots := slots(attachments, b.cfg.slots())
	b.room(attachments)
	mtu := 0
	for _, a := range attachments {
		slot, ok := slots[a.ObjectName()]
		if a.EffectiveScope() == intent.ScopePods {
			b.state.Ways[a.ObjectName()] = desired.Way{CIDRs: a.Spec.CIDRs, Steer: desired.Steer{Refuse: true}}
			if !ok {
				b.problem(a, "no packet mark is free: steering.markMask %#x and steering.zoneBase %d have room for %d attachments", b.cfg.MarkMask, b.cfg.ZoneBase, b.cfg.slots())
				continue
			}
		}
		b.footprint(a, slot)
		if m := b.prepare(a, slot, tunnel); m > 0 && (mtu == 0 || m < mtu) {
			mtu = m
		}
	}
	b.accounting("")
	b.state.Sysctls[desired.SysctlKey{Name: "net/ipv4/ip_forward"}] = desired.Sysctl{Value: "1"}
	b.announceHost()
	if tunnel.IsValid() {
		b.state.NAT[desired.NATKey{}] = hostNAT(tunnel, mtu)
	}
}

// room makes room for what the attachments in use will want. Nothing may be
// planned yet.
func (b *builder) room(attachments []*intent.Attachment) {
	used := 0
	for _, a := range attachments {
		if !b.idle(a) {
			used++
		}
	}
	b.state = desired.Sized(used)
	b.plan.Footprints = make([]Footprint, 0, len(attachments))
}

// idle tells whether no pod uses an attachment, nor is to find it ready.
func (b *builder) idle(a *intent.Attachment) bool {
	return a.EffectiveScope() == intent.ScopePods && len(a.Spec.Pods) == 0 && !a.Spec.Prewarm && !b.facts.Used[a.ObjectName()]
}

// prepare plans what an attachment needs of a function host, as far as it is
// in use or wanted to be ready, and returns the MTU of its path, or 0.
func (b *builder) prepare(a *intent.Attachment, slot uint32, tunnel netip.Addr) int {
	if a.EffectiveScope() == intent.ScopePods {
		if b.idle(a) {
			if _, keyed, ok := b.key(a); ok {
				return b.mtu(keyed)
			}
			return 0
		}
		b.steer(a, slot)
	}
	return b.carry(a, slot, tunnel)
}

// hostNAT hides pods behind the tunnel address and admits only answers from
// user VPCs, neither to the host nor to its pods.
func hostNAT(tunnel netip.Addr, mtu int) desired.NAT {
	n := desired.NAT{
		SNAT:    []desired.SNAT{{Out: allTunnels, To: tunnel, Except: []netip.Addr{tunnel}}},
		Forward: []desired.Forward{{Out: allTunnels}},
		Guarded: []string{allTunnels},
	}
	if mtu > 0 {
		n.Clamp = []desired.Clamp{{Link: allTunnels, MTU: mtu}}
	}
	return n
}

func (b *builder) footprint(a *intent.Attachment, slot uint32) {
	key, keyed := a.Key()
	f := Footprint{Attachment: a.ObjectName(), Role: intent.RoleFunction, Link: desired.LinkPrefix + ID(a.ObjectName()),
		CIDRs: a.Spec.CIDRs, HostWide: a.EffectiveScope() == intent.ScopeHost, Keyed: keyed, Key: key, Table: mainTable}
	if a.EffectiveScope() == intent.ScopePods {
		f.Table = b.cfg.TableBase + slot
		f.Steers = append(f.Steers, zoneOf(a))
		for _, src := range a.Spec.Pods {
			for _, dst := range a.Spec.CIDRs {
				f.Steers = append(f.Steers, desired.SteerKey{Src: src, Dst: dst})
			}
		}
	}
	b.plan.Footprints = append(b.plan.Footprints, f)
}

// steer sends the attachment's pods to its table, where what has no path is
// unreachable. It does not wait for the path: a pod without one is refused. What
// comes back by the tunnel is tracked in the zone of what went there.
func (b *builder) steer(a *intent.Attachment, slot uint32) {
	mark, table, zone := spread(slot+1, b.cfg.MarkMask), b.cfg.TableBase+slot, b.cfg.ZoneBase+uint16(slot) //nolint:gosec // Config.slots bounds it
	b.state.Rules[desired.RuleKey{Priority: b.cfg.RulePriority, Mark: mark, Mask: b.cfg.MarkMask, Table: table}] = desired.Rule{}
	b.state.Routes[desired.RouteKey{Table: table, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Metric: lastMetric}] =
		desired.Route{Type: desired.Unreachable}
	b.state.Steers[zoneOf(a)] = desired.Steer{Zone: zone}
	steer := desired.Steer{Mark: mark, Mask: b.cfg.MarkMask, Zone: zone}
	b.state.Ways[a.ObjectName()] = desired.Way{CIDRs: a.Spec.CIDRs, Steer: steer}
	for _, src := range a.Spec.Pods {
		for _, dst := range a.Spec.CIDRs {
			b.state.Steers[desired.SteerKey{Src: src, Dst: dst}] = steer
		}
	}
}

// zoneOf is the attachment's tunnel as the origin of packets.
func zoneOf(a *intent.Attachment) desired.SteerKey {
	return desired.SteerKey{Link: desired.LinkPrefix + ID(a.ObjectName())}
}

// carry plans the path to the attachment's proxies and returns its MTU, or 0 if
// there is no path.
func (b *builder) carry(a *intent.Attachment, slot uint32, tunnel netip.Addr) int {
	b.plan.Footprints[len(b.plan.Footprints)-1].InUse = true
	key, keyed, ok := b.key(a)
	if !ok || !tunnel.IsValid() {
		return 0
	}
	all, chosen := b.gateways(a)
	if len(all) == 0 {
		return 0
	}
	local := b.self.Spec.UnderlayAddress
	link := b.tunnelLink("", a, local, key, keyed)
	for _, g := range all { // a group that comes alive must be able to answer, and to be sent to, at once
		b.peer(local, g.nbma, key, keyed)
		b.state.Neighbors[desired.NeighborKey{Link: link.Name, Addr: g.group.Tunnel()}] = desired.Neighbor{NBMA: g.nbma}
	}
	b.state.Addresses[desired.AddressKey{Link: link.Name, Prefix: host(tunnel)}] = desired.Address{}
	b.state.Sysctls[desired.SysctlKey{Name: "net/ipv4/conf/" + link.Name + "/rp_filter"}] = desired.Sysctl{Value: b.rpFilter()}
	way, ok := b.ways(a, link.Name, chosen)
	if !ok {
		return b.mtu(keyed)
	}
	table := b.cfg.TableBase + slot
	if a.EffectiveScope() == intent.ScopeHost {
		// The host's own packets must carry an address that the proxy
		// has a neighbor entry for.
		table, way.Source = mainTable, tunnel
	}
	for _, dst := range a.Spec.CIDRs {
		b.state.Routes[desired.RouteKey{Table: table, Dst: dst}] = way
	}
	return b.mtu(keyed)
}

// rpFilter is for tunnel devices on a function host: answers come from
// addresses that the main table routes elsewhere, so the strict check would
// drop them. The kernel takes the maximum of the device's value and that of
// "all" (Documentation/networking/ip-sysctl.rst): only 2 (loose) relaxes a
// strict "all"; otherwise 0 is enough.
func (b *builder) rpFilter() string {
	if b.facts.StrictRPFilter {
		return "2"
	}
	return "0"
}
