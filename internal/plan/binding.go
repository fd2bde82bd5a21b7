package plan

import (
	"net/netip"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Steers returns how the packets of a bound pod are steered, given the ways of
// a plan. Nothing that the pod's attachments are for goes anywhere else: where
// an attachment has no way any more, it is refused, and so is what two of them
// claim. Of a pod whose attachments are not known, everything is refused that any
// attachment is for.
func Steers(ways map[string]desired.Way, b *intent.Binding) map[desired.SteerKey]desired.Steer {
	out := map[desired.SteerKey]desired.Steer{}
	src := host(b.Pod)
	refuse := desired.Steer{Refuse: true}
	claim := func(cidrs []netip.Prefix, steer desired.Steer) {
		for _, dst := range cidrs {
			if dst.Addr().BitLen() != b.Pod.BitLen() {
				continue
			}
			for k, other := range out {
				if k.Dst.Overlaps(dst) && other != steer {
					out[desired.SteerKey{Src: src, Dst: longer(k.Dst, dst)}] = refuse
				}
			}
			if k := (desired.SteerKey{Src: src, Dst: dst}); out[k] == (desired.Steer{}) {
				out[k] = steer
			}
		}
	}
	if len(b.Attachments) == 0 {
		for _, w := range ways {
			claim(w.CIDRs, refuse)
		}
	}
	for _, a := range b.Attachments {
		if w, ok := ways[a.Name]; ok {
			claim(w.CIDRs, w.Steer)
		} else {
			claim(a.CIDRs, refuse)
		}
	}
	return out
}

// longer returns the smaller range of two that overlap.
func longer(p, q netip.Prefix) netip.Prefix {
	if q.Bits() > p.Bits() {
		return q
	}
	return p
}
