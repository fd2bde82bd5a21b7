package iptables

import (
	"context"
	"log/slog"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func TestChoose(t *testing.T) {
	const (
		one   = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"
		two   = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
		ours3 = "*filter\n:INPUT ACCEPT [0:0]\n:VPCPROXY-INPUT - [0:0]\n-A INPUT -j VPCPROXY-INPUT\n-A VPCPROXY-INPUT\n-A VPCPROXY-INPUT\nCOMMIT\n"
	)
	for _, c := range []struct {
		name        string
		nft, legacy string // what the variants hold; "-": not installed
		std, want   Mode
	}{
		{"nothing, nft is the default", "", "", NFT, NFT},
		{"nothing, legacy is the default", "", "", Legacy, Legacy},
		{"nothing, no default", "", "", "", NFT},
		{"only nft", "", "-", Legacy, NFT},
		{"only legacy", "-", "", NFT, Legacy},
		{"rules in legacy", "", one, NFT, Legacy},
		{"rules in nft", one, "", Legacy, NFT},
		{"more in legacy", one, two, NFT, Legacy},
		{"as many in both", one, one, Legacy, Legacy},
		{"ours do not count", one, ours3, NFT, NFT},
		{"kubelet's hint", two, "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", NFT, Legacy},
		{"kubelet's canary", "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n", two, Legacy, NFT},
		{"hint in another table", "*nat\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", one, NFT, Legacy},
	} {
		t.Run(c.name, func(t *testing.T) {
			held := map[Mode][]table{}
			for m, text := range map[Mode]string{NFT: c.nft, Legacy: c.legacy} {
				if text == "-" {
					continue
				}
				ts, err := parseSave(text)
				if err != nil {
					t.Fatal(err)
				}
				held[m] = ts
			}
			if got := choose(held, c.std); got != c.want {
				t.Errorf("choose = %s, want %s", got, c.want)
			}
		})
	}
}

func TestDetectRefusesUnknownMode(t *testing.T) {
	if _, _, err := detect(t.Context(), "ebtables"); err == nil {
		t.Error("mode ebtables was accepted")
	}
}

// elsewhere is a Host whose own namespace is testNetns.
type elsewhere struct{ kernel.Host }

func (e elsewhere) Run(ctx context.Context, _ string, f func() error) error {
	return e.Host.Run(ctx, testNetns, f)
}

func TestNewFollowsTheHost(t *testing.T) {
	h, _, inside := newNetns(t, Auto)
	inside("ip6tables-legacy -A INPUT -j ACCEPT")
	b, err := New(t.Context(), elsewhere{h}, Auto, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if b.Mode() != Legacy || b.other == nil || b.other.mode != NFT {
		t.Errorf("in use %s, other %+v; want legacy and nft", b.Mode(), b.other)
	}
}
