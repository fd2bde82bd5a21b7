package controller

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// checkPool refuses ranges that tunnel addresses cannot come from.
func checkPool(p netip.Prefix) error {
	switch {
	case !p.Addr().Is4():
		return fmt.Errorf("pool %s is not IPv4, as the destinations of attachments are", p)
	case p != p.Masked():
		return fmt.Errorf("pool %s has host bits set; did you mean %s?", p, p.Masked())
	case p.Bits() > 30:
		return fmt.Errorf("pool %s is too small; want at least a /30", p)
	case p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
		return fmt.Errorf("pool %s is not a range of unicast addresses; want one such as %s", p, intent.DefaultPool)
	}
	return nil
}

// allocate gives an object in set what it lacks. What it had before, or has in
// served, it keeps.
func (c *Controller) allocate(set, served *intent.Set, o intent.Object) error {
	switch o := o.(type) {
	case *intent.Attachment:
		c.allocateKey(set, served, o)
	case *intent.ProxyGroup:
		if o.Spec.TunnelAddress.IsValid() {
			o.Status.TunnelAddress = netip.Addr{}
		}
		if !o.Tunnel().IsValid() {
			return allocateAddress(set, o, &o.Status.TunnelAddress)
		}
	case *intent.Node:
		if o.Spec.TunnelAddress.IsValid() {
			o.Status.TunnelAddress = netip.Addr{}
		}
		if !o.Tunnel().IsValid() && o.HasRole(intent.RoleFunction) {
			return allocateAddress(set, o, &o.Status.TunnelAddress)
		}
	}
	return nil
}

func (c *Controller) allocateKey(set, served *intent.Set, a *intent.Attachment) {
	if a.Spec.GREKey != nil || a.EffectiveScope() == intent.ScopeHost {
		a.Status.GREKey = nil
		return
	}
	taken := map[uint32]bool{0: true} // 0 is as good as no key (RFC 2890)
	for _, other := range set.Attachments {
		if k, keyed := other.Key(); keyed && other.ObjectName() != a.ObjectName() {
			taken[k] = true
		}
	}
	if a.Status.GREKey == nil && served != nil {
		// One that was lost is applied again: nodes may still use its key.
		if lost := served.Attachment(a.ObjectName()); lost != nil {
			a.Status.GREKey = lost.Status.GREKey
		}
	}
	if a.Status.GREKey != nil && !taken[*a.Status.GREKey] {
		return
	}
	k := c.key()
	for taken[k] {
		k = c.key()
	}
	a.Status.GREKey = &k
}

// allocateAddress takes the lowest free address of the pool.
func allocateAddress(set *intent.Set, o intent.Object, into *netip.Addr) error {
	taken := map[netip.Addr]bool{}
	for _, n := range set.Nodes {
		taken[n.Tunnel()] = true
	}
	for _, g := range set.Groups {
		taken[g.Tunnel()] = true
	}
	pool := set.Pool
	last := broadcast(pool) // and the first address is the network's
	for a := pool.Addr().Next(); pool.Contains(a) && a != last; a = a.Next() {
		if taken[a] || destination(set, a) {
			continue
		}
		*into = a
		return nil
	}
	return &intent.FieldError{
		Object: intent.Reference(o.ObjectKind(), o.ObjectName()), Field: "spec.tunnelAddress", Reason: intent.Conflict,
		Problem: fmt.Sprintf("the pool %s has no free address; configure a larger one, or give an address", pool),
	}
}

// broadcast returns the last address of an IPv4 range.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// destination tells whether an attachment leads to an address: one that was
// accepted with another pool.
func destination(set *intent.Set, a netip.Addr) bool {
	return slices.ContainsFunc(set.Attachments, func(at *intent.Attachment) bool {
		return slices.ContainsFunc(at.Spec.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
	})
}
