package diagnose

import "fmt"

var (
	codeUnderlay = Code{"underlay-missing", Error, "no interface that is up has the underlay address",
		"GRE leaves from an address that this machine does not have, or by an interface without carrier: no tunnel works.",
		"Give the interface its address back, set it up, or correct underlay.address in the configuration, or spec.underlayAddress of the Node."}
	codePeerSilent = Code{"peer-unreachable", Warning, "a peer does not answer on the underlay",
		"Pings to the peer's underlay address are not answered. Either the machine is down or has another address now, there is no route, or ICMP is filtered on the way (then GRE may pass nevertheless).",
		"Look at the peer's `vpcproxyctl status`; compare its address with the Node object; allow ICMP echo between nodes in the security group."}
	codeLoss = Code{"peer-loss", Warning, "packets to a peer are lost",
		"Some pings on the underlay are not answered. Through the tunnel it is the same packets that are lost.",
		"Look for a saturated link, a limit of the instance's type, or a device in between; `vpcproxyctl netcheck` repeats the measurement."}
	codePathMTU = Code{"path-mtu", Error, "full packets do not reach a peer",
		"The path to the peer carries smaller packets than the interface promises. Small packets pass the tunnel and large ones vanish: connections open and then hang.",
		"Set the interface's MTU to what the path carries; the tunnel's follows by itself. Or have the path carry what the interface promises."}
	underlayCodes = []Code{codeUnderlay, codePeerSilent, codeLoss, codePathMTU}
)

func (f *findings) underlay(e *Evidence) {
	u := e.Underlay
	if len(e.Attachments) > 0 && u.Address.IsValid() && (u.Link == "" || !u.Up) {
		fix := lines("ip link set %s up", u.Link)
		if u.Link == "" {
			fix = lines("ip address add %s/24 dev INTERFACE", u.Address)
		}
		f.add(codeUnderlay, "", fmt.Sprintf("no interface that is up has %s", u.Address), lines("underlay address %s, interface %q, up %t", u.Address, u.Link, u.Up), fix)
	}
	for _, p := range e.Peers {
		at := fmt.Sprintf("%s (%s)", p.Node, p.Address)
		evidence := lines("%d of %d pings answered, median %v; largest packet %d octets, %d are needed", p.Received, p.Sent, p.RTT, p.MTU, p.Needed)
		switch {
		case p.Sent == 0:
		case p.Received == 0:
			f.add(codePeerSilent, "", at+" does not answer pings on the underlay", evidence, lines("ip route get %s", p.Address))
		case p.MTU > 0 && p.MTU < p.Needed:
			f.add(codePathMTU, "", fmt.Sprintf("packets of %d octets to %s do not arrive, %d do", p.Needed, at, p.MTU), evidence,
				lines("ip link set %s mtu %d", u.Link, p.MTU))
		case p.Received < p.Sent:
			f.add(codeLoss, "", fmt.Sprintf("%d of %d packets to %s are lost", p.Sent-p.Received, p.Sent, at), evidence, lines("vpcproxyctl netcheck"))
		}
	}
}
