package main

func filterFaults() []fault {
	both := promise{stall: repair}
	return []fault{
		{area: "filter", name: "iptables -F", on: "host1", typed: []string{"iptables -F"}, holds: both},
		{area: "filter", name: "iptables -t nat -F", on: "host1", typed: []string{"iptables -t nat -F"}, holds: both},
		{area: "filter", name: "iptables -t mangle -F", on: "host1", typed: []string{"iptables -t mangle -F"}, holds: both},
		{area: "filter", name: "our jump deleted", on: "host1",
			typed: []string{"n=$(iptables -n -t nat -L POSTROUTING --line-numbers | awk '/VPCPROXY/{print $1; exit}'); iptables -t nat -D POSTROUTING $n"}, holds: both},
		{area: "filter", name: "a rule inserted into a chain of ours", on: "host1", typed: []string{"iptables -I VPCPROXY-FORWARD -j DROP"}, holds: both},
		{area: "filter", name: "our table deleted", on: "host1", typed: []string{"nft delete table inet vpcproxy"}, holds: both},
		{area: "filter", name: "our steering map flushed", on: "host1", typed: []string{"nft flush map inet vpcproxy steer4_32_24"}, holds: both},
		{area: "filter", name: "nft flush ruleset", on: "host1", typed: []string{"nft flush ruleset"}, holds: both},
		{area: "filter", name: "ten flushes one after the other, as of a firewall that reloads", on: "host1",
			typed: []string{"for i in 1 2 3 4 5 6 7 8 9 10; do iptables -F; iptables -t nat -F; sleep 0.1; done"}, holds: both},
		{area: "filter", name: "iptables -F on the active proxy", on: "proxy1", typed: []string{inRed + "iptables -F"}, holds: both},
		{area: "filter", name: "iptables -t nat -F on the active proxy", on: "proxy1", typed: []string{inRed + "iptables -t nat -F"}, holds: both},
		{area: "filter", name: "nft flush ruleset on the active proxy", on: "proxy1", typed: []string{inRed + "nft flush ruleset"}, holds: both},
		{area: "filter", name: "nft flush ruleset on the proxy's underlay", on: "proxy1", typed: []string{"nft flush ruleset"}, holds: both},
		{area: "filter", name: "egress guard removed", on: "proxy1", typed: []string{inRed + "tc qdisc del dev eth1 clsact"}, holds: both},
		{area: "filter", name: "nft flush ruleset on the standby proxy", on: "proxy2", typed: []string{inRed + "nft flush ruleset"}},
	}
}

func sysctlFaults() []fault {
	both := promise{stall: repair}
	return []fault{
		{area: "sysctl", name: "ip_forward=0", on: "host1", typed: []string{"sysctl -q -w net.ipv4.ip_forward=0"}, holds: both},
		{area: "sysctl", name: "rp_filter=1 on a tunnel", on: "host1", typed: []string{"sysctl -q -w net.ipv4.conf.vpx-red.rp_filter=1"}, holds: both},
		{area: "sysctl", name: "rp_filter=1 on everything", on: "host1", typed: []string{"sysctl -q -w net.ipv4.conf.all.rp_filter=1"},
			mend: []string{"sysctl -q -w net.ipv4.conf.all.rp_filter=0"}, holds: both},
		{area: "sysctl", name: "ip_forward=0 on the active proxy", on: "proxy1", typed: []string{inRed + "sysctl -q -w net.ipv4.ip_forward=0"}, holds: both},
	}
}

func eniFaults() []fault {
	both := promise{stall: repair}
	return []fault{
		{area: "ENI", name: "down", on: "proxy1", typed: []string{"ip -n vpx-red link set eth1 down"}, holds: both},
		{area: "ENI", name: "addresses flushed", on: "proxy1", typed: []string{"ip -n vpx-red address flush dev eth1"}, holds: both},
		{area: "ENI", name: "no carrier", on: "vpc-red", typed: []string{"ip link set proxy1 down"}, mend: []string{"ip link set proxy1 up"}, holds: promise{stall: failover}},
		{area: "ENI", name: "no carrier on the standby", on: "vpc-red", typed: []string{"ip link set proxy2 down"}, mend: []string{"ip link set proxy2 up"}},
		{area: "ENI", name: "taken out of its namespace", on: "proxy1", typed: []string{"ip -n vpx-red link set eth1 netns $$"}, holds: both},
	}
}
