package nftables

import (
	"os/exec"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/pkg/nat/nattest"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

func newHost(t testing.TB) kernel.Host {
	t.Helper()
	h, err := kernel.NewHost(kernel.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// sh returns a function that runs scripts of the shell in a namespace.
func sh(h kernel.Host) func(t testing.TB, netns, script string) string {
	return func(t testing.TB, netns, script string) string {
		t.Helper()
		var out []byte
		err := h.Run(t.Context(), netns, func() (err error) {
			out, err = exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("%v: %s\nscript:\n%s", err, out, script)
		}
		return string(out)
	}
}

// first begins a command about the first rule of a chain; $h is its handle.
func first(family, chain, do string) string {
	list := "nft -a list chain " + family + " vpcproxy_nat " + chain
	return "h=$(" + list + " | sed -n 's/.*# handle //p' | sed -n 2p); nft '" + do + " rule " + family + " vpcproxy_nat " + chain + "' "
}

func TestContract(t *testing.T) {
	lab.Require(t, lab.NFTables, lab.Conntrack)
	host := newHost(t)
	nattest.Run(t, nattest.Harness{
		Host:  host,
		Shell: sh(host),
		New:   func(*testing.T) nat.Backend { return New(host, nft.Options{}) },
		Faults: []nattest.Fault{
			{Name: "nft flush ruleset", Script: "nft flush ruleset"},
			{Name: "table deleted", Script: "nft delete table ip vpcproxy_nat"},
			{Name: "IPv6 table flushed", Script: "nft flush table ip6 vpcproxy_nat"},
			{Name: "table dormant", Script: "nft add table ip vpcproxy_nat '{ flags dormant; }'"},
			{Name: "chain flushed", Script: "nft flush chain ip vpcproxy_nat postrouting"},
			{Name: "chain deleted", Script: "nft flush chain ip vpcproxy_nat mss; nft delete chain ip vpcproxy_nat mss"},
			{Name: "policy changed", Script: "nft add chain ip vpcproxy_nat forward '{ policy drop; }'"},
			{Name: "hook changed", Script: "nft delete chain ip vpcproxy_nat input; nft add chain ip vpcproxy_nat input '{ type filter hook input priority 5; }'"},
			{Name: "rule deleted", Script: first("ip", "forward", "delete") + "handle $h"},
			{Name: "rule replaced", Script: first("ip", "postrouting", "replace") + "handle $h oifname eth1 snat to 1.2.3.4"},
			{Name: "rule replaced, comment kept", Script: first("ip", "postrouting", "replace") +
				`handle $h oifname eth1 snat to 1.2.3.4 comment '"-o eth1 -j SNAT --to-source 172.16.101.1 --random-fully"'`},
			{Name: "rule without random ports", Script: first("ip", "postrouting", "replace") +
				`handle $h oifname eth1 snat to 172.16.101.1 comment '"-o eth1 -j SNAT --to-source 172.16.101.1 --random-fully"'`},
			{Name: "rule added", Script: "nft insert rule ip6 vpcproxy_nat input accept"},
			{Name: "rule of the place deleted", Script: first("ip", "masq", "delete") + "handle $h"},
			{Name: "range added", Script: "nft insert rule ip vpcproxy_nat masq ip daddr 9.9.9.9 return"},
			{Name: "foreign chain", Script: "nft add chain ip vpcproxy_nat old; nft add rule ip vpcproxy_nat forward jump old"},
			{Name: "foreign set", Script: "nft add set ip vpcproxy_nat old '{ type ipv4_addr; }'"},
		},
		Foreign: "nft add table ip other; nft add chain ip other post '{ type nat hook postrouting priority 100; }'; nft add rule ip other post ip saddr 10.9.0.0/16 masquerade;" +
			"nft add table inet more; nft add chain inet more onward '{ type filter hook forward priority 0; policy drop; }'; nft add rule inet more onward ct state established accept",
		Dump: "nft list table ip other; nft list table inet more",
	})
}

func TestSurvey(t *testing.T) {
	lab.Require(t, lab.NFTables)
	host := newHost(t)
	const netns = "vpx-survey"
	if err := host.CreateNamespace(t.Context(), netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.DeleteNamespace(t.Context(), netns) })
	b := New(host, nft.Options{})
	look := func() []string {
		t.Helper()
		if _, err := b.Read(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
		return b.Survey(netns).Refusing
	}
	if got := look(); len(got) > 0 {
		t.Errorf("Survey = %q of nothing", got)
	}
	sh(host)(t, netns, "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'")
	if got := look(); len(got) != 1 || got[0] != "chain FORWARD of table filter" {
		t.Errorf("Survey = %q, want the chain that drops", got)
	}
}
