package gobgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	wire "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

const (
	// noLabel is the implicit null label (RFC 3032 section 2.1): the tunnel
	// carries no MPLS, but a VPN route must have a label.
	noLabel = 3
	// defaultLocalPref is what implementations take for an absent local
	// preference.
	defaultLocalPref = 100
	// tunnelGRE is the tunnel type GRE (RFC 9012 section 3.2.2, IANA).
	tunnelGRE = wire.TUNNEL_TYPE_GRE
)

func encodeNLRI(n bgp.NLRI) wire.AddrPrefixInterface {
	rd := wire.NewRouteDistinguisherTwoOctetAS(n.RD.Admin, n.RD.Number)
	label := *wire.NewMPLSLabelStack(noLabel)
	prefix, bits := n.Prefix.Addr().String(), uint8(n.Prefix.Bits())
	if n.Family() == bgp.VPNv4 {
		return wire.NewLabeledVPNIPAddrPrefix(bits, prefix, label, rd)
	}
	return wire.NewLabeledVPNIPv6AddrPrefix(bits, prefix, label, rd)
}

func encodeTarget(t bgp.Target) wire.ExtendedCommunityInterface {
	if t.Addr.IsValid() {
		return wire.NewIPv4AddressSpecificExtended(wire.EC_SUBTYPE_ROUTE_TARGET, t.Addr.String(), uint16(t.Number), true)
	}
	return wire.NewTwoOctetAsSpecificExtended(wire.EC_SUBTYPE_ROUTE_TARGET, t.ASN, t.Number, true)
}

// validate refuses what cannot be encoded.
func validate(p bgp.Path) error {
	switch {
	case !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked():
		return fmt.Errorf("path %s: the prefix must be valid and without host bits", p.NLRI)
	case !p.NextHop.IsValid():
		return fmt.Errorf("path %s: the next hop is missing", p.NLRI)
	}
	for _, t := range p.Targets {
		if t.Addr.IsValid() && (!t.Addr.Is4() || t.Number > 0xffff) {
			return fmt.Errorf("path %s: target %s: want an IPv4 address and a number below 65536", p.NLRI, t)
		}
	}
	return nil
}

// encodePath is a path in the library's form. Attributes go as bytes: as
// messages they take several times as long.
func encodePath(p bgp.Path) (*api.Path, error) {
	if err := validate(p); err != nil {
		return nil, err
	}
	nlri := encodeNLRI(p.NLRI)
	pref := p.LocalPref
	if pref == 0 {
		pref = defaultLocalPref
	}
	attributes := []wire.PathAttributeInterface{
		wire.NewPathAttributeOrigin(wire.BGP_ORIGIN_ATTR_TYPE_IGP),
		wire.NewPathAttributeMpReachNLRI(p.NextHop.String(), []wire.AddrPrefixInterface{nlri}),
		wire.NewPathAttributeLocalPref(pref),
	}
	var communities []wire.ExtendedCommunityInterface
	for _, t := range p.Targets {
		communities = append(communities, encodeTarget(t))
	}
	if p.Encapsulation.GRE {
		// The community tells those who do not read the attribute
		// (RFC 9012 section 4.1).
		communities = append(communities, wire.NewEncapExtended(tunnelGRE))
		attributes = append(attributes, encodeTunnel(p))
	}
	if len(communities) > 0 {
		attributes = append(attributes, wire.NewPathAttributeExtendedCommunities(communities))
	}
	return inBytes(nlri, attributes)
}

func encodeTunnel(p bgp.Path) *wire.PathAttributeTunnelEncap {
	var subs []wire.TunnelEncapSubTLVInterface
	if p.Encapsulation.Keyed {
		subs = append(subs, wire.NewTunnelEncapSubTLVEncapsulation(p.Encapsulation.Key, nil))
	}
	subs = append(subs, wire.NewTunnelEncapSubTLVEgressEndpoint(p.NextHop.String()))
	return wire.NewPathAttributeTunnelEncap([]*wire.TunnelEncapTLV{wire.NewTunnelEncapTLV(tunnelGRE, subs)})
}

// encodeMembership asks for the routes of a target; nil asks for all.
func encodeMembership(asn uint32, t *bgp.Target, nextHop netip.Addr) (*api.Path, error) {
	nlri := wire.NewRouteTargetMembershipNLRI(0, nil)
	if t != nil {
		nlri = wire.NewRouteTargetMembershipNLRI(asn, encodeTarget(*t))
	}
	return inBytes(nlri, []wire.PathAttributeInterface{
		wire.NewPathAttributeOrigin(wire.BGP_ORIGIN_ATTR_TYPE_IGP),
		wire.NewPathAttributeMpReachNLRI(nextHop.String(), []wire.AddrPrefixInterface{nlri}),
		wire.NewPathAttributeLocalPref(defaultLocalPref),
	})
}

func inBytes(nlri wire.AddrPrefixInterface, attributes []wire.PathAttributeInterface) (*api.Path, error) {
	p := &api.Path{Family: apiutil.ToApiFamily(nlri.AFI(), nlri.SAFI())}
	var err error
	if p.NlriBinary, err = nlri.Serialize(); err != nil {
		return nil, fmt.Errorf("route %s: %w", nlri, err)
	}
	for _, a := range attributes {
		b, err := a.Serialize()
		if err != nil {
			return nil, fmt.Errorf("route %s: attribute %d: %w", nlri, a.GetType(), err)
		}
		p.PattrsBinary = append(p.PattrsBinary, b)
	}
	return p, nil
}

var errNotOurs = errors.New("not a route that this product uses")

// parse has the library read a part of p. The library indexes some truncated
// encodings beyond their end, such as a label that leaves seven bytes to a route
// distinguisher: that is an error here, as what it refuses itself is.
func parse[T any](read func(*api.Path) (T, error), p *api.Path) (_ T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed route: %v", r)
		}
	}()
	return read(p)
}

// decodeNLRI returns errNotOurs for a route of another family or with a route
// distinguisher of another type.
func decodeNLRI(p *api.Path) (bgp.NLRI, error) {
	native, err := parse(apiutil.GetNativeNlri, p)
	if err != nil {
		return bgp.NLRI{}, err
	}
	var vpn *wire.LabeledVPNIPAddrPrefix
	switch n := native.(type) {
	case *wire.LabeledVPNIPAddrPrefix:
		vpn = n
	case *wire.LabeledVPNIPv6AddrPrefix:
		vpn = &n.LabeledVPNIPAddrPrefix
	default:
		return bgp.NLRI{}, errNotOurs
	}
	rd, ok := vpn.RD.(*wire.RouteDistinguisherTwoOctetAS)
	if !ok {
		return bgp.NLRI{}, errNotOurs
	}
	addr, ok := netip.AddrFromSlice(vpn.Prefix)
	if !ok {
		return bgp.NLRI{}, errNotOurs
	}
	if native.AFI() == wire.AFI_IP {
		addr = addr.Unmap()
	}
	prefix, err := addr.Prefix(int(vpn.IPPrefixLen()))
	if err != nil {
		return bgp.NLRI{}, err
	}
	return bgp.NLRI{RD: bgp.RouteDistinguisher{Admin: rd.Admin, Number: rd.Assigned}, Prefix: prefix}, nil
}

// decodeRoute reads a route that a peer has sent.
func decodeRoute(p *api.Path) (bgp.Route, error) {
	var r bgp.Route
	var err error
	if r.NLRI, err = decodeNLRI(p); err != nil {
		return r, err
	}
	if r.Peer, err = netip.ParseAddr(p.NeighborIp); err != nil {
		return r, errNotOurs // our own
	}
	r.LocalPref = defaultLocalPref
	r.Originator, _ = netip.ParseAddr(p.SourceId)
	attributes, err := parse(apiutil.GetNativePathAttributes, p)
	if err != nil {
		return r, err
	}
	for _, a := range attributes {
		decodeAttribute(&r, a)
	}
	slices.SortFunc(r.Targets, bgp.Target.Compare)
	return r, nil
}

func decodeAttribute(r *bgp.Route, a wire.PathAttributeInterface) {
	switch a := a.(type) {
	case *wire.PathAttributeMpReachNLRI:
		if hop, ok := netip.AddrFromSlice(a.Nexthop); ok {
			r.NextHop = hop.Unmap()
		}
	case *wire.PathAttributeLocalPref:
		r.LocalPref = a.Value
	case *wire.PathAttributeOriginatorId:
		if id, ok := netip.AddrFromSlice(a.Value); ok {
			r.Originator, r.Reflected = id.Unmap(), true
		}
	case *wire.PathAttributeExtendedCommunities:
		r.Targets = decodeTargets(a.Value)
	case *wire.PathAttributeTunnelEncap:
		r.Encapsulation = decodeTunnel(a.Value)
	}
}

func decodeTargets(communities []wire.ExtendedCommunityInterface) []bgp.Target {
	var targets []bgp.Target
	for _, c := range communities {
		switch c := c.(type) {
		case *wire.TwoOctetAsSpecificExtended:
			if c.SubType == wire.EC_SUBTYPE_ROUTE_TARGET {
				targets = append(targets, bgp.Target{ASN: c.AS, Number: c.LocalAdmin})
			}
		case *wire.IPv4AddressSpecificExtended:
			if addr, ok := netip.AddrFromSlice(c.IPv4); ok && c.SubType == wire.EC_SUBTYPE_ROUTE_TARGET {
				targets = append(targets, bgp.Target{Addr: addr.Unmap(), Number: uint32(c.LocalAdmin)})
			}
		}
	}
	return targets
}

// decodeTunnel takes the first GRE tunnel of the attribute.
func decodeTunnel(tunnels []*wire.TunnelEncapTLV) bgp.Encapsulation {
	for _, t := range tunnels {
		if t.Type != tunnelGRE {
			continue
		}
		e := bgp.Encapsulation{GRE: true}
		for _, sub := range t.Value {
			if s, ok := sub.(*wire.TunnelEncapSubTLVEncapsulation); ok {
				e.Keyed, e.Key = true, s.Key
			}
		}
		return e
	}
	return bgp.Encapsulation{}
}
