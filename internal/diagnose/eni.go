package diagnose

import "fmt"

var (
	codeENIDown = Code{"eni-down", Error, "an ENI is down or has no carrier",
		"The interface in the user's subnet passes nothing. Without a carrier it has usually been detached in the cloud.",
		"Attach the ENI again in the cloud; the agent sets it up by itself."}
	codeENIAddress = Code{"eni-address", Error, "an ENI has no address",
		"There is nothing that connections into the user's VPC could come from.",
		"Set spec.enis[].addresses of the attachment to what the cloud has assigned to the ENI."}
	codeGateway = Code{"gateway-silent", Warning, "the user subnet's gateway does not answer ARP",
		"What is not on the ENI's own link cannot be reached: the gateway's address is wrong, the ENI is in another subnet, or its security group drops what it sends.",
		"Compare spec.enis[].gateway and the ENI's addresses with the user's subnet."}
	codeUnSNATed = Code{"egress-drops", Info, "packets with other sources were kept from leaving an ENI",
		"The egress guard has dropped packets that were not from one of the ENI's addresses. They would have been dropped by the cloud's source/destination check, or shown inner addresses to the user. A few at a change are no reason to worry.",
		"If the number grows, look at the translation of the namespace: `vpcproxyctl plan`, `ip netns exec NAMESPACE iptables -t nat -S`."}
	codeSourceCheck = Code{"source-check", Info, "connections come from an address that is not the ENI's first",
		"The cloud must know that address as one of the ENI's (a secondary private address, or a HaVip), or its source/destination check drops the packets without a trace.",
		"Assign the address to the ENI in the cloud, or turn the ENI's source/destination check off."}
	eniCodes = []Code{codeENIDown, codeENIAddress, codeGateway, codeUnSNATed, codeSourceCheck}
)

func (f *findings) enis(e *Evidence) {
	for _, a := range e.Attachments {
		i := a.ENI
		if i == nil {
			continue
		}
		inside := "ip -n " + a.Netns + " "
		switch {
		case !i.Up || !i.Carrier:
			f.add(codeENIDown, a.Name, fmt.Sprintf("%s is not up, or without carrier", i.Name), lines("up %t, carrier %t", i.Up, i.Carrier), lines("%slink set %s up", inside, i.Name))
			continue
		case len(i.Addresses) == 0:
			f.add(codeENIAddress, a.Name, i.Name+" has no address", nil, lines("%saddress add ADDRESS/LENGTH dev %s", inside, i.Name))
		}
		if i.Answers != nil && !*i.Answers {
			f.add(codeGateway, a.Name, fmt.Sprintf("the gateway %s does not answer ARP on %s", i.Gateway, i.Name), lines("%s, addresses %v", i.Name, i.Addresses),
				lines("%sneigh show dev %s", inside, i.Name))
		}
		if i.Drops > 0 {
			f.add(codeUnSNATed, a.Name, fmt.Sprintf("%d packets with other sources were kept from leaving %s", i.Drops, i.Name), lines("%d packets", i.Drops),
				lines("tc -s -n %s filter show dev %s egress", a.Netns, i.Name))
		}
		if i.SNAT.IsValid() && len(i.Addresses) > 0 && i.Addresses[0].Addr() != i.SNAT {
			f.add(codeSourceCheck, a.Name, fmt.Sprintf("connections come from %s, and %s's first address is %s", i.SNAT, i.Name, i.Addresses[0].Addr()), nil,
				lines("assign %s to the ENI in the cloud, or turn its source/destination check off", i.SNAT))
		}
	}
}

// Ways says what is wrong with the ways to a node's peers, on the underlay and
// through the tunnels.
func Ways(e *Evidence) []Finding {
	f := &findings{node: e.Node, list: []Finding{}}
	f.underlay(e)
	f.tunnels(e)
	return f.sorted()
}

// Doctor says what is wrong with a node.
func Doctor(e *Evidence) []Finding {
	f := &findings{node: e.Node}
	f.agent(e)
	f.objects(e)
	f.kernel(e)
	f.firewall(e)
	f.machine(e)
	f.underlay(e)
	f.tunnels(e)
	f.enis(e)
	f.groups(e)
	return f.sorted()
}
