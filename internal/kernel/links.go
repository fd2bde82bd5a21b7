package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// retryDump repeats a listing that the kernel marks as interrupted. Every listing
// by the library goes through it.
func retryDump[T any](ctx context.Context, list func() (T, error)) (T, error) {
	var zero T
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return zero, err
		}
		v, err := list()
		if err == nil {
			return v, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return zero, err
		}
	}
	return zero, fmt.Errorf("the listing was interrupted by changes %d times: %w", dumpAttempts, unix.EINTR)
}

// fallback tells the device that the GRE module makes by itself and that cannot be
// deleted (net/ipv4/ip_gre.c).
func fallback(l Link) bool { return l.Type == "gre" && l.Name == "gre0" }

// fromIP returns the zero Addr for "any".
func fromIP(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.Unmap().IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// busAddress asks the driver where its device sits (ETHTOOL_GDRVINFO). Netlink's own
// attribute for it names the virtio device, not the PCI function behind it. Any
// socket of the namespace serves: netlink hands device ioctls on.
func (c *conn) busAddress(link string) string {
	var info *unix.EthtoolDrvinfo
	err := c.raw.Control(func(fd uintptr) {
		info, _ = unix.IoctlGetEthtoolDrvinfo(int(fd), link)
	})
	if err != nil || info == nil {
		return ""
	}
	return pciAddress(unix.ByteSliceToString(info.Bus_info[:]))
}

// pciAddress returns "" for what is not domain:bus:device.function: other buses have
// other forms, or none.
func pciAddress(bus string) string {
	if !pciForm.MatchString(bus) {
		return ""
	}
	return bus
}

var pciForm = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

func (h *handle) CreateGRE(ctx context.Context, name string, g GRE, mtu int) error {
	what := fmt.Sprintf("create GRE device %s local %s", name, g.Local)
	if !g.Local.Is4() {
		return fmt.Errorf("%s: the local address must be IPv4", what)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	link := &netlink.Gretun{
		LinkAttrs: attrs,
		// Without a local address the library makes an IPv6 GRE device.
		Local: g.Local.AsSlice(),
		Link:  uint32(g.Underlay),
		Ttl:   g.TTL,
	}
	if g.PMTUDisc {
		link.PMtuDisc = 1
	}
	if g.Keyed {
		what = fmt.Sprintf("%s key %d", what, g.Key)
		link.IKey, link.OKey = g.Key, g.Key
		// The library sets these flags for keys other than 0 only.
		link.IFlags, link.OFlags = uint16(nl.GRE_KEY), uint16(nl.GRE_KEY)
	}
	return h.use(ctx, func() error {
		err := h.nl.LinkAdd(link)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("%s: the name is taken, or another device has this local address and key on the same underlay, perhaps in a namespace whose end is not over yet: %w", what, err)
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("%s: load it with `modprobe ip_gre`: %w", what, err)
		default:
			return fmt.Errorf("%s: %w", what, err)
		}
	})
}

// change applies one change to a link. The library does not look a link up that has
// its index.
func (h *handle) change(ctx context.Context, index int, what string, f func(netlink.Link) error) error {
	return h.use(ctx, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Index = index
		if err := f(&netlink.Device{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("link %d: %s: %w", index, what, err)
		}
		return nil
	})
}

func (h *handle) DeleteLink(ctx context.Context, index int) error {
	return absentIsSuccess(h.change(ctx, index, "delete", h.nl.LinkDel))
}

func (h *handle) SetLinkName(ctx context.Context, index int, name string) error {
	return h.change(ctx, index, "rename to "+name, func(l netlink.Link) error {
		return h.nl.LinkSetName(l, name)
	})
}

func (h *handle) SetLinkMTU(ctx context.Context, index, mtu int) error {
	return h.change(ctx, index, fmt.Sprintf("set MTU %d", mtu), func(l netlink.Link) error {
		return h.nl.LinkSetMTU(l, mtu)
	})
}

func (h *handle) SetLinkAlias(ctx context.Context, index int, alias string) error {
	return h.change(ctx, index, "set alias", func(l netlink.Link) error {
		return h.nl.LinkSetAlias(l, alias)
	})
}

func (h *handle) SetLinkUp(ctx context.Context, index int, up bool) error {
	if up {
		return h.change(ctx, index, "set up", h.nl.LinkSetUp)
	}
	return h.change(ctx, index, "set down", h.nl.LinkSetDown)
}

func (h *handle) SetLinkARP(ctx context.Context, index int, on bool) error {
	return h.change(ctx, index, fmt.Sprintf("set ARP of link %d to %t", index, on), func(l netlink.Link) error {
		if on {
			return h.nl.LinkSetARPOn(l)
		}
		return h.nl.LinkSetARPOff(l)
	})
}

func (h *handle) MoveLink(ctx context.Context, index int, netns string) error {
	ns, err := h.host.duplicate(netns)
	if err != nil {
		return fmt.Errorf("link %d: move to network namespace %q: %w", index, netns, err)
	}
	defer func() { _ = unix.Close(ns) }()
	return h.moveLink(ctx, index, ns)
}

func (h *handle) moveLink(ctx context.Context, index, ns int) error {
	return h.change(ctx, index, "move to another network namespace", func(l netlink.Link) error {
		return h.nl.LinkSetNsFd(l, ns)
	})
}
