package meter

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// Ownership tells which attachment a flow belongs to. In a namespace of its own
// all flows are the attachment's; in the agent's own it is for the source and
// the destination to say, as it is for steering.
type Ownership struct {
	only    string
	pairs   map[Pair]string
	lengths []Pair // the lengths that pairs have, longest first; addresses are void
	any     map[netip.Prefix]string
}

// Owners returns the ownership of the flows in one namespace.
func Owners(netns string, places []Place) *Ownership {
	o := &Ownership{pairs: map[Pair]string{}, any: map[netip.Prefix]string{}}
	for _, p := range places {
		switch {
		case p.Netns != netns:
		case netns != "":
			o.only = p.Attachment
		default:
			for _, dst := range p.CIDRs {
				o.any[dst] = p.Attachment
			}
			for _, pair := range p.Pods {
				o.pairs[pair] = p.Attachment
				if l := lengths(pair); !slices.Contains(o.lengths, l) {
					o.lengths = append(o.lengths, l)
				}
			}
		}
	}
	// As the steering table: the longest source first, then destination.
	slices.SortFunc(o.lengths, func(a, b Pair) int {
		if a.Src.Bits() != b.Src.Bits() {
			return b.Src.Bits() - a.Src.Bits()
		}
		return b.Dst.Bits() - a.Dst.Bits()
	})
	return o
}

// lengths keeps of a pair what lookups are tried with.
func lengths(p Pair) Pair {
	zero := func(p netip.Prefix) netip.Prefix {
		if p.Addr().Is4() {
			return netip.PrefixFrom(netip.IPv4Unspecified(), p.Bits())
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), p.Bits())
	}
	return Pair{Src: zero(p.Src), Dst: zero(p.Dst)}
}

// Of returns the attachment of a flow; false if it is none's.
func (o *Ownership) Of(e *conntrack.Entry) (string, bool) {
	if o.only != "" {
		return o.only, true
	}
	// On a function host all that leaves by a tunnel is translated, but for
	// the host's own traffic.
	src, dst := e.Orig.Source().Addr(), e.Orig.Destination().Addr()
	for _, l := range o.lengths {
		s, err := src.Prefix(l.Src.Bits())
		if err != nil || src.Is4() != l.Src.Addr().Is4() {
			continue
		}
		d, err := dst.Prefix(l.Dst.Bits())
		if err != nil {
			continue
		}
		if name, ok := o.pairs[Pair{Src: s, Dst: d}]; ok {
			return name, true
		}
	}
	best, owner := -1, ""
	for p, name := range o.any {
		if p.Bits() > best && p.Contains(dst) {
			best, owner = p.Bits(), name
		}
	}
	return owner, best >= 0
}

// ProtocolName returns tcp, udp, or an IP protocol number as text.
func ProtocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return fmt.Sprint(p)
}
