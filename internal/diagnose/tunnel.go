package diagnose

import "fmt"

var (
	codeTunnelSilent = Code{"tunnel-silent", Warning, "nobody answers at the other end of a tunnel",
		"Packets of the agent's own, sent through the tunnel, are not answered by the agent at the other end. Either GRE does not pass in one of the directions, or that agent does not run, or is of a release that does not answer.",
		"`vpcproxyctl trace` finds out whether a pod's packets pass, and where they stop; look at the other node's `vpcproxyctl status`. GRE (protocol 47) must be open between the nodes in both directions."}
	codeTunnelLoss = Code{"tunnel-loss", Warning, "packets are lost in a tunnel",
		"Some packets sent through the tunnel do not arrive. Connections go on, slower. If the underlay loses none, something on the way treats GRE otherwise than ICMP: a limit by protocol, a middlebox, or one queue that serves a whole tunnel.",
		"Compare with the underlay's loss in `vpcproxyctl netcheck`. If both lose, look for a saturated link or the instance's limits; if only the tunnel does, for what limits protocol 47."}
	codeTunnelMTU = Code{"tunnel-mtu", Error, "full packets do not pass a tunnel",
		"Packets as large as the tunnel device promises do not arrive in one of the directions: connections open and then hang. The TCP segment size is clamped to the promise, not to what passes.",
		"Set the underlay interfaces' MTU to what the path carries (the tunnel's follows by itself), on both nodes; or have the path carry what they promise."}
	tunnelCodes = []Code{codeTunnelSilent, codeTunnelLoss, codeTunnelMTU}
)

func (f *findings) tunnels(e *Evidence) {
	for _, t := range e.Tunnels {
		at := fmt.Sprintf("%s (%s)", t.Node, t.Address)
		evidence := lines("%d sent, %d arrived there, %d answered, median %v; largest packet there %d octets, back %d, %d are needed",
			t.Sent, max(t.There, 0), t.Back, t.RTT, t.MTUThere, t.MTUBack, t.Needed)
		switch {
		case t.Sent == 0:
		case t.There < 0:
			f.add(codeTunnelSilent, t.Attachment, "the tunnel to "+at+" brings no answer", lines("%d sent, none answered", t.Sent),
				lines("vpcproxyctl trace --from POD --to ADDRESS:PORT"))
		case t.MTUThere < t.Needed || t.MTUBack < t.Needed:
			f.add(codeTunnelMTU, t.Attachment, fmt.Sprintf("packets of %d octets do not pass the tunnel to %s: %d do there, %d back", t.Needed, at, t.MTUThere, t.MTUBack), evidence,
				lines("ip link set %s mtu %d", e.Underlay.Link, min(t.MTUThere, t.MTUBack)+e.Underlay.MTU-t.Needed))
		case t.Back < t.Sent:
			f.add(codeTunnelLoss, t.Attachment, fmt.Sprintf("the tunnel to %s loses %d of %d packets there, and %d of %d back", at, t.Sent-t.There, t.Sent, t.There-t.Back, t.There), evidence,
				lines("vpcproxyctl netcheck"))
		}
	}
}
