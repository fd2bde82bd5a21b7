package iptables

import (
	"context"
	"log/slog"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// elsewhere is a Host whose own namespace is testNetns.
type elsewhere struct{ kernel.Host }

func (e elsewhere) Run(ctx context.Context, _ string, f func() error) error {
	return e.Host.Run(ctx, testNetns, f)
}

func TestDetect(t *testing.T) {
	newNetns(t, Auto) // says early what the lab lacks
	for _, c := range []struct {
		name, script string
		mode, want   Mode
	}{
		{"default", ":", Auto, ""},
		{"rules of others in legacy", "iptables-legacy -A INPUT -j ACCEPT", Auto, Legacy},
		{"rules of others in nft", "iptables-nft -A INPUT -j ACCEPT", Auto, NFT},
		{"more in legacy", "ip6tables-legacy -A INPUT; iptables-legacy -A INPUT; iptables-nft -A INPUT", Auto, Legacy},
		{"ours do not count", "iptables-nft -A INPUT; for i in 1 2 3; do iptables-legacy -N VPCPROXY-$i; iptables-legacy -A INPUT -j VPCPROXY-$i; done", Auto, NFT},
		{"kubelet's hint", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT; iptables-nft -A INPUT", Auto, Legacy},
		{"kubelet's canary", "iptables-nft -t mangle -N KUBE-KUBELET-CANARY; iptables-legacy -A INPUT; iptables-legacy -A INPUT", Auto, NFT},
		{"configured legacy", "iptables-nft -A INPUT", Legacy, Legacy},
		{"configured nft", "iptables-legacy -A INPUT", NFT, NFT},
	} {
		t.Run(c.name, func(t *testing.T) {
			shell(t, "ip netns del "+testNetns+"; ip netns add "+testNetns)
			inside(t, c.script)
			b, err := New(t.Context(), elsewhere{newHost(t)}, c.mode, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want == "" {
				if want, err = standardMode(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if b.Mode() != want {
				t.Errorf("Mode = %s, want %s", b.Mode(), want)
			}
			if b.other == nil || b.other.mode == want {
				t.Errorf("the other variant is %+v; both are installed", b.other)
			}
		})
	}
}

func TestNewRefusesUnknownMode(t *testing.T) {
	_, _, err := detect(t.Context(), "ebtables")
	if err == nil {
		t.Error("mode ebtables was accepted")
	}
}
