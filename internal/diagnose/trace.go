package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

var (
	codeNoAttachment = Code{"no-attachment", Error, "no attachment takes this pod's packets there",
		"On this node no attachment covers both the source and the destination. The packets take the host's default route.",
		"Bind the pod to the attachment (`vpcproxyctl bind`), or add the pod or the subnet to it; `vpcproxyctl get attachments -o wide` shows what each covers."}
	codeOtherWay = Code{"other-way", Error, "another rule or route takes the packets elsewhere",
		"The kernel's own answer for such a packet is a device that is not the attachment's: a policy rule with a lower number, or a more specific route in the table, comes first.",
		"`ip rule show` lists the rules in order: give the foreign one a number above steering.rulePriority, or delete it."}
	codeNoPath = Code{"no-path", Error, "the kernel has no way there",
		"The lookup ends in an unreachable route, or in none: the attachment has no path on this node, and pods are refused rather than let through to another network.",
		"The node's problems say why there is no path: a proxy that has not registered, a group without a tunnel address, a device that is down."}
	codeHostDrop = Code{"dropped-on-host", Error, "the packet is dropped on the function host",
		"It entered the host and did not leave by the tunnel device, although there is a route: a packet filter drops it.",
		"The evidence lists the chains that can. A chain of another nftables table, or of iptables-legacy, decides after ours has accepted; let it accept what leaves by vpx-*."}
	codeTunnelDrop = Code{"dropped-at-tunnel", Error, "the packet enters the tunnel device and no GRE leaves",
		"Either the neighbor (the proxy's underlay address) is not known, or there is no route to that address, or a filter drops GRE in output.",
		"Look at `ip neigh show dev DEVICE` and `ip route get ADDRESS`; and for rules for protocol 47 in output chains."}
	codeGRELost = Code{"gre-lost", Error, "GRE leaves one node and does not arrive at the other",
		"The network between the nodes drops protocol 47, or it goes to an address that is not the other node's.",
		"Allow protocol 47 between the nodes' addresses in both security groups (a rule for \"all TCP\" or \"all UDP\" does not cover it), and compare the addresses."}
	codeNoAnswer = Code{"no-answer", Error, "GRE leaves the host and no answer comes back",
		"The proxy was not asked, so that this node cannot tell where beyond itself the packet stops.",
		"Run the command with --proxy-socket, where both nodes' sockets can be reached, or look at `vpcproxyctl doctor` on the proxy."}
	codePeerRefused = Code{"peer-refused", Error, "the other node does not take GRE from this one",
		"GRE arrived and was not decapsulated: the sender or the key is not in the receiver's list of peers, or the receiver has no tunnel device with that key and address. The counter of unknown peers rises.",
		"Both nodes must have the same intent: compare `vpcproxyctl get nodes` and the attachment's key on both sides, and whether the sender's underlay address is the one in its Node object."}
	codeProxyDrop = Code{"dropped-on-proxy", Error, "the packet is dropped on the proxy",
		"It was decapsulated in the attachment's namespace and did not leave by the ENI: no route to the destination, forwarding off, a filter, no port left, or a gateway or server that nobody answers for by ARP.",
		"The evidence says what the namespace's routing and neighbors say."}
	codeServerSilent = Code{"server-silent", Error, "the packet leaves the ENI and nothing answers",
		"It left with the right source. The server is down or drops it, or the cloud does: its security group does not allow the ENI's address, or the source/destination check does not know the address that connections come from.",
		"Check in the user's VPC: the server, its security group for the source shown, and the address's assignment to the ENI."}
	codeNoNeighbor = Code{"server-absent", Error, "nobody in the user's subnet answers ARP for the next hop",
		"The proxy asks for the server's (or the gateway's) Ethernet address and gets no answer: there is no such machine on that subnet, or the ENI is in another one.",
		"Compare the destination, spec.enis[].gateway and the ENI's subnet."}
	codeAnswerDropped = Code{"answer-dropped-on-proxy", Error, "the answer arrives at the ENI and is not sent back",
		"The namespace does not know the way to the function host: no neighbor, no route, reverse path filtering on the ENI, or no connection to translate back.",
		"`ip -n NAMESPACE neigh show`, `ip -n NAMESPACE route`, `ip netns exec NAMESPACE sysctl net.ipv4.conf.all.rp_filter`."}
	codeAnswerOnHost = Code{"answer-dropped-on-host", Error, "the answer comes out of the tunnel and does not reach the pod",
		"Reverse path filtering on the tunnel device, a filter of another program, or no route to the pod.",
		"Look at rp_filter of the tunnel device and `all`, at the chains listed, and at `ip route get POD`."}
	codePortClosed = Code{"port-closed", Warning, "the server answers that nothing listens on the port",
		"The whole path works in both directions. The server itself refuses the connection.",
		"Start the service, or correct the port."}
	codeRefused = Code{"refused-on-the-way", Error, "a node on the way refuses the packet",
		"An ICMP message came back: the sender of it, and its code, say who refuses and why.",
		"Code 13 and 10 are packet filters, 1 is no neighbor, 0 no route, 4 a packet that is too large."}
	traceCodes = []Code{codeNoAttachment, codeOtherWay, codeNoPath, codeHostDrop, codeTunnelDrop, codeGRELost, codeNoAnswer, codePeerRefused,
		codeProxyDrop, codeServerSilent, codeNoNeighbor, codeAnswerDropped, codeAnswerOnHost, codePortClosed, codeRefused}
)

// Sighting is the probe, seen on a device.
type Sighting struct {
	Netns  string         `json:"netns,omitempty"`
	Device string         `json:"device"`
	Out    bool           `json:"out"`            // leaving by the device
	GRE    bool           `json:"gre"`            // encapsulated
	Outer  [2]netip.Addr  `json:"outer,omitzero"` // source and destination, of GRE
	From   netip.AddrPort `json:"from"`           // port 0 for ICMP
	To     netip.AddrPort `json:"to"`
	Kind   string         `json:"kind"`           // request, answer, refused (TCP RST) or unreachable (ICMP)
	Code   int            `json:"code,omitempty"` // of an ICMP unreachable
	Size   int            `json:"size"`           // octets of the IP packet
	Micros int64          `json:"micros"`         // since the observation began
}

// The kinds of Sighting.
const (
	Request     = "request"
	Answer      = "answer"
	Refused     = "refused"
	Unreachable = "unreachable"
)

// Lookup is what the kernel says about a packet's next step.
type Lookup struct {
	Link  string     `json:"link,omitempty"`
	Via   netip.Addr `json:"via,omitzero"`
	Table uint32     `json:"table,omitempty"`
	Error string     `json:"error,omitempty"`
	// NBMA is where the tunnel's neighbor is; zero if none is known.
	NBMA netip.Addr `json:"nbma,omitzero"`
}

// Side is what one node says about the packet.
type Side struct {
	Node       string     `json:"node"`
	Attachment string     `json:"attachment"` // "": none covers the packet
	Near       []string   `json:"near"`       // attachments that cover half of it
	Netns      string     `json:"netns,omitempty"`
	Tunnel     string     `json:"tunnel"`
	ENI        string     `json:"eni,omitempty"`
	Mark       uint32     `json:"mark,omitempty"`
	Rule       uint32     `json:"rule,omitempty"` // priority
	Table      uint32     `json:"table,omitempty"`
	Translated netip.Addr `json:"translated,omitzero"` // source after SNAT
	Lookup     Lookup     `json:"lookup"`
	Back       Lookup     `json:"back"`    // toward the pod, or the function host
	Underlay   Lookup     `json:"outside"` // toward the peer's underlay address
	// Proxies may be the other end.
	Proxies []string `json:"proxies,omitempty"`
	// Silent is a next hop in the user's subnet that does not answer ARP.
	Silent   netip.Addr `json:"silent,omitzero"`
	Seen     []Sighting `json:"seen"`
	Evidence *Evidence  `json:"evidence,omitempty"`
}

// Hop is one step of the walk.
type Hop struct {
	Node   string `json:"node"`
	What   string `json:"what"`
	State  string `json:"state"` // ok, stopped or unknown
	Detail string `json:"detail"`
}

// Trace is the walk of one packet.
type Trace struct {
	From     netip.Addr     `json:"from"`
	To       netip.AddrPort `json:"to"`
	Reached  bool           `json:"reached"` // and answered
	Hops     []Hop          `json:"hops"`
	Findings []Finding      `json:"findings"`
}

// step is one place that the packet has to pass.
type step struct {
	side *Side
	what string
	seen func(Sighting) bool
	ok   string // detail if it has passed
}

// Explain joins what the function host and, if it was asked, the proxy say.
func Explain(from netip.Addr, to netip.AddrPort, host, proxy *Side) Trace {
	t := Trace{From: from, To: to, Hops: []Hop{}, Findings: []Finding{}}
	x := &explanation{t: &t, host: host, proxy: proxy, f: &findings{node: host.Node}}
	x.walk()
	seen := map[string]bool{}
	for _, s := range []*Side{host, proxy} {
		if s == nil || s.Evidence == nil {
			continue
		}
		for _, f := range Doctor(s.Evidence) {
			key := f.Node + f.Code + f.Summary
			if f.Severity != Info && (f.Attachment == "" || f.Attachment == host.Attachment) && !seen[key] {
				seen[key] = true
				x.f.list = append(x.f.list, f)
			}
		}
	}
	t.Findings = slices.Clone(x.f.list) // where it stopped comes first
	return t
}

type explanation struct {
	t     *Trace
	host  *Side
	proxy *Side
	f     *findings
}

func (x *explanation) hop(s *Side, what, state, detail string) {
	x.t.Hops = append(x.t.Hops, Hop{s.Node, what, state, detail})
}

func (x *explanation) walk() {
	if !x.decide() {
		return
	}
	steps := x.steps()
	stopped := -1
	for i, s := range steps {
		at := slices.IndexFunc(s.side.Seen, s.seen)
		later := slices.ContainsFunc(steps[i+1:], func(l step) bool { return slices.ContainsFunc(l.side.Seen, l.seen) })
		switch {
		case at >= 0:
			x.hop(s.side, s.what, "ok", s.ok)
		case later:
			x.hop(s.side, s.what, "ok", "not seen, but seen behind it")
		case stopped < 0:
			stopped = i
			x.hop(s.side, s.what, "stopped", "the probe did not come this far")
		}
	}
	x.refusals()
	if stopped < 0 {
		x.t.Reached = true
		return
	}
	absent := x.proxy != nil && x.proxy.Silent.IsValid() // says more than the proxy's ICMP
	if absent {
		x.f.list = nil
	}
	if len(x.f.list) == 0 {
		x.stopped(steps[stopped].what)
	}
}

// decide walks what the host's kernel would do with the packet.
func (x *explanation) decide() bool {
	h := x.host
	if h.Attachment == "" {
		x.hop(h, "attachment", "stopped", "none covers "+x.t.From.String()+" to "+x.t.To.String())
		var near []string
		if len(h.Near) > 0 {
			near = lines("these cover the source or the destination, not both: %s", strings.Join(h.Near, ", "))
		}
		x.f.add(codeNoAttachment, "", fmt.Sprintf("no attachment on %s covers %s to %s", h.Node, x.t.From, x.t.To.Addr()), near,
			lines("vpcproxyctl bind --pod-ip %s --attachment %s", x.t.From, orAll(first(h.Near))))
		return false
	}
	x.hop(h, "attachment", "ok", h.Attachment)
	if h.Mark != 0 {
		x.hop(h, "mark", "ok", fmt.Sprintf("%#x", h.Mark))
		x.hop(h, "rule", "ok", fmt.Sprintf("priority %d looks in table %d", h.Rule, h.Table))
	}
	l := h.Lookup
	switch {
	case l.Error != "":
		x.hop(h, "route", "stopped", l.Error)
		x.f.add(codeNoPath, h.Attachment, fmt.Sprintf("%s has no way to %s for this packet", h.Node, x.t.To.Addr()), []string{l.Error},
			[]string{"vpcproxyctl status --node-socket /run/vpcproxy/node.sock", fmt.Sprintf("ip route show table %d", h.Table)})
		return false
	case l.Link != h.Tunnel:
		x.hop(h, "route", "stopped", "leaves by "+l.Link)
		x.f.add(codeOtherWay, h.Attachment, fmt.Sprintf("the packet leaves by %s (table %d), not by %s", l.Link, l.Table, h.Tunnel),
			lines("the kernel's answer: dev %s via %v table %d; the attachment's table is %d", l.Link, l.Via, l.Table, h.Table),
			[]string{"ip rule show", fmt.Sprintf("ip route show table %d", l.Table)})
		return false
	}
	x.hop(h, "route", "ok", fmt.Sprintf("via %s dev %s", l.Via, l.Link))
	if l.NBMA.IsValid() {
		x.hop(h, "neighbor", "ok", fmt.Sprintf("%s is at %s", l.Via, l.NBMA))
	}
	return true
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// The places that a packet passes, in order.
const (
	atHostTunnel    = "tunnel device of the host"
	atHostUnderlay  = "GRE leaves the host"
	atProxyUnderlay = "GRE arrives at the proxy"
	atProxyTunnel   = "attachment's namespace on the proxy"
	atENI           = "ENI, translated"
	atENIBack       = "answer at the ENI"
	atProxyBack     = "answer into the tunnel"
	atProxyOut      = "GRE with the answer leaves the proxy"
	atHostBack      = "GRE with the answer arrives at the host"
	atTunnelBack    = "answer out of the tunnel"
	atPod           = "answer toward the pod"
)

func (x *explanation) steps() []step {
	h, p := x.host, x.proxy
	answers := func(s Sighting) bool { return s.Kind == Answer || s.Kind == Refused }
	steps := []step{
		{h, atHostTunnel, func(s Sighting) bool { return s.Kind == Request && s.Out && !s.GRE && s.Device == h.Tunnel }, "as " + h.Translated.String()},
		{h, atHostUnderlay, func(s Sighting) bool { return s.Kind == Request && s.Out && s.GRE }, "to " + h.Lookup.NBMA.String()},
	}
	if p != nil {
		steps = append(steps,
			step{p, atProxyUnderlay, func(s Sighting) bool { return s.Kind == Request && !s.Out && s.GRE }, ""},
			step{p, atProxyTunnel, func(s Sighting) bool { return s.Kind == Request && !s.Out && !s.GRE && s.Device == p.Tunnel }, "decapsulated"},
			step{p, atENI, func(s Sighting) bool { return s.Kind == Request && s.Out && s.Device == p.ENI && s.Netns == p.Netns }, "as " + p.Translated.String()},
			step{p, atENIBack, func(s Sighting) bool { return answers(s) && !s.Out && s.Device == p.ENI && s.Netns == p.Netns }, ""},
			step{p, atProxyBack, func(s Sighting) bool { return answers(s) && s.Out && !s.GRE && s.Device == p.Tunnel }, ""},
			step{p, atProxyOut, func(s Sighting) bool { return answers(s) && s.Out && s.GRE }, "to " + p.Back.NBMA.String()})
	}
	return append(steps,
		step{h, atHostBack, func(s Sighting) bool { return answers(s) && !s.Out && s.GRE }, ""},
		step{h, atTunnelBack, func(s Sighting) bool { return answers(s) && !s.Out && !s.GRE && s.Device == h.Tunnel }, ""},
		step{h, atPod, func(s Sighting) bool { return answers(s) && s.Out && !s.GRE && s.To.Addr() == x.t.From }, ""})
}

// refusals are answers that say no.
func (x *explanation) refusals() {
	for _, side := range []*Side{x.host, x.proxy} {
		if side == nil {
			continue
		}
		for _, s := range side.Seen {
			switch {
			case s.Kind == Refused && !s.Out:
				x.once(codePortClosed, fmt.Sprintf("%s refuses connections to port %d", x.t.To.Addr(), x.t.To.Port()),
					lines("a TCP reset from %s came back on %s", s.From, s.Device), lines("start the service on %s, or correct the port", x.t.To))
			case s.Kind == Unreachable && s.From.Addr() != x.t.From:
				x.once(codeRefused, fmt.Sprintf("%s refuses the packet: ICMP unreachable, code %d", s.From.Addr(), s.Code),
					lines("seen on %s of %s", s.Device, side.Node), unreachableFix(side, s))
			}
		}
	}
}

func unreachableFix(side *Side, s Sighting) []string {
	switch s.Code {
	case 9, 10, 13:
		return lines("let the packet filter of %s accept it (seen on %s)", s.From.Addr(), side.Node)
	case 4:
		return []string{"vpcproxyctl netcheck"}
	}
	return lines("ip route get %s  # on %s", s.To.Addr(), s.From.Addr())
}

func (x *explanation) once(c Code, summary string, evidence, fix []string) {
	if !slices.ContainsFunc(x.f.list, func(f Finding) bool { return f.Code == c.Name }) {
		x.f.add(c, x.host.Attachment, summary, evidence, fix)
	}
}
