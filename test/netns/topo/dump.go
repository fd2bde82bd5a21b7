package topo

import (
	"context"
	"fmt"
)

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

// fingerprintScript prints what a network namespace holds and a restart or a
// second making of the same would not change: no indexes, counters, timers,
// learned neighbors, nor the empty chains that iptables-nft leaves behind.
const fingerprintScript = `
fingerprint() {
	ip -d -o link show | sed -E 's/^[0-9]+: /link /; s/@[^:]+:/:/; s/link-netns(id)? [^ ]+//; s/ numtxqueues.*//; s/ qlen [0-9]+//; s/ qdisc [a-z_]+//; s/ permaddr [^ ]+//'
	ip -o address show | sed -E 's/^[0-9]+: /address /; s/ valid_lft.*//; s/ tentative//; s/\\.*//' | grep -v ' inet6 fe80'
	ip neigh show nud permanent | sed 's/^/neighbor /'
	ip -4 route show table all | sed 's/^/route /'
	ip -6 route show table all | grep -v -E 'fe80|ff00|multicast|^local|^anycast' | sed 's/^/route6 /'
	ip rule show | sed -E 's/^/rule /'
	for save in iptables-save ip6tables-save iptables-legacy-save ip6tables-legacy-save; do
		$save 2>/dev/null | sed -E 's/\[[0-9:]+\]//; s/ +$//' | awk -v s=$save '/^\*/ {t = $1} /^[-:]/ && !/^:[A-Z]+ ACCEPT/ {print s, t, $0}'
	done
	nft -s list ruleset inet | sed 's/^/nft /'
	nft list tables | grep -v -E ' ip6? (filter|nat|mangle|raw|security)$'
	for d in $(ls /sys/class/net); do tc filter show dev $d egress | sed -E "s/^/tc $d /"; done
	sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter
}
(fingerprint) | sort
export -f fingerprint
for n in $(ls /run/netns | sort); do
	ip netns exec $n bash -c fingerprint | sort | sed "s/^/$n: /"
done
`

// Fingerprint describes all that the machine's namespaces hold, so that two of
// the same state are equal.
func (m *Machine) Fingerprint(ctx context.Context) (string, error) {
	out, err := m.Run(ctx, "bash", "-c", fingerprintScript)
	if err != nil {
		return "", fmt.Errorf("fingerprint: %w", err)
	}
	return out, nil
}
