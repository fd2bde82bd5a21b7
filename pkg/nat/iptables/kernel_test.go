package iptables

import (
	"fmt"
	"log/slog"
	"os/exec"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
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

func TestContract(t *testing.T) {
	lab.Require(t, lab.IPTablesNFT, lab.IPTablesLegacy, lab.Conntrack)
	host := newHost(t)
	for _, m := range []Mode{NFT, Legacy} {
		t.Run(string(m), func(t *testing.T) {
			v4 := fmt.Sprintf("iptables-%s -w ", m)
			v6 := "ip6" + v4[2:]
			other := "iptables-nft "
			if m == NFT {
				other = "iptables-legacy "
			}
			nattest.Run(t, nattest.Harness{
				Host:  host,
				Shell: sh(host),
				New: func(t *testing.T) nat.Backend {
					b, err := New(t.Context(), host, m, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					if b.Mode() != m {
						t.Fatalf("Mode = %s, want %s", b.Mode(), m)
					}
					return b
				},
				Faults: []nattest.Fault{
					{Name: "iptables -F", Script: v4 + "-F"},
					{Name: "iptables -t nat -F; -X", Script: v4 + "-t nat -F;" + v4 + "-t nat -X"},
					{Name: "all of mangle gone", Script: v4 + "-t mangle -F;" + v4 + "-t mangle -X"},
					{Name: "IPv6 filter gone", Script: v6 + "-F;" + v6 + "-X"},
					{Name: "chain flushed", Script: v4 + "-t nat -F VPCPROXY-POSTROUTING"},
					{Name: "jump deleted", Script: v4 + "-D INPUT 1"},
					{Name: "jump doubled", Script: v4 + `-A FORWARD -m comment --comment "vpcproxy: guarded links" -j VPCPROXY-FORWARD`},
					{Name: "jump restricted", Script: v4 + "-t nat -R POSTROUTING 1 -s 10.0.0.0/8 -j VPCPROXY-POSTROUTING"},
					{Name: "jump from another chain", Script: v4 + "-A OUTPUT -j VPCPROXY-INPUT"},
					{Name: "rule deleted", Script: v4 + "-D VPCPROXY-FORWARD 2"},
					{Name: "rule edited", Script: v4 + "-t nat -R VPCPROXY-POSTROUTING 1 -o eth1 -j SNAT --to-source 1.2.3.4"},
					{Name: "rule without random ports", Script: v4 + "-t nat -R VPCPROXY-POSTROUTING 1 -o eth1 -j SNAT --to-source 172.16.101.1"},
					{Name: "rule added", Script: v4 + "-I VPCPROXY-INPUT -j ACCEPT"},
					{Name: "masquerade jump deleted", Script: v4 + "-t nat -D POSTROUTING 2"},
					{Name: "masquerade jump unrestricted", Script: v6 + "-t nat -R POSTROUTING 2 -j VPCPROXY-MASQ"},
					{Name: "range added", Script: v4 + "-t nat -I VPCPROXY-MASQ -d 9.9.9.9/32 -j RETURN"},
					{Name: "accepted before us", Script: v4 + "-I FORWARD -j ACCEPT"},
					{Name: "masqueraded before us", Script: v4 + "-t nat -I POSTROUTING ! -o lo -j MASQUERADE"},
					{Name: "old chain", Script: v4 + "-N VPCPROXY-OLD;" + v4 + "-A FORWARD -j VPCPROXY-OLD"},
					{Name: "chain in a foreign table", Script: v4 + "-t raw -N VPCPROXY-RAW;" + v4 + "-t raw -A PREROUTING -j VPCPROXY-RAW"},
					{Name: "left in the other variant", Script: other + "-N VPCPROXY-FORWARD;" + other + "-A FORWARD -j VPCPROXY-FORWARD"},
				},
				Foreign: v4 + "-t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE;" +
					v4 + "-N KUBE-FORWARD;" + v4 + "-A FORWARD -j KUBE-FORWARD;" + v4 + "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP;" +
					v4 + "-t mangle -A PREROUTING -i eth9 -j MARK --set-mark 7;" + v6 + "-A OUTPUT -p tcp --dport 22 -j ACCEPT;" + v4 + "-P FORWARD DROP",
				Dump: fmt.Sprintf("for t in raw nat filter mangle; do iptables-%s-save -t $t; done | grep -v -e ^# -e VPCPROXY | cut -d[ -f1; ip6tables-%s -S OUTPUT", m, m),
			})
		})
	}
}
