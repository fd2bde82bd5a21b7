package diagnose

import "fmt"

// stopped says why the packet did not come to a place, in view of what it passed
// before and of what the nodes know.
func (x *explanation) stopped(place string) {
	h, p := x.host, x.proxy
	switch place {
	case atHostTunnel:
		x.f.add(codeHostDrop, h.Attachment, fmt.Sprintf("the packet enters %s and does not leave by %s", h.Node, h.Tunnel),
			append(chainsOn(h.Evidence, "", "prerouting", "forward", "postrouting"), failure(h.Lookup)...), chainFixes(h.Evidence, ""))
	case atHostUnderlay:
		x.f.add(codeTunnelDrop, h.Attachment, fmt.Sprintf("%s takes the packet and no GRE leaves", h.Tunnel),
			append(x.outside(h), chainsOn(h.Evidence, "", "output", "postrouting")...), lines("ip route get %v", h.Lookup.NBMA))
	case atProxyUnderlay:
		x.greLost(h, p, h.Lookup.NBMA.String())
	case atProxyTunnel:
		x.refusedBy(p, h)
	case atENI:
		x.onProxy(p)
	case atENIBack:
		x.f.add(codeServerSilent, h.Attachment, fmt.Sprintf("the packet left %s as %s, and %s does not answer", p.ENI, p.Translated, x.t.To),
			lines("seen leaving %s in namespace %s", p.ENI, p.Netns),
			[]string{fmt.Sprintf("allow %s to %s in the user VPC's security group", p.Translated, x.t.To),
				fmt.Sprintf("ip netns exec %s tcpdump -ni %s host %s", p.Netns, p.ENI, x.t.To.Addr())})
	case atProxyBack, atProxyOut:
		x.f.node = p.Node
		x.f.add(codeAnswerDropped, h.Attachment, fmt.Sprintf("the answer of %s is not sent back by %s", x.t.To, p.Node),
			append(append(x.outside(p), failure(p.Back)...), chainsOn(p.Evidence, p.Netns, "prerouting", "forward", "output", "postrouting")...),
			append(lines("ip -n %s neigh show dev %s", p.Netns, p.Tunnel), chainFixes(p.Evidence, p.Netns)...))
	case atHostBack:
		if p == nil {
			x.f.add(codeNoAnswer, h.Attachment, "GRE leaves the host and nothing comes back; the proxy was not asked", x.outside(h),
				[]string{"vpcproxyctl trace --proxy-socket PATH …", "vpcproxyctl doctor  # on the proxy"})
			return
		}
		x.greLost(p, h, p.Back.NBMA.String())
	case atTunnelBack:
		x.refusedBy(h, p)
	default:
		x.f.add(codeAnswerOnHost, h.Attachment, fmt.Sprintf("the answer comes out of %s and does not go to %s", h.Tunnel, x.t.From),
			append(chainsOn(h.Evidence, "", "prerouting", "forward", "postrouting"), failure(h.Back)...),
			append(lines("sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.%s.rp_filter", h.Tunnel), chainFixes(h.Evidence, "")...))
	}
}

// greLost is about GRE that left one node and did not reach the other.
func (x *explanation) greLost(from, to *Side, address string) {
	x.f.node = from.Node
	evidence := lines("GRE left %s to %s and was not seen on %s", from.Node, address, to.Node)
	fix := lines("allow protocol 47 from %s to %s in both security groups", from.Node, to.Node)
	if to.Evidence != nil && to.Evidence.Underlay.Address.IsValid() && to.Evidence.Underlay.Address.String() != address {
		evidence = append(evidence, fmt.Sprintf("%s has %s, and GRE goes to %s", to.Node, to.Evidence.Underlay.Address, address))
		fix = lines("correct spec.underlayAddress of node %s: it has %s", to.Node, to.Evidence.Underlay.Address)
	}
	if from.Evidence != nil {
		for _, p := range from.Evidence.Peers {
			if p.Address.String() == address && p.Sent > 0 {
				evidence = append(evidence, fmt.Sprintf("%d of %d pings to %s were answered: the way is there, so protocol 47 is filtered if they were", p.Received, p.Sent, address))
			}
		}
	}
	x.f.add(codeGRELost, x.host.Attachment, fmt.Sprintf("GRE from %s does not arrive at %s", from.Node, to.Node),
		append(evidence, chainsOn(from.Evidence, "", "output", "postrouting")...), fix)
}

// refusedBy is about GRE that a node has received and not decapsulated.
func (x *explanation) refusedBy(node, sender *Side) {
	x.f.node = node.Node
	var evidence []string
	if node.Evidence != nil {
		for reason, n := range node.Evidence.Refused {
			evidence = append(evidence, fmt.Sprintf("%s has dropped %d packets: %s", node.Node, n, reason))
		}
		evidence = append(evidence, chainsOn(node.Evidence, "", "prerouting", "input")...)
	}
	x.f.add(codePeerRefused, x.host.Attachment, fmt.Sprintf("%s receives GRE from %s and does not decapsulate it", node.Node, sender.Node), evidence,
		[]string{"compare spec.greKey and spec.underlayAddress in both nodes' intent", "nft list set inet vpcproxy peers4"})
}

// onProxy is about a packet that the attachment's namespace did not send on.
func (x *explanation) onProxy(p *Side) {
	x.f.node = p.Node
	if p.Silent.IsValid() {
		x.f.add(codeNoNeighbor, x.host.Attachment, fmt.Sprintf("nobody answers ARP for %s on %s", p.Silent, p.ENI),
			lines("the neighbor %s on %s in namespace %s is unresolved", p.Silent, p.ENI, p.Netns),
			lines("ip -n %s neigh show dev %s", p.Netns, p.ENI))
		return
	}
	evidence := append(failure(p.Lookup), chainsOn(p.Evidence, p.Netns, "prerouting", "forward", "postrouting")...)
	x.f.add(codeProxyDrop, x.host.Attachment, fmt.Sprintf("the packet enters namespace %s and does not leave by its ENI", p.Netns), evidence,
		append(lines("ip -n %s route get %s", p.Netns, x.t.To.Addr()), chainFixes(p.Evidence, p.Netns)...))
}

// outside says what a node knows of the way to the other end.
func (x *explanation) outside(s *Side) []string {
	var out []string
	l := s.Lookup
	if s == x.proxy {
		l = s.Back
	}
	if !l.NBMA.IsValid() {
		out = append(out, "no neighbor is known on "+s.Tunnel)
	} else if s.Underlay.Error != "" {
		out = append(out, fmt.Sprintf("no route to %s: %s", l.NBMA, s.Underlay.Error))
	} else {
		out = append(out, fmt.Sprintf("the other end is at %s, by %s", l.NBMA, s.Underlay.Link))
	}
	return out
}

func failure(l Lookup) []string {
	if l.Error == "" {
		return nil
	}
	return []string{"the kernel's lookup: " + l.Error}
}

// chainsOn lists foreign chains that can drop on some hooks.
func chainsOn(e *Evidence, netns string, hooks ...string) []string {
	var out []string
	for _, c := range culprits(e, netns, hooks...) {
		out = append(out, fmt.Sprintf("%s drops by %d rules, %d packets so far", c.describe(), c.Drops, c.Dropped))
	}
	return out
}

func culprits(e *Evidence, netns string, hooks ...string) []Chain {
	if e == nil {
		return nil
	}
	var out []Chain
	for _, c := range e.Chains {
		for _, h := range hooks {
			if c.Netns == netns && c.Hook == h && c.drops() {
				out = append(out, c)
			}
		}
	}
	return out
}

func chainFixes(e *Evidence, netns string) []string {
	var out []string
	for _, c := range culprits(e, netns, "prerouting", "forward", "postrouting", "output", "input") {
		out = append(out, c.list())
	}
	return out
}
