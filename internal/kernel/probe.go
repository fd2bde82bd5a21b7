package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Capability is one thing that the product needs of a kernel, or of the
// privileges that the program has.
type Capability struct {
	Name string
	Err  error  // nil: it is there
	Fix  string // what an operator can do if it is not
}

// Capabilities is what a kernel was found to offer.
type Capabilities struct {
	GRE        Capability // both roles
	NFTables   Capability // both roles
	Namespaces Capability // proxies
	Egress     Capability // proxies: clsact, u32 and gact, for the egress guard
}

// Missing lists what is not there.
func (c Capabilities) Missing() []Capability {
	var missing []Capability
	for _, capability := range []Capability{c.GRE, c.NFTables, c.Namespaces, c.Egress} {
		if capability.Err != nil {
			missing = append(missing, capability)
		}
	}
	return missing
}

// Probe finds out by trying, since modules load on demand. It changes nothing but
// what a namespace of its own holds for a moment, and what modules are loaded.
func Probe(ctx context.Context) Capabilities {
	c := Capabilities{
		GRE:        Capability{Name: "gre", Fix: "modprobe ip_gre"},
		NFTables:   Capability{Name: "nftables", Fix: "modprobe nf_tables"},
		Namespaces: Capability{Name: "network namespaces", Fix: "run with CAP_SYS_ADMIN on a kernel with CONFIG_NET_NS"},
		Egress:     Capability{Name: "egress guard", Fix: "modprobe -a sch_ingress cls_u32 act_gact"},
	}
	c.GRE.Err = probeGRE(ctx)
	c.NFTables.Err = probeNFTables(ctx)
	c.Namespaces.Err = onNewThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return classify(fmt.Errorf("make a network namespace: %w", err))
		}
		c.Egress.Err = probeEgress(ctx)
		return nil
	})
	if c.Namespaces.Err != nil {
		c.Egress.Err = fmt.Errorf("cannot be tried without a network namespace: %w", c.Namespaces.Err)
	}
	return c
}

// probeGRE asks for a GRE device that no kernel makes: flags of a version other than
// 0 are refused by the module (ipgre_tunnel_validate in net/ipv4/ip_gre.c), while a
// kernel without it does not know the kind of device.
func probeGRE(ctx context.Context) error {
	err := ask(ctx, unix.NETLINK_ROUTE, func(m *message, seq uint32) {
		m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, seq)
		m.b = append(m.b, make([]byte, unix.SizeofIfInfomsg)...)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("gre"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_GRE_IFLAGS, []byte{0, 7})
		m.b = append(m.b, info.Serialize()...)
		m.end()
	})
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err == nil {
		err = errors.New("a malformed device was accepted")
	}
	return fmt.Errorf("GRE devices: %w", err)
}

func probeNFTables(ctx context.Context) error {
	err := ask(ctx, unix.NETLINK_NETFILTER, func(m *message, seq uint32) {
		m.begin(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, seq)
		m.u8(unix.AF_UNSPEC, 0, 0, 0) // struct nfgenmsg
		m.end()
	})
	if errors.Is(err, unix.EINVAL) { // no such subsystem
		return fmt.Errorf("nftables: %w", meaning{kind: ErrNotSupported, err: err})
	}
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// ask sends one request from the calling thread's namespace.
func ask(ctx context.Context, protocol int, build func(*message, uint32)) error {
	c, err := openConn(protocol)
	if err != nil {
		return classify(err)
	}
	err = c.batch(ctx, 1, func(_ int, m *message, seq uint32) { build(m, seq) })[0]
	return classify(errors.Join(err, c.Close()))
}

// probeEgress puts a guard on lo of the calling thread's namespace.
func probeEgress(ctx context.Context) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer nl.Close()
	const lo = 1 // LOOPBACK_IFINDEX, include/net/flow.h
	if err := (&handle{nl: nl}).SetEgressSources(ctx, lo, nil); err != nil {
		return classify(err)
	}
	return nil
}
