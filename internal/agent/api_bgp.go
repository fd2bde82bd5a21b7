package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/peering"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// BGP implements NodeServiceHandler.
func (t *nodeTask) BGP(ctx context.Context, req *connect.Request[apiv1.BGPRequest]) (*connect.Response[apiv1.BGPResponse], error) {
	return t.routing.answer(ctx, req.Msg)
}

// bgpOnly answers for a mere reflector, which has no kernel state.
type bgpOnly struct {
	vpcproxyv1alpha1connect.UnimplementedNodeServiceHandler
	routing *routing
}

// BGP implements NodeServiceHandler.
func (b bgpOnly) BGP(ctx context.Context, req *connect.Request[apiv1.BGPRequest]) (*connect.Response[apiv1.BGPResponse], error) {
	return b.routing.answer(ctx, req.Msg)
}

func (r *routing) answer(ctx context.Context, req *apiv1.BGPRequest) (*connect.Response[apiv1.BGPResponse], error) {
	if r == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("this node speaks no BGP: bgp.mode is off"))
	}
	only, err := parseWanted(req.GetPrefix())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	peers, paths, judged, err := r.view(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	r.mu.Lock()
	resp := &apiv1.BGPResponse{Mode: string(r.peering.Mode), Asn: r.cfg.ASN, Problem: r.problem}
	r.mu.Unlock()
	for _, p := range peers {
		resp.Peers = append(resp.Peers, bgpPeer(p))
	}
	if req.GetPeersOnly() {
		return connect.NewResponse(resp), nil
	}
	wanted := func(p netip.Prefix) bool { return !only.IsValid() || only.Overlaps(p) }
	slices.SortFunc(paths, func(a, b bgp.Path) int { return cmp.Compare(a.NLRI.String(), b.NLRI.String()) })
	for _, p := range paths {
		if wanted(p.Prefix) {
			resp.Announced = append(resp.Announced, bgpPath(p))
		}
	}
	best := bestPreference(judged)
	judged = slices.DeleteFunc(slices.Clone(judged), func(j peering.Judged) bool { return !wanted(j.Prefix) })
	slices.SortFunc(judged, func(a, b peering.Judged) int {
		return cmp.Or(cmp.Compare(a.Prefix.String(), b.Prefix.String()), cmp.Compare(b.Preference, a.Preference),
			cmp.Compare(a.NLRI.String(), b.NLRI.String()), a.Peer.Compare(b.Peer))
	})
	for _, j := range judged {
		resp.Received = append(resp.Received, bgpRoute(j, best))
	}
	return connect.NewResponse(resp), nil
}

// parseWanted reads a prefix or an address; "" is the zero Prefix.
func parseWanted(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not an address or a prefix such as 172.16.101.0/24", s)
	}
	return p.Masked(), nil
}

// bestPreference is the highest preference of an accepted route by attachment.
func bestPreference(judged []peering.Judged) map[string]uint32 {
	best := map[string]uint32{}
	for _, j := range judged {
		if j.Reason == peering.Accepted && j.Attachment != "" {
			best[j.Attachment] = max(best[j.Attachment], j.Preference)
		}
	}
	return best
}

func bgpPeer(p bgp.PeerStatus) *apiv1.BGPPeer {
	out := &apiv1.BGPPeer{
		Address: p.Address.String(), RouterId: addrText(p.RouterID), State: p.State, Established: p.Established, Synced: p.Synced,
		Dynamic: p.Dynamic, Client: p.Client, Flaps: p.Flaps, Received: map[string]uint64{},
	}
	if !p.Since.IsZero() {
		out.SinceUnix = p.Since.Unix()
	}
	for _, f := range p.Families {
		out.Received[string(f.Family)] = f.Received
	}
	return out
}

func bgpPath(p bgp.Path) *apiv1.BGPPath {
	out := &apiv1.BGPPath{
		Prefix: p.Prefix.String(), RouteDistinguisher: p.RD.String(), NextHop: p.NextHop.String(),
		Encapsulation: p.Encapsulation.String(), LocalPreference: p.LocalPref,
	}
	for _, t := range p.Targets {
		out.RouteTargets = append(out.RouteTargets, t.String())
	}
	return out
}

func bgpRoute(j peering.Judged, best map[string]uint32) *apiv1.BGPRoute {
	out := &apiv1.BGPRoute{
		Path: bgpPath(j.Path), Peer: j.Peer.String(), Originator: addrText(j.Originator),
		Accepted: j.Reason == peering.Accepted, Kept: j.Kept, Reason: string(j.Reason), Detail: j.Detail,
		Attachment: j.Attachment, Group: j.Group, Host: j.Host, Preference: j.Preference,
	}
	switch {
	case !out.Accepted, j.Host == "" && j.Attachment == "": // or only reflected
	case j.Host != "":
		out.Used = true
	case j.Preference < best[j.Attachment]:
		out.Detail = fmt.Sprintf("preference %d, and another group has %d", j.Preference, best[j.Attachment])
	default:
		out.Used = true
	}
	return out
}
