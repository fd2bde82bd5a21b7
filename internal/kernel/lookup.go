package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Packet is what a routing decision looks at.
type Packet struct {
	From, To netip.Addr
	Mark     uint32
	In       string // the interface that it comes in by; "" for one of this machine's own
}

// Decision is what the kernel would do with a packet.
type Decision struct {
	Link  string
	Table uint32
	Via   netip.Addr // zero: the destination is on the link
}

// Lookup asks the kernel for its routing decision in a namespace ("" is the
// agent's own): `ip route get`. A packet that it would refuse is an error, such as
// EHOSTUNREACH or, for reverse path filtering, EXDEV.
func Lookup(ctx context.Context, h Host, netns string, p Packet) (Decision, error) {
	var d Decision
	err := h.Run(ctx, netns, func() (err error) {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		defer nl.Close()
		options := &netlink.RouteGetOptions{Mark: p.Mark, Iif: p.In}
		if p.From.IsValid() {
			options.SrcAddr = p.From.AsSlice()
		}
		routes, err := nl.RouteGetWithOptions(p.To.AsSlice(), options)
		if err != nil {
			return err
		}
		if len(routes) == 0 {
			return unix.ENETUNREACH
		}
		r := routes[0]
		d.Table, d.Via = uint32(r.Table), fromIP(r.Gw)
		if len(r.MultiPath) > 0 {
			r.LinkIndex, d.Via = r.MultiPath[0].LinkIndex, fromIP(r.MultiPath[0].Gw)
		}
		if r.LinkIndex == 0 {
			return nil
		}
		l, err := nl.LinkByIndex(r.LinkIndex)
		if err != nil {
			return fmt.Errorf("link %d: %w", r.LinkIndex, err)
		}
		d.Link = l.Attrs().Name
		return nil
	})
	if err != nil {
		return Decision{}, fmt.Errorf("route to %s: %w", p.To, classify(err))
	}
	return d, nil
}

// CreateVeth makes a pair of Ethernet devices that are each other's other end, in
// the agent's own namespace, and sets both up. What of that name was there is
// removed first. Neither answers for IPv6 by itself.
func CreateVeth(ctx context.Context, h Host, name, peer string) error {
	return h.Run(ctx, "", func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		defer nl.Close()
		if old, err := nl.LinkByName(name); err == nil {
			if err := nl.LinkDel(old); err != nil {
				return fmt.Errorf("remove the old link %s: %w", name, err)
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
			return fmt.Errorf("make the links %s and %s: %w", name, peer, classify(err))
		}
		for _, n := range []string{name, peer} {
			l, err := nl.LinkByName(n)
			if err != nil {
				return fmt.Errorf("link %s: %w", n, err)
			}
			if err := nl.LinkSetUp(l); err != nil {
				return errors.Join(fmt.Errorf("set link %s up: %w", n, err), nl.LinkDel(l))
			}
		}
		return nil
	})
}

// Resolution is what the kernel knows of an Ethernet neighbor.
type Resolution string

// The resolutions.
const (
	Unasked    Resolution = ""           // there is no entry
	Resolved   Resolution = "resolved"   // its address is known
	Unresolved Resolution = "unresolved" // it was asked for, and nobody has answered (yet)
)

// EthernetNeighbor says what is known of a neighbor on a link of a namespace.
func EthernetNeighbor(ctx context.Context, h Host, netns, link string, a netip.Addr) (Resolution, error) {
	r := Unasked
	err := h.Run(ctx, netns, func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		defer nl.Close()
		l, err := nl.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		all, err := retryDump(ctx, func() ([]netlink.Neigh, error) { return nl.NeighList(l.Attrs().Index, family) })
		if err != nil {
			return fmt.Errorf("list the neighbors of %s: %w", link, err)
		}
		for _, n := range all {
			if fromIP(n.IP) != a {
				continue
			}
			r = Resolved
			if n.State&(unix.NUD_INCOMPLETE|unix.NUD_FAILED) != 0 {
				r = Unresolved
			}
		}
		return nil
	})
	return r, err
}
