package kernel

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ifaProto is IFA_PROTO (include/uapi/linux/if_addr.h, Linux 5.18).
const ifaProto = 11

// ifaNoDAD has an IPv6 address usable at once: whose it is has been decided, and
// duplicate address detection (RFC 4862 section 5.4) would keep it tentative for a
// second or more. It says nothing about IPv4's.
const ifaNoDAD = unix.IFA_F_NODAD

func (h *handle) Addresses(ctx context.Context) ([]Address, error) {
	var all []Address
	err := h.use(ctx, func() (err error) {
		request := make([]byte, unix.SizeofIfAddrmsg) // any family, any link
		if all, err = dumpAll(ctx, h.conn, unix.RTM_GETADDR, request, parseAddress); err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		return nil
	})
	return all, err
}

// parseAddress reads a struct ifaddrmsg and its attributes.
func parseAddress(body []byte) (Address, bool, error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return Address{}, false, errTruncated
	}
	family, bits := body[0], int(body[1])
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return Address{}, false, nil
	}
	flags := uint32(body[2])
	a := Address{Scope: body[3], Link: int(native.Uint32(body[4:]))}
	var address, local netip.Addr
	err := walk(body, unix.SizeofIfAddrmsg, func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.IFA_ADDRESS:
			address, err = getAddr(v)
		case unix.IFA_LOCAL:
			local, err = getAddr(v)
		case unix.IFA_BROADCAST:
			a.Broadcast, err = getAddr(v)
		case unix.IFA_FLAGS:
			flags, err = getU32(v)
		case ifaProto:
			a.Protocol, err = getU8(v)
		}
		return err
	})
	if local.IsValid() { // otherwise address is not the far end of a point-to-point link
		address = local
	}
	a.Prefix = netip.PrefixFrom(address, bits)
	if err == nil && !a.Prefix.IsValid() {
		err = errTruncated
	}
	a.Dynamic = flags&unix.IFA_F_PERMANENT == 0
	a.LinkLocal = address.IsLinkLocalUnicast()
	return a, err == nil, err
}

func (h *handle) AddAddress(ctx context.Context, a Address) error {
	err := h.writeAddress(ctx, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	if err != nil {
		return fmt.Errorf("add address %s to link %d: %w", a.Prefix, a.Link, err)
	}
	return nil
}

func (h *handle) DeleteAddress(ctx context.Context, a Address) error {
	err := absentIsSuccess(h.writeAddress(ctx, unix.RTM_DELADDR, 0, a))
	if err != nil {
		return fmt.Errorf("delete address %s from link %d: %w", a.Prefix, a.Link, err)
	}
	return nil
}

func (h *handle) writeAddress(ctx context.Context, typ, flags uint16, a Address) error {
	if !a.Prefix.IsValid() {
		return fmt.Errorf("%v is no address with a prefix length", a.Prefix)
	}
	return h.use(ctx, func() error {
		err := h.conn.batch(ctx, 1, func(_ int, m *message, seq uint32) {
			m.begin(typ, flags, seq)
			m.u8(familyOf(a.Prefix.Addr()), uint8(a.Prefix.Bits()), ifaNoDAD, a.Scope)
			m.u32(uint32(a.Link))
			m.attrAddr(unix.IFA_LOCAL, a.Prefix.Addr())
			m.attrAddr(unix.IFA_ADDRESS, a.Prefix.Addr())
			if typ == unix.RTM_NEWADDR && a.Broadcast.IsValid() {
				m.attrAddr(unix.IFA_BROADCAST, a.Broadcast)
			}
			if typ == unix.RTM_NEWADDR && a.Protocol != 0 {
				m.attrU8(ifaProto, a.Protocol)
			}
			m.end()
		})[0]
		if typ == unix.RTM_NEWADDR && isExist(err) {
			return nil
		}
		return err
	})
}
