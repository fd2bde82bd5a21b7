// Package vip holds HaVips: a set of addresses that are on one machine at a
// time, which an election names. One of them is on the underlay, the others are
// inside the network namespaces of attachments; they move together or not at all.
//
// Losing the set, an address is deleted: from that moment the kernel neither
// answers ARP for it nor takes what is sent to it, which is as instantaneous as a
// filter would be, and leaves nothing to be undone. Only then is the outside
// world told (Driver.Release).
//
// Gaining it, the addresses inside come first and the one on the underlay last:
// what arrives there can then be translated. They are announced when they and
// their links are ready.
package vip

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Address is one of the addresses that move together.
type Address struct {
	// Name is what it is for: an attachment, or "" for the underlay.
	Name  string
	Netns string // below /run/netns; "" is the agent's own
	Link  string
	Addr  netip.Addr
}

// String names the address as ip(8) would be told of it.
func (a Address) String() string {
	if a.Netns == "" {
		return fmt.Sprintf("%s on %s", a.Addr, a.Link)
	}
	return fmt.Sprintf("%s on %s in %s", a.Addr, a.Link, a.Netns)
}

// prefix is the address as it is put on the link: a host address, so that it
// brings no route and is nobody's preferred source.
func (a Address) prefix() netip.Prefix { return netip.PrefixFrom(a.Addr, a.Addr.BitLen()) }

// Host is the part of kernel.Host that the package needs. A Set's must be one of
// its own: a lock that a reconcile holds would delay a move.
type Host interface {
	Namespaces(ctx context.Context) ([]string, error)
	In(name string) (kernel.Handle, error)
}

// Wire speaks for addresses on the links themselves.
type Wire interface {
	// Prepare opens what Announce needs on a link, so that a move need not. It is
	// idempotent.
	Prepare(ctx context.Context, netns string, link kernel.Link) error
	// Announce tells everybody on a link that an address is at its MAC address.
	Announce(ctx context.Context, netns string, link kernel.Link, addr netip.Addr) error
	// Ask asks who has an address, and returns the first other MAC address
	// that answers within the time that the context allows; "" if none does.
	Ask(ctx context.Context, netns string, link kernel.Link, addr netip.Addr) (mac string, err error)
	// Retain closes what is held open in namespaces other than these.
	Retain(netns map[string]bool)
}

// Driver tells what lies outside of the machine who holds the addresses: a
// cloud whose HaVips are assigned by an API. Networks that follow ARP need none.
type Driver interface {
	// Claim assigns the addresses to this machine. It is called after the
	// kernel holds them and again when another has claimed them meanwhile;
	// it must be idempotent, and end soon after its context does.
	Claim(ctx context.Context, addresses []Address) error
	// Release says that this machine has let go. Claiming by another must not
	// depend on it: a machine that dies cannot release.
	Release(ctx context.Context, addresses []Address) error
}

// Fault is a sort of Discrepancy.
type Fault string

// The faults.
const (
	Lacking    Fault = "lacking"    // elected, and the kernel does not hold the address
	Lingering  Fault = "lingering"  // not elected, and the kernel holds it
	Foreign    Fault = "foreign"    // not elected, and somebody else has put it on the link
	Contested  Fault = "contested"  // elected, and another machine answers for it
	Unanswered Fault = "unanswered" // not elected, and no machine answers for it
)

// Faults lists every Fault.
var Faults = []Fault{Lacking, Lingering, Foreign, Contested, Unanswered}

// Discrepancy is a difference between what is elected, what the kernel holds and
// what answers on the link.
type Discrepancy struct {
	Address Address
	Fault   Fault
	Detail  string // the MAC address that answers, or ""
}

// String is for logs.
func (d Discrepancy) String() string {
	s := fmt.Sprintf("%s: %s", d.Address, d.Fault)
	if d.Detail != "" {
		s += " (" + d.Detail + ")"
	}
	return s
}

// ours tells whether an address was put there by this package.
func ours(a kernel.Address) bool { return a.Protocol == desired.HaVipProtocol }
