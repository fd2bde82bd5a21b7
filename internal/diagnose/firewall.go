package diagnose

import "fmt"

var (
	codeForeignChain = Code{"foreign-chain", Warning, "another program's chain can drop our packets",
		"A base chain of docker, firewalld or another program drops or rejects packets on their way through this machine. In iptables our rules in FORWARD come first and accept what is ours; but a chain of another nftables table, or of the other iptables variant, decides for itself, whatever ours accept.",
		"Let it accept what comes from and goes to the devices vpx-*: for firewalld `firewall-cmd --permanent --zone=trusted --add-interface=vpx-+`, for a table of your own a rule before the drop. `nft list chain` shows what it drops."}
	codeGREBlocked = Code{"gre-blocked", Error, "a packet filter on this machine drops GRE",
		"A rule that names protocol 47 drops or rejects it: no tunnel works through this machine, or none in that direction.",
		"Remove the rule, or put one before it that accepts protocol 47 from and to the peers."}
	codeLegacyToo = Code{"iptables-two", Warning, "iptables-legacy has tables beside nft",
		"Packets pass the tables of both variants, and each decides for itself. What one accepts the other may drop; `iptables -S` shows only one of them.",
		"Move the rules of one over to the other (`iptables-legacy-save | iptables-nft-restore`), flush the old ones and unload the modules ip_tables, iptable_filter and iptable_nat."}
	codeLegacyNAT = Code{"legacy-nat", Warning, "iptables-legacy translates sources beside nft",
		"A connection is translated once, by whichever of the two variants' POSTROUTING chains comes first, and which that is depends on the order in which they came into being. If it is the legacy one, packets to an attachment may leave with the host's address, and are then not answered.",
		"Move the rules over to the variant in use (`iptables-legacy-save -t nat | iptables-nft-restore --noflush`) and flush the old ones (`iptables-legacy -t nat -F`); or have each leave alone what goes to vpx-*."}
	codeMeddler = Code{"network-manager", Warning, "a network manager removes what it has not made",
		"systemd-networkd deletes rules and routes of others when it (re)starts, unless it is told not to; NetworkManager takes hold of new devices. The agent puts them back within a second, during which packets are refused.",
		"Install the drop-ins that come with the package: `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no` for networkd, `unmanaged-devices=interface-name:vpx-*` for NetworkManager."}
	firewallCodes = []Code{codeForeignChain, codeGREBlocked, codeLegacyToo, codeLegacyNAT, codeMeddler}
)

func (c Chain) describe() string {
	s := fmt.Sprintf("table %s %s chain %s (hook %s, priority %d, policy %s)", c.Family, c.Table, c.Name, c.Hook, c.Priority, c.Policy)
	if c.Netns != "" {
		s = "namespace " + c.Netns + ": " + s
	}
	return s
}

func (c Chain) list() string {
	s := fmt.Sprintf("nft -a list chain %s %s %s", c.Family, c.Table, c.Name)
	if c.Netns != "" {
		s = "ip netns exec " + c.Netns + " " + s
	}
	return s
}

// drops tells whether a chain can drop what is forwarded, given what accepts first.
func (c Chain) drops() bool { return c.Policy == "drop" || c.Drops > 0 }

// iptables tells whether a chain is one of iptables', where our rules come first.
func (c Chain) iptables() bool {
	return (c.Family == "ip" || c.Family == "ip6") && (c.Table == "filter" || c.Table == "raw" || c.Table == "mangle" || c.Table == "nat")
}

func (f *findings) firewall(e *Evidence) {
	for _, c := range e.Chains {
		evidence := lines("%s: %d rules that drop, %d packets dropped by them", c.describe(), c.Drops, c.Dropped)
		switch {
		case c.GRE > 0:
			f.add(codeGREBlocked, "", "GRE is dropped by "+c.describe(), evidence,
				[]string{c.list(), "delete the rule for protocol 47 by its handle"})
		case c.Hook == "forward" && c.drops() && !(c.iptables() && e.IPTables == "nft"):
			f.add(codeForeignChain, "", "packets that are forwarded can be dropped by "+c.describe(), evidence,
				[]string{c.list(), fmt.Sprintf(`nft insert rule %s %s %s iifname "vpx-*" accept`, c.Family, c.Table, c.Name),
					fmt.Sprintf(`nft insert rule %s %s %s oifname "vpx-*" accept`, c.Family, c.Table, c.Name)})
		}
	}
	for _, c := range e.Legacy {
		f.legacy(c)
	}
	if e.LegacyToo {
		f.add(codeLegacyToo, "", "iptables-legacy has tables, and nft is in use", lines("/proc/net/ip_tables_names is not empty"),
			[]string{"iptables-legacy-save"})
	}
	for _, m := range e.Managers {
		if m.Running && m.Meddles != "" {
			f.add(codeMeddler, "", m.Name+" "+m.Meddles, lines("%s runs, and no configuration of it says otherwise", m.Name), meddlerFix(m.Name))
		}
	}
}

// legacy judges a chain of iptables-legacy.
func (f *findings) legacy(c LegacyChain) {
	program := map[string]string{"IPv6": "ip6tables-legacy"}[c.Family]
	if program == "" {
		program = "iptables-legacy"
	}
	at := fmt.Sprintf("%s table %s chain %s (policy %s)", program, c.Table, c.Name, c.Policy)
	if c.Netns != "" {
		program, at = "ip netns exec "+c.Netns+" "+program, "namespace "+c.Netns+": "+at
	}
	command := fmt.Sprintf("%s -t %s", program, c.Table)
	evidence := append([]string{at}, c.Rules...)
	if c.More > 0 {
		evidence = append(evidence, fmt.Sprintf("and %d more", c.More))
	}
	switch {
	case c.Table == "nat":
		f.add(codeLegacyNAT, "", "sources are translated by "+at, evidence,
			[]string{program + "-save -t nat", command + " -I POSTROUTING -o vpx-+ -j ACCEPT"})
	case c.GRE > 0:
		f.add(codeGREBlocked, "", "GRE is dropped by "+at, evidence, []string{command + " -S", "delete the rule for protocol 47 with -D"})
	case c.Name == "FORWARD":
		f.add(codeForeignChain, "", "packets that are forwarded can be dropped by "+at, evidence,
			[]string{command + " -S FORWARD", command + " -I FORWARD -i vpx-+ -j ACCEPT", command + " -I FORWARD -o vpx-+ -j ACCEPT"})
	case c.Policy == "DROP" && (c.Name == "INPUT" || c.Name == "OUTPUT"):
		f.add(codeForeignChain, "", "GRE may be dropped by "+at, evidence, []string{command + " -S " + c.Name, command + " -I " + c.Name + " -p 47 -j ACCEPT"})
	}
}

func meddlerFix(name string) []string {
	if name == "NetworkManager" {
		return []string{`printf '[keyfile]\nunmanaged-devices=interface-name:vpx-*\n' > /etc/NetworkManager/conf.d/vpcproxy.conf`, "systemctl reload NetworkManager"}
	}
	return []string{`mkdir -p /etc/systemd/networkd.conf.d && printf '[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes=no\n' > /etc/systemd/networkd.conf.d/vpcproxy.conf`, "systemctl restart systemd-networkd"}
}
