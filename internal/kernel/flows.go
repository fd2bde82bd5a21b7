package kernel

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Attributes of connection tracking entries (enum ctattr_type, ctattr_tuple and
// ctattr_ip in include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ipctnlMsgCTGet = 1 // enum cntl_msg_types, there

	ctaTupleOrig = 1
	ctaTupleIP   = 1
	ctaIPv4Src   = 1
	ctaIPv4Dst   = 2
	ctaIPv6Src   = 3
	ctaIPv6Dst   = 4
)

// sizeofNfgenmsg is the header behind that of netlink
// (include/uapi/linux/netfilter/nfnetlink.h).
const sizeofNfgenmsg = 4

func (h *handle) Flows(ctx context.Context) (map[netip.Addr]struct{}, error) {
	flows := map[netip.Addr]struct{}{}
	err := h.use(ctx, func() error {
		c, err := h.lazy(&h.tracking, unix.NETLINK_NETFILTER, func(*conn) error { return nil })
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		const list = unix.NFNL_SUBSYS_CTNETLINK<<8 | ipctnlMsgCTGet
		request := make([]byte, sizeofNfgenmsg) // any family
		err = c.ask(ctx, list, unix.NLM_F_DUMP, request, func() { clear(flows) }, func(body []byte) error { return addFlow(flows, body) })
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return flows, nil
}

// addFlow reads the addresses of an entry's original direction.
func addFlow(flows map[netip.Addr]struct{}, body []byte) error {
	return walk(body, sizeofNfgenmsg, func(typ uint16, tuple []byte) error {
		if typ != ctaTupleOrig {
			return nil
		}
		return walk(tuple, 0, func(typ uint16, ip []byte) error {
			if typ != ctaTupleIP {
				return nil
			}
			return walk(ip, 0, func(typ uint16, v []byte) error {
				switch typ {
				case ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst:
					a, err := getAddr(v)
					if err != nil {
						return err
					}
					flows[a] = struct{}{}
				}
				return nil
			})
		})
	})
}
