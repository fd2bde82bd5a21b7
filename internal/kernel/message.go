package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Netlink messages are in the machine's byte order (include/uapi/linux/netlink.h).
var native = binary.NativeEndian

// message builds netlink requests one behind the other in one buffer, so that
// a single sendmsg carries them all.
type message struct {
	b     []byte
	start int // where the request that is being built begins
}

// begin starts a request. end must follow.
func (m *message) begin(typ, flags uint16, seq uint32) {
	m.start = len(m.b)
	m.u32(0) // length, known at the end
	m.b = native.AppendUint16(m.b, typ)
	m.b = native.AppendUint16(m.b, flags|unix.NLM_F_REQUEST)
	m.u32(seq)
	m.u32(0) // port: the kernel fills it in
}

// end completes the request that begin started.
func (m *message) end() {
	native.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start))
	m.align()
}

// addFlags sets further flags on the last request.
func (m *message) addFlags(flags uint16) {
	at := m.start + 6
	native.PutUint16(m.b[at:], native.Uint16(m.b[at:])|flags)
}

func (m *message) align() {
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) u8(v ...uint8) { m.b = append(m.b, v...) }

func (m *message) u32(v uint32) { m.b = native.AppendUint32(m.b, v) }

// attr adds an attribute; requests end aligned after each.
func (m *message) attr(typ uint16, value []byte) {
	m.b = native.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = native.AppendUint16(m.b, typ)
	m.b = append(m.b, value...)
	m.align()
}

func (m *message) attrU8(typ uint16, v uint8) { m.attr(typ, []byte{v}) }

func (m *message) attrU32(typ uint16, v uint32) {
	var b [4]byte
	native.PutUint32(b[:], v)
	m.attr(typ, b[:])
}

func (m *message) attrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		m.attr(typ, b[:])
		return
	}
	b := a.As16()
	m.attr(typ, b[:])
}

var errTruncated = errors.New("truncated netlink message")

// walk calls f with each attribute of a message's body behind a fixed header of
// the given size. The nested and byte-order bits are taken off the type.
func walk(body []byte, header int, f func(typ uint16, value []byte) error) error {
	header = (header + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
	if len(body) < header {
		return errTruncated
	}
	b := body[header:]
	for len(b) >= unix.SizeofRtAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return errTruncated
		}
		typ := native.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := f(typ, b[unix.SizeofRtAttr:n]); err != nil {
			return err
		}
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return nil
}

func getU8(v []byte) (uint8, error) {
	if len(v) < 1 {
		return 0, errTruncated
	}
	return v[0], nil
}

func getU32(v []byte) (uint32, error) {
	if len(v) < 4 {
		return 0, errTruncated
	}
	return native.Uint32(v), nil
}

func getAddr(v []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(v)
	if !ok {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes: %w", len(v), errTruncated)
	}
	return a, nil
}

// familyOf is the address family of a key.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
