package diagnose

import "fmt"

var (
	codeFeature = Code{"kernel-feature", Error, "the kernel lacks something, or the agent may not use it",
		"A device, table or guard cannot be made at all.",
		"Load the module that the fix names, give the agent the capability, or use a kernel that has it."}
	codeForwarding = Code{"ip-forward", Error, "packets are not forwarded",
		"net.ipv4.ip_forward is 0 in a namespace that has to forward: pods reach nothing beyond the node, or a proxy passes nothing on.",
		"Set it, and look for the program that unsets it (`grep -r ip_forward /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d`)."}
	codeRPFilter = Code{"rp-filter", Info, "strict reverse path filtering is on",
		"net.ipv4.conf.all.rp_filter is 1. On tunnel devices the agent sets 2 (loose), which overrules it. On other devices, packets that come in where answers would not go out are dropped.",
		"Nothing, as long as the tunnel devices have 2. If answers vanish between the tunnel and the pod, set `net.ipv4.conf.all.rp_filter=2`."}
	codeRPFilterDrops = Code{"rp-filter-drops", Error, "reverse path filtering drops answers from the tunnel",
		"The device's rp_filter is strict: answers come from addresses that the main table routes elsewhere, and are dropped without a trace but for the counter IPReversePathFilter in `nstat`.",
		"Set the device's rp_filter to 2, or 0 where `all` is 0; the agent does that when it runs."}
	codeNeighborTable = Code{"neighbor-table", Warning, "the table of neighbors is nearly full",
		"The table is one for all namespaces. When it is full the underlay's own neighbors cannot be resolved any more, and everything stands still. Permanent entries do not count.",
		"Raise net.ipv4.neigh.default.gc_thresh1, 2 and 3 (in the initial namespace), and find out who asks for so many addresses."}
	codeConntrackFull = Code{"conntrack-full", Error, "the table of connections is full, or nearly",
		"New connections find no room and are dropped; established ones go on.",
		"Raise net.netfilter.nf_conntrack_max (it is one limit for all namespaces), and look at who opens so many: `vpcproxyctl top`."}
	codePorts = Code{"port-exhaustion", Error, "one address has no ports left toward a destination",
		"A SNAT address carries 64,512 connections to one destination address and port. New ones to that destination fail, others do not. The search slows down from three quarters on.",
		"Have clients keep connections open, or give the attachment another address: a second attachment for part of the pods, with its own ENI."}
	kernelCodes = []Code{codeFeature, codeForwarding, codeRPFilter, codeRPFilterDrops, codeNeighborTable, codeConntrackFull, codePorts}
)

// Shares of a limit from which a finding is worth somebody's sleep.
const (
	nearlyFull = 85 // percent, of tables
	portsTight = 75 // percent, where the search for a port slows down (FACTS.md)
)

func (f *findings) kernel(e *Evidence) {
	for _, m := range e.Missing {
		f.add(codeFeature, "", m.Name+" is not available", []string{m.Error}, []string{m.Fix})
	}
	if e.Sysctls["net/ipv4/conf/all/rp_filter"] == "1" {
		f.add(codeRPFilter, "", "net.ipv4.conf.all.rp_filter is 1 (strict)", nil, []string{"sysctl -w net.ipv4.conf.all.rp_filter=2"})
	}
	f.rpFilter(e)
	if n := e.Neighbors; n.Limit > 0 && n.Entries*100 >= n.Limit*nearlyFull {
		f.add(codeNeighborTable, "", fmt.Sprintf("%d of %d neighbors", n.Entries, n.Limit),
			lines("%d entries that count, gc_thresh3 is %d, it was full %d times", n.Entries, n.Limit, n.Full),
			lines("sysctl -w net.ipv4.neigh.default.gc_thresh3=%d net.ipv4.neigh.default.gc_thresh2=%d", 8*n.Limit, 4*n.Limit))
	}
	for _, r := range e.Rooms {
		f.room(r)
	}
}

// rpFilter looks at the devices: the kernel takes the maximum of theirs and of all.
func (f *findings) rpFilter(e *Evidence) {
	all := e.Sysctls["net/ipv4/conf/all/rp_filter"]
	for _, a := range e.Attachments {
		if a.Netns != "" || a.LinkMTU == 0 {
			continue
		}
		name := "net/ipv4/conf/" + a.Link + "/rp_filter"
		if own, ok := e.Sysctls[name]; ok && (own == "1" && all != "2" || own == "0" && all == "1") {
			f.add(codeRPFilterDrops, a.Name, fmt.Sprintf("%s has strict reverse path filtering", a.Link),
				lines("%s is %s, net/ipv4/conf/all/rp_filter is %s", name, own, all), lines("sysctl -w net.ipv4.conf.%s.rp_filter=2", a.Link))
		}
	}
}

func (f *findings) room(r Room) {
	where, prefix := "the agent's namespace", ""
	if r.Netns != "" {
		where, prefix = "namespace "+r.Netns, "ip netns exec "+r.Netns+" "
	}
	if !r.Forwarding {
		f.add(codeForwarding, r.Attachment, "ip_forward is 0 in "+where, lines("net.ipv4.ip_forward = 0 in %s", where), lines("%ssysctl -w net.ipv4.ip_forward=1", prefix))
	}
	if r.Limit > 0 && r.Connections*100 >= r.Limit*nearlyFull {
		f.add(codeConntrackFull, r.Attachment, fmt.Sprintf("%d of %d connections in %s", r.Connections, r.Limit, where),
			lines("nf_conntrack_count %d, nf_conntrack_max %d, dropped for want of room %d", r.Connections, r.Limit, r.Dropped),
			lines("sysctl -w net.netfilter.nf_conntrack_max=%d", 4*r.Limit))
	}
	for _, p := range r.Busiest {
		if p.Used*100 >= PortLimit*portsTight {
			f.add(codePorts, r.Attachment, fmt.Sprintf("%s has %d of %d ports in use toward %s", p.Source, p.Used, PortLimit, p.Destination),
				lines("%d connections from %s to %s; %d could not be entered", p.Used, p.Source, p.Destination, r.InsertFailed),
				[]string{"vpcproxyctl top", "keep connections open on the clients, or attach part of the pods with another ENI"})
		}
	}
}
