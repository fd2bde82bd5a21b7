package node

import (
	"context"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/pkg/nat/iptables"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

// Kinds is what teaches the engine each kind of kernel object.
type Kinds struct {
	Namespaces reconcile.Kind[string, desired.Namespace]
	NAT        reconcile.Kind[desired.NATKey, nat.RuleSet]
	Peers      reconcile.Kind[desired.PeerKey, desired.Peer]
	Links      reconcile.Kind[desired.LinkKey, desired.Link]
	ENIs       reconcile.Kind[desired.ENIKey, desired.ENI]
	Egress     reconcile.Kind[desired.EgressKey, desired.Egress]
	Addresses  reconcile.Kind[desired.AddressKey, desired.Address]
	Neighbors  reconcile.Kind[desired.NeighborKey, desired.Neighbor]
	Sysctls    reconcile.Kind[desired.SysctlKey, desired.Sysctl]
	Nexthops   reconcile.Kind[desired.NexthopKey, desired.Nexthop]
	Routes     reconcile.Kind[desired.RouteKey, desired.Route]
	Rules      reconcile.Kind[desired.RuleKey, desired.Rule]
	Steers     reconcile.Kind[desired.SteerKey, desired.Steer]
	// Paths are what is announced by BGP; nil in static mode.
	Paths reconcile.Kind[desired.PathKey, desired.Path]

	// Exchange writes steers at once and beside the engine; see
	// route.Steers.Exchange.
	Exchange func(ctx context.Context, remove, add map[desired.SteerKey]desired.Steer) error
	// Close releases what Exchange keeps open.
	Close func() error

	// SysctlsDrifted tells whether a parameter that changes without an event is
	// not as wanted, and whether all are watched; see route.Sysctls.Drifted. Nil if
	// there is none.
	SysctlsDrifted func(context.Context) (drifted, watched bool)
	// NATDrifted tells, cheaply, whether address translation may have
	// changed since it was asked last. Nil where the kernel has events.
	NATDrifted func(context.Context) bool
	// NATSurvey tells what was found beside our rules of the agent's own
	// namespace. Nil if the backend cannot tell.
	NATSurvey func() nat.Survey
	// Drops counts the packets that our filters in a namespace have dropped,
	// by reason. It may be dear. Nil if nobody counts.
	Drops func(ctx context.Context, netns string) (map[string]uint64, error)

	// LegacyBeside returns what iptables-legacy decides in a namespace. Nil if that
	// is the variant in use, or not installed.
	LegacyBeside func(ctx context.Context, netns string) ([]iptables.BaseChain, error)

	// IPTables is the variant in use, nft or legacy; "" if none is.
	IPTables string

	// What answers when the kernel asks for a neighbor, and from what; both
	// nil if nothing does.
	responder *tunnel.Responder
	hosts     *tunnel.Table
}

// resolve tells the responder what is planned.
func (k Kinds) resolve(s desired.State) {
	if k.responder != nil {
		k.responder.Follow(k.hosts.Set(s.Neighbors))
	}
}

// stages puts the kinds in the order in which they are made; breaking goes in
// reverse. Filters come before what they guard, steering after everything that
// it leads to. steered is what is steered at a desired state, from one moment to
// the next.
func (k Kinds) stages(steered func(desired.State) map[desired.SteerKey]desired.Steer) []reconcile.Stage[desired.State] {
	type state = desired.State
	const (
		namespaces, natName, peers, links, enis, egress = "namespaces", "nat", "peers", "links", "enis", "egress"
		addresses, neighbors, sysctls, routes, rules    = "addresses", "neighbors", "sysctls", "routes", "rules"
		nexthops, steers                                = "nexthops", "steers"
		refusals                                        = "refusals" // never wait for a path: they stand in for one
	)
	// A namespace is a unit: what fails in one holds nothing back in
	// another. The empty group would concern them all.
	inside := func(netns string) string {
		if netns == "" {
			return "."
		}
		return netns
	}
	all := []reconcile.Stage[state]{
		reconcile.NewStage(k.Namespaces, func(s state) map[string]desired.Namespace { return s.Namespaces },
			func(n string, _ desired.Namespace) string { return inside(n) },
			reconcile.Invalidates(natName, peers, links, enis, egress, addresses, neighbors, sysctls, nexthops, routes, rules)),
		reconcile.NewStage(k.NAT, natRules,
			func(n desired.NATKey, _ nat.RuleSet) string { return inside(n.Netns) }, reconcile.Requires(namespaces)),
		reconcile.NewStage(k.Peers, func(s state) map[desired.PeerKey]desired.Peer { return s.Peers }, nil),
		reconcile.NewStage(k.Links, func(s state) map[desired.LinkKey]desired.Link { return s.Links },
			func(l desired.LinkKey, _ desired.Link) string { return inside(l.Netns) },
			reconcile.Requires(namespaces, natName, peers), reconcile.Invalidates(addresses, neighbors, sysctls, nexthops, routes)),
		reconcile.NewStage(k.ENIs, func(s state) map[desired.ENIKey]desired.ENI { return s.ENIs },
			func(e desired.ENIKey, _ desired.ENI) string { return inside(e.Netns) },
			reconcile.Requires(namespaces, natName), reconcile.Invalidates(egress, addresses, sysctls, routes)),
		reconcile.NewStage(k.Egress, func(s state) map[desired.EgressKey]desired.Egress { return s.Egress },
			func(e desired.EgressKey, _ desired.Egress) string { return inside(e.Netns) }),
		reconcile.NewStage(k.Addresses, func(s state) map[desired.AddressKey]desired.Address { return s.Addresses },
			func(a desired.AddressKey, _ desired.Address) string { return inside(a.Netns) },
			reconcile.Invalidates(routes)), // a route goes with its preferred source
		reconcile.NewStage(k.Neighbors, func(s state) map[desired.NeighborKey]desired.Neighbor { return s.Neighbors },
			func(n desired.NeighborKey, _ desired.Neighbor) string { return inside(n.Netns) }),
		reconcile.NewStage(k.Sysctls, func(s state) map[desired.SysctlKey]desired.Sysctl { return s.Sysctls },
			func(n desired.SysctlKey, _ desired.Sysctl) string { return inside(n.Netns) },
			reconcile.Requires(natName, egress)),
		reconcile.NewStage(k.Nexthops, func(s state) map[desired.NexthopKey]desired.Nexthop { return s.Nexthops },
			func(n desired.NexthopKey, _ desired.Nexthop) string { return inside(n.Netns) },
			reconcile.Invalidates(routes)), // a route goes with its next hop
		reconcile.NewStage(k.Routes, func(s state) map[desired.RouteKey]desired.Route { return s.Routes },
			func(r desired.RouteKey, v desired.Route) string {
				if v.Type == desired.Unreachable {
					return refusals
				}
				return inside(r.Netns)
			}, reconcile.Requires(natName)),
		reconcile.NewStage(k.Rules, func(s state) map[desired.RuleKey]desired.Rule { return s.Rules },
			func(desired.RuleKey, desired.Rule) string { return refusals }, reconcile.Requires(routes)),
		reconcile.NewLiveStage(k.Steers, steered,
			func(desired.SteerKey, desired.Steer) string { return refusals }, reconcile.Requires(rules)),
	}
	if k.Paths == nil {
		return all
	}
	// Nothing is announced before all that it leads to is there, and all of
	// that stays until the announcement is withdrawn.
	return append(all, reconcile.NewStage(k.Paths, func(s state) map[desired.PathKey]desired.Path { return s.Paths },
		func(p desired.PathKey, _ desired.Path) string {
			if p.Netns == "" {
				return "host address" // needs nothing, and nothing needs it
			}
			return inside(p.Netns)
		},
		reconcile.Requires(namespaces, natName, peers, links, enis, egress, addresses, neighbors, sysctls, routes, rules, steers)))
}

func natRules(s desired.State) map[desired.NATKey]nat.RuleSet { return nat.RenderAll(s.NAT) }

// kindsOf names the kinds that a hint is about.
func kindsOf(h kernel.Hint) []string {
	switch h {
	case kernel.HintNamespaces:
		return []string{"namespaces"}
	case kernel.HintEgress:
		return []string{"egress"}
	case kernel.HintLinks:
		return []string{"links", "enis", "egress", "addresses", "neighbors", "nexthops", "routes", "sysctls"}
	case kernel.HintAddresses:
		return []string{"enis", "addresses"} // an ENI keeps what it brought along
	case kernel.HintNeighbors:
		return []string{"neighbors"}
	case kernel.HintNexthops:
		return []string{"nexthops"}
	case kernel.HintRoutes:
		return []string{"enis", "routes"}
	case kernel.HintRules:
		return []string{"rules"}
	case kernel.HintSysctls:
		return []string{"sysctls"}
	case kernel.HintFirewall:
		return []string{"nat", "peers", "steers"}
	}
	return nil
}

// poll returns the kinds that may have changed without an event. soon tells that
// what changes as a rule without one is to be looked at before long.
func (k Kinds) poll(ctx context.Context) (kinds []string, soon bool) {
	if k.SysctlsDrifted != nil {
		drifted, watched := k.SysctlsDrifted(ctx)
		if soon = !watched; drifted {
			kinds = append(kinds, "sysctls")
		}
	}
	if k.NATDrifted != nil && k.NATDrifted(ctx) {
		kinds = append(kinds, "nat")
	}
	return kinds, soon || k.NATDrifted != nil
}
