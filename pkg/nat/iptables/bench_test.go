package iptables

import (
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// BenchmarkBackend measures one namespace with the rules of a proxy.
func BenchmarkBackend(b *testing.B) {
	second := nat.Render(desired.NAT{
		SNAT:    []desired.SNAT{{Out: "eth1"}, {Out: "eth1", IPv6: true}},
		Clamp:   []desired.Clamp{{Link: "vpx-1f2e", MTU: 1400}},
		Forward: []desired.Forward{{In: "vpx-1f2e", Out: "eth1"}},
		Guarded: []string{"vpx-1f2e", "eth1", "eth2"},
	})
	for _, m := range []Mode{NFT, Legacy} {
		b.Run(string(m), func(b *testing.B) {
			_, backend, _ := newNetns(b, m)
			b.Run("create", func(b *testing.B) {
				for b.Loop() {
					mustWrite(b, backend, proxyNAT)
					b.StopTimer()
					mustWrite(b, backend, nat.RuleSet{})
					b.StartTimer()
				}
			})
			b.Run("replace", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					mustWrite(b, backend, []nat.RuleSet{proxyNAT, second}[i%2])
				}
			})
			b.Run("write-unchanged", func(b *testing.B) {
				for b.Loop() {
					mustWrite(b, backend, second)
				}
			})
			b.Run("read-changed", func(b *testing.B) {
				for b.Loop() {
					backend.seen.Forget(testNetns)
					mustRead(b, backend)
				}
			})
			b.Run("read-unchanged", func(b *testing.B) {
				for b.Loop() {
					mustRead(b, backend)
				}
			})
			b.Run("fingerprint", func(b *testing.B) {
				for b.Loop() {
					if _, err := backend.Fingerprint(b.Context(), testNetns); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
	b.Logf("%d rules", rules(proxyNAT))
}

func rules(s nat.RuleSet) int {
	n := 0
	for _, r := range s.Rules {
		n += len(r)
	}
	return n
}
