package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// skipStats leaves the counters out of a listing (RTEXT_FILTER_SKIP_STATS,
// include/uapi/linux/rtnetlink.h).
const skipStats = 1 << 3

// Links reads what it needs by itself, as the next two do: the library reads every
// attribute of every link, which takes five times as long.
func (h *handle) Links(ctx context.Context) ([]Link, error) {
	links, err := links(ctx, h, unix.NLM_F_DUMP, parseLink, func(m *message) { m.attrU32(unix.IFLA_EXT_MASK, skipStats) })
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for i := range links {
		h.locate(&links[i])
	}
	return links, nil
}

func (h *handle) LinkByName(ctx context.Context, name string) (Link, error) {
	found, err := links(ctx, h, unix.NLM_F_ACK, parseLink, func(m *message) {
		typ := uint16(unix.IFLA_IFNAME)
		if len(name) >= unix.IFNAMSIZ {
			typ = unix.IFLA_ALT_IFNAME
		}
		m.attr(typ, append([]byte(name), 0))
		m.attrU32(unix.IFLA_EXT_MASK, skipStats)
	})
	if err == nil && len(found) != 1 {
		err = ErrNotFound
	}
	if err != nil {
		return Link{}, fmt.Errorf("link %s: %w", name, err)
	}
	h.locate(&found[0])
	return found[0], nil
}

func (h *handle) LinkStats(ctx context.Context) (map[int]LinkStats, error) {
	all, err := links(ctx, h, unix.NLM_F_DUMP, parseStats, func(*message) {})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	stats := make(map[int]LinkStats, len(all))
	for _, l := range all {
		stats[l.index] = l.LinkStats
	}
	return stats, nil
}

// links asks for links.
func links[T any](ctx context.Context, h *handle, flags uint16, parse func([]byte) (T, bool, error), filter func(*message)) (all []T, err error) {
	err = h.use(ctx, func() (err error) {
		m := message{b: make([]byte, unix.SizeofIfInfomsg)}
		filter(&m)
		all, err = get(ctx, h.conn, unix.RTM_GETLINK, flags, m.b, parse)
		return err
	})
	return all, err
}

// locate finds out where a physical device sits.
func (h *handle) locate(l *Link) {
	if l.Type == "" && l.MAC != "" {
		l.PCI = h.conn.busAddress(l.Name)
	}
}

type indexedStats struct {
	index int
	LinkStats
}

// parseStats reads a link's struct rtnl_link_stats64 (include/uapi/linux/if_link.h).
func parseStats(body []byte) (indexedStats, bool, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return indexedStats{}, false, errTruncated
	}
	s := indexedStats{index: int(int32(native.Uint32(body[4:])))} //nolint:gosec // as the kernel has it
	ok := false
	err := walk(body, unix.SizeofIfInfomsg, func(typ uint16, v []byte) error {
		if typ != unix.IFLA_STATS64 {
			return nil
		}
		if len(v) < 8*8 {
			return errTruncated
		}
		ok = true
		for i, to := range []*uint64{&s.RxPackets, &s.TxPackets, &s.RxBytes, &s.TxBytes, &s.RxErrors, &s.TxErrors, &s.RxDropped, &s.TxDropped} {
			*to = native.Uint64(v[8*i:])
		}
		return nil
	})
	return s, ok, err
}

// parseLink reads a struct ifinfomsg and its attributes.
func parseLink(body []byte) (Link, bool, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, false, errTruncated
	}
	flags := native.Uint32(body[8:])
	l := Link{
		Index: int(int32(native.Uint32(body[4:]))), //nolint:gosec // as the kernel has it
		Up:    flags&unix.IFF_UP != 0, Lower: flags&unix.IFF_LOWER_UP != 0, NoARP: flags&unix.IFF_NOARP != 0,
	}
	var data []byte
	underlay := uint32(0)
	err := walk(body, unix.SizeofIfInfomsg, func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			var mtu uint32
			mtu, err = getU32(v)
			l.MTU = int(mtu)
		case unix.IFLA_LINK:
			underlay, err = getU32(v)
		case unix.IFLA_ADDRESS:
			if native.Uint16(body[2:]) == unix.ARPHRD_ETHER && len(v) == 6 {
				l.MAC = net.HardwareAddr(v).String()
			}
		case unix.IFLA_LINKINFO:
			l.Type, data, err = parseLinkInfo(v)
		}
		return err
	})
	if err != nil {
		return Link{}, false, fmt.Errorf("link %d: %w", l.Index, err)
	}
	if l.Type == "gre" {
		if l.GRE, err = parseGRE(data); err != nil {
			return Link{}, false, fmt.Errorf("link %s: %w", l.Name, err)
		}
		l.GRE.Underlay = int(underlay)
	}
	return l, true, nil
}

func parseLinkInfo(info []byte) (kind string, data []byte, err error) {
	err = walk(info, 0, func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_INFO_KIND:
			kind = unix.ByteSliceToString(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
		return nil
	})
	return kind, data, err
}

// parseGRE reads the attributes of a GRE device (ipgre_fill_info in
// net/ipv4/ip_gre.c). Flags and keys are in network order.
func parseGRE(data []byte) (*GRE, error) {
	var g GRE
	var iFlags, oFlags uint16
	var oKey uint32
	err := walk(data, 0, func(typ uint16, v []byte) error {
		switch {
		case typ == nl.IFLA_GRE_IFLAGS && len(v) >= 2:
			iFlags = binary.BigEndian.Uint16(v)
		case typ == nl.IFLA_GRE_OFLAGS && len(v) >= 2:
			oFlags = binary.BigEndian.Uint16(v)
		case typ == nl.IFLA_GRE_IKEY && len(v) >= 4:
			g.Key = binary.BigEndian.Uint32(v)
		case typ == nl.IFLA_GRE_OKEY && len(v) >= 4:
			oKey = binary.BigEndian.Uint32(v)
		case typ == nl.IFLA_GRE_LOCAL:
			g.Local = fromIP(v)
		case typ == nl.IFLA_GRE_REMOTE:
			g.Remote = fromIP(v)
		case typ == nl.IFLA_GRE_TTL && len(v) >= 1:
			g.TTL = v[0]
		case typ == nl.IFLA_GRE_PMTUDISC && len(v) >= 1:
			g.PMTUDisc = v[0] == 1
		}
		return nil
	})
	g.Keyed = iFlags&nl.GRE_KEY != 0
	g.KeysDiffer = g.Keyed != (oFlags&nl.GRE_KEY != 0) || g.Key != oKey
	g.Seq = (iFlags|oFlags)&nl.GRE_SEQ != 0
	g.Csum = (iFlags|oFlags)&nl.GRE_CSUM != 0
	return &g, err
}
