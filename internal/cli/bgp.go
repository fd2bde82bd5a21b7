package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// The answers of `bgp … -o json`. Their keys are part of what scripts rely on.
type (
	bgpPeerJSON struct {
		Address     string            `json:"address"`
		RouterID    string            `json:"routerID,omitempty"`
		State       string            `json:"state"`
		Established bool              `json:"established"`
		Synced      bool              `json:"synced"`
		Dynamic     bool              `json:"dynamic"`
		Client      bool              `json:"client"`
		Since       string            `json:"since,omitempty"`
		Flaps       uint32            `json:"flaps"`
		Received    map[string]uint64 `json:"received"`
	}
	bgpPathJSON struct {
		Prefix             string   `json:"prefix"`
		RouteDistinguisher string   `json:"routeDistinguisher"`
		NextHop            string   `json:"nextHop"`
		Encapsulation      string   `json:"encapsulation"`
		RouteTargets       []string `json:"routeTargets"`
	}
	bgpRouteJSON struct {
		bgpPathJSON
		Peer       string `json:"peer"`
		Originator string `json:"originator,omitempty"`
		Accepted   bool   `json:"accepted"`
		Used       bool   `json:"used"`
		Kept       bool   `json:"kept"`
		Reason     string `json:"reason,omitempty"`
		Detail     string `json:"detail,omitempty"`
		Attachment string `json:"attachment,omitempty"`
		Group      string `json:"group,omitempty"`
		Host       string `json:"host,omitempty"`
		Preference uint32 `json:"preference"`
	}
	bgpPathsJSON struct {
		Announced []bgpPathJSON  `json:"announced"`
		Received  []bgpRouteJSON `json:"received"`
	}
)

func (a *app) bgpCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bgp",
		Short: "Show whom this machine speaks BGP with, and what it makes of what it hears",
		Args:  noArgs,
	}
	c.AddCommand(a.bgpPeersCommand(), a.bgpPathsCommand(), a.bgpExplainCommand())
	return c
}

func (a *app) bgp(c *cobra.Command, req *apiv1.BGPRequest) (*apiv1.BGPResponse, error) {
	client, err := a.node()
	if err != nil {
		return nil, err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	resp, err := client.BGP(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, a.nodeError(err)
	}
	if p := resp.Msg.GetProblem(); p != "" {
		a.message("problem: %s", p)
	}
	return resp.Msg, nil
}

func (a *app) bgpPeersCommand() *cobra.Command {
	c := &cobra.Command{Use: "peers", Short: "List the neighbors and their sessions", Args: noArgs}
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		resp, err := a.bgp(c, &apiv1.BGPRequest{PeersOnly: true})
		if err != nil {
			return err
		}
		if out.word != "" {
			peers := make([]bgpPeerJSON, 0, len(resp.GetPeers()))
			for _, p := range resp.GetPeers() {
				peers = append(peers, bgpPeerOf(p))
			}
			return a.write(encode(out, peers))
		}
		rows := [][]string{{"NEIGHBOR", "IDENTIFIER", "STATE", "SINCE", "SYNCED", "ROUTES", "KIND"}}
		for _, p := range resp.GetPeers() {
			rows = append(rows, []string{p.GetAddress(), orDash(p.GetRouterId()), p.GetState(), orDash(bgpSince(p)),
				yesNo(p.GetSynced()), bgpCounts(p), bgpKind(p)})
		}
		return a.write(table(rows), nil)
	}
	return c
}

func bgpPeerOf(p *apiv1.BGPPeer) bgpPeerJSON {
	return bgpPeerJSON{p.GetAddress(), p.GetRouterId(), p.GetState(), p.GetEstablished(), p.GetSynced(), p.GetDynamic(), p.GetClient(),
		bgpSince(p), p.GetFlaps(), p.GetReceived()}
}

func bgpSince(p *apiv1.BGPPeer) string {
	if p.GetSinceUnix() == 0 {
		return ""
	}
	return time.Unix(p.GetSinceUnix(), 0).UTC().Format(time.RFC3339)
}

func bgpKind(p *apiv1.BGPPeer) string {
	switch {
	case p.GetClient():
		return "client"
	case p.GetDynamic():
		return "dynamic"
	}
	return "configured"
}

// bgpCounts shows the families of which there are routes, vpnv4 first.
func bgpCounts(p *apiv1.BGPPeer) string {
	var out []string
	for _, f := range []string{"vpnv4", "vpnv6", "rtc"} {
		if n := p.GetReceived()[f]; n > 0 {
			out = append(out, fmt.Sprintf("%s:%d", f, n))
		}
	}
	return orDash(strings.Join(out, " "))
}

func (a *app) bgpPathsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "paths",
		Short: "List what this machine announces, and what it has heard",
		Args:  noArgs,
	}
	out := addFormat(c, formatWide, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		resp, err := a.bgp(c, &apiv1.BGPRequest{})
		if err != nil {
			return err
		}
		return a.printPaths(out, resp)
	}
	return c
}

func (a *app) printPaths(out *format, resp *apiv1.BGPResponse) error {
	if out.word == formatJSON || out.word == formatYAML {
		answer := bgpPathsJSON{Announced: []bgpPathJSON{}, Received: []bgpRouteJSON{}}
		for _, p := range resp.GetAnnounced() {
			answer.Announced = append(answer.Announced, bgpPathOf(p))
		}
		for _, r := range resp.GetReceived() {
			answer.Received = append(answer.Received, bgpRouteOf(r))
		}
		return a.write(encode(out, answer))
	}
	wide := out.word == formatWide
	rows := [][]string{pick(wide, []string{"PREFIX", "FROM", "NEXTHOP", "FOR", "PREFERENCE", "STATE"}, []string{"RD", "TUNNEL", "TARGETS"})}
	more := func(p *apiv1.BGPPath) []string {
		return []string{p.GetRouteDistinguisher(), p.GetEncapsulation(), strings.Join(p.GetRouteTargets(), ",")}
	}
	for _, p := range resp.GetAnnounced() {
		rows = append(rows, pick(wide, []string{p.GetPrefix(), "here", p.GetNextHop(), "-", "-", "announced"}, more(p)))
	}
	for _, r := range resp.GetReceived() {
		rows = append(rows, pick(wide, []string{r.GetPath().GetPrefix(), r.GetOriginator(), r.GetPath().GetNextHop(), bgpPurpose(r),
			strconv.FormatUint(uint64(r.GetPreference()), 10), bgpState(r)}, more(r.GetPath())))
	}
	return a.write(table(rows), nil)
}

func bgpPurpose(r *apiv1.BGPRoute) string {
	switch {
	case r.GetHost() != "":
		return "node/" + r.GetHost()
	case r.GetAttachment() != "":
		return r.GetAttachment() + "/" + r.GetGroup()
	}
	return "-"
}

func bgpState(r *apiv1.BGPRoute) string {
	state := "refused: " + r.GetReason()
	switch {
	case r.GetUsed():
		state = "used"
	case r.GetAccepted() && bgpPurpose(r) == "-":
		state = "reflected"
	case r.GetAccepted():
		state = "less preferred"
	}
	if r.GetKept() {
		state += ", kept"
	}
	return state
}

func bgpPathOf(p *apiv1.BGPPath) bgpPathJSON {
	return bgpPathJSON{p.GetPrefix(), p.GetRouteDistinguisher(), p.GetNextHop(), p.GetEncapsulation(), list(p.GetRouteTargets())}
}

func bgpRouteOf(r *apiv1.BGPRoute) bgpRouteJSON {
	return bgpRouteJSON{bgpPathOf(r.GetPath()), r.GetPeer(), r.GetOriginator(), r.GetAccepted(), r.GetUsed(), r.GetKept(), r.GetReason(),
		r.GetDetail(), r.GetAttachment(), r.GetGroup(), r.GetHost(), r.GetPreference()}
}

func (a *app) bgpExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "explain PREFIX",
		Short:   "Tell why a route is used, and why others are not",
		Example: "  vpcproxyctl bgp explain 172.16.101.5",
		Args:    oneArg("PREFIX"),
		RunE: func(c *cobra.Command, args []string) error {
			resp, err := a.bgp(c, &apiv1.BGPRequest{Prefix: args[0]})
			if err != nil {
				return err
			}
			return a.write([]byte(explain(args[0], resp)), nil)
		},
	}
}

func explain(prefix string, resp *apiv1.BGPResponse) string {
	var b strings.Builder
	for _, p := range resp.GetAnnounced() {
		fmt.Fprintf(&b, "%s is announced by this node: next hop %s, %s, targets %s.\n",
			p.GetPrefix(), p.GetNextHop(), p.GetEncapsulation(), strings.Join(p.GetRouteTargets(), " "))
	}
	for _, r := range resp.GetReceived() {
		p := r.GetPath()
		fmt.Fprintf(&b, "%s by %s, announced by %s, heard of neighbor %s: ", p.GetPrefix(), p.GetNextHop(), r.GetOriginator(), r.GetPeer())
		switch {
		case r.GetUsed() && r.GetHost() != "":
			fmt.Fprintf(&b, "used: function host %s is there.\n", r.GetHost())
		case r.GetUsed():
			fmt.Fprintf(&b, "used for attachment %s: group %s, preference %d, the highest.\n", r.GetAttachment(), r.GetGroup(), r.GetPreference())
		case r.GetAccepted() && bgpPurpose(r) == "-":
			b.WriteString("passed on, not judged: this is a mere reflector.\n")
		case r.GetAccepted():
			fmt.Fprintf(&b, "not used for attachment %s: group %s has %s.\n", r.GetAttachment(), r.GetGroup(), r.GetDetail())
		default:
			fmt.Fprintf(&b, "refused (%s): %s.\n", r.GetReason(), r.GetDetail())
		}
		if r.GetKept() {
			b.WriteString("  No neighbor has said so lately; it is kept from before.\n")
		}
	}
	if b.Len() > 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "Nobody announces %s, as far as this node has heard.\n", prefix)
	if !slices.ContainsFunc(resp.GetPeers(), (*apiv1.BGPPeer).GetEstablished) {
		b.WriteString("No session is established: see `vpcproxyctl bgp peers`.\n")
	}
	return b.String()
}
