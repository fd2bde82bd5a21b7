package topo

import "context"

// dumpScript prints what a network namespace holds, without counters, ages
// and other things that change by themselves.
const dumpScript = `
dump() {
	echo "# links"; ip -d link show
	echo "# addresses"; ip address show
	echo "# neighbors"; ip neigh show nud all
	echo "# routes"; ip route show table all; ip -6 route show table all
	echo "# rules"; ip -d rule show; ip -6 rule show
	echo "# iptables"; iptables-save; iptables-legacy-save
	echo "# nftables"; nft -s list ruleset
	echo "# tc"; tc qdisc show; for d in $(ls /sys/class/net); do tc filter show dev $d egress; done
	echo "# sysctl"; sysctl -a 2>/dev/null | grep -E '^net\.ipv[46]\.(ip_forward|conf\..*\.(forwarding|rp_filter|accept_local|arp_ignore|arp_announce|src_valid_mark|app_solicit|mcast_solicit|ucast_solicit))'
}
dump
export -f dump
for n in $(ls /run/netns); do
	echo
	echo "## namespace $n"
	ip netns exec $n bash -c dump
done
`

// Dump describes the machine for a reader: everything its namespaces hold.
func (m *Machine) Dump(ctx context.Context) string {
	out, err := m.Run(ctx, "bash", "-c", dumpScript)
	if err != nil {
		out += "\n" + err.Error() + "\n"
	}
	return out
}
