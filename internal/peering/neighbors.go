// Package peering says whom a node speaks BGP with, and what it believes of
// what it hears: it refuses by default. It is pure but for the clock that is
// handed to it.
package peering

import (
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Mode is whom a node speaks with.
type Mode string

// The modes.
const (
	Mesh      Mode = "mesh"      // function hosts with proxies, at their addresses in the intent
	Client    Mode = "client"    // reflectors
	Reflector Mode = "reflector" // whoever comes from the ranges, and the other reflectors
)

// Config is the part of a node's configuration that says whom it speaks with.
type Config struct {
	Mode       Mode
	BGP        plan.BGP
	Reflectors []netip.Addr
	Ranges     []netip.Prefix
}

// Neighbors returns whom the node speaks with. set may be nil: a reflector
// needs none.
func (c Config) Neighbors(node string, set *intent.Set) bgp.Neighbors {
	var n bgp.Neighbors
	switch c.Mode {
	case Client, Reflector:
		for _, r := range c.Reflectors {
			n.Peers = append(n.Peers, bgp.Peer{Address: r})
		}
		if c.Mode == Reflector {
			for _, r := range c.Ranges {
				n.Ranges = append(n.Ranges, bgp.Range{Prefix: r, Client: true})
			}
		}
	case Mesh:
		n.Peers = mesh(node, set)
	}
	return n
}

// mesh connects function hosts, which call, with proxies, which wait.
func mesh(node string, set *intent.Set) []bgp.Peer {
	if set == nil || set.Node(node) == nil {
		return nil
	}
	self := set.Node(node)
	var peers []bgp.Peer
	for _, n := range set.Nodes {
		addr := n.Spec.UnderlayAddress
		if n == self || !addr.IsValid() || addr == self.Spec.UnderlayAddress {
			continue
		}
		calls := self.HasRole(intent.RoleFunction) && n.HasRole(intent.RoleProxy)
		waits := self.HasRole(intent.RoleProxy) && n.HasRole(intent.RoleFunction)
		if calls && waits { // both could; one does
			calls = self.Spec.UnderlayAddress.Less(addr)
		}
		if calls || waits {
			peers = append(peers, bgp.Peer{Address: addr, Passive: !calls})
		}
	}
	return peers
}

// maxTargets is how many route targets a node asks for one by one. A reflector
// compares every route with every target of every client: beyond some hundreds
// it is quicker to take everything and to judge it here.
const maxTargets = 256

// Interest returns what the node asks its neighbors for, with what it has a part
// in.
func (c Config) Interest(node string, set *intent.Set, footprints []plan.Footprint) bgp.Interest {
	if c.Mode == Reflector || set == nil {
		return bgp.Interest{All: c.Mode == Reflector}
	}
	targets := plan.Interest(node, set, footprints, c.BGP)
	if len(targets) > maxTargets {
		return bgp.Interest{All: true}
	}
	var i bgp.Interest
	for _, t := range targets {
		i.Targets = append(i.Targets, bgp.Target(t))
	}
	return i
}

// hasTarget tells whether a route carries a target.
func hasTarget(r bgp.Route, t desired.RouteTarget) bool {
	return slices.Contains(r.Targets, bgp.Target(t))
}
