package conntrack

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// The numbers of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	msgNew    = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW is 0
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	msgStats  = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrStatus     = 3
	attrProtoInfo  = 4
	attrNATSrc     = 6
	attrTimeout    = 7
	attrMark       = 8
	attrCountOrig  = 9
	attrCountReply = 10
	attrNATDst     = 13
	attrStatusMask = 26

	attrTupleIP    = 1
	attrTupleProto = 2
	attrIPv4Src    = 1
	attrIPv4Dst    = 2
	attrIPv6Src    = 3
	attrIPv6Dst    = 4
	attrProtoNum   = 1
	attrPortSrc    = 2
	attrPortDst    = 3

	attrTCP           = 1
	attrTCPState      = 1
	attrTCPWScaleOrig = 2
	attrTCPWScaleRepl = 3
	attrTCPFlagsOrig  = 4
	attrTCPFlagsReply = 5

	attrNATIPv4Min = 1
	attrNATIPv4Max = 2
	attrNATProto   = 3
	attrNATIPv6Min = 4
	attrNATIPv6Max = 5
	attrNATPortMin = 1
	attrNATPortMax = 2

	attrCountBytes = 2

	attrGlobalEntries = 1
	attrGlobalLimit   = 2

	// IP_CT_TCP_FLAG_*: window scale and SACK come from the flow itself. An
	// entry that was not made by the handshake knows no window, and must not
	// judge by one.
	tcpFlagsKept  = 0x01 | 0x02
	tcpBeLiberal  = 0x08
	tcpFlagsWhole = tcpFlagsKept | tcpBeLiberal
)

var errTruncated = errors.New("truncated conntrack message")

// Netlink headers are in the machine's byte order, ctnetlink's values in the network's.
var (
	native  = binary.NativeEndian
	network = binary.BigEndian
)

// message builds requests one behind the other, so that one sendmsg carries them all.
type message struct {
	b     []byte
	start int
}

func (m *message) begin(typ, flags uint16, seq uint32, family uint8) {
	m.start = len(m.b)
	m.b = native.AppendUint32(m.b, 0) // length, known at the end
	m.b = native.AppendUint16(m.b, typ)
	m.b = native.AppendUint16(m.b, flags|unix.NLM_F_REQUEST)
	m.b = native.AppendUint32(m.b, seq)
	m.b = native.AppendUint32(m.b, 0)                  // port: the kernel fills it in
	m.b = append(m.b, family, unix.NFNETLINK_V0, 0, 0) // struct nfgenmsg
}

func (m *message) end() {
	native.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start))
}

func (m *message) acknowledge() {
	at := m.start + 6
	native.PutUint16(m.b[at:], native.Uint16(m.b[at:])|unix.NLM_F_ACK)
}

func (m *message) header(typ uint16, size int) {
	m.b = native.AppendUint16(m.b, uint16(unix.SizeofNlAttr+size))
	m.b = native.AppendUint16(m.b, typ)
}

func (m *message) align() {
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) bytes(typ uint16, v ...byte) {
	m.header(typ, len(v))
	m.b = append(m.b, v...)
	m.align()
}

func (m *message) u16(typ uint16, v uint16) {
	m.header(typ, 2)
	m.b = network.AppendUint16(m.b, v)
	m.align()
}

func (m *message) u32(typ uint16, v uint32) {
	m.header(typ, 4)
	m.b = network.AppendUint32(m.b, v)
}

// nest begins an attribute of attributes; pass what it returns to close.
func (m *message) nest(typ uint16) int {
	at := len(m.b)
	m.header(typ|unix.NLA_F_NESTED, 0)
	return at
}

func (m *message) close(at int) { native.PutUint16(m.b[at:], uint16(len(m.b)-at)) }

func (m *message) tuple(typ uint16, t *Tuple) {
	whole := m.nest(typ)
	ip := m.nest(attrTupleIP)
	if t.IPv4() {
		m.bytes(attrIPv4Src, t.Src[12:]...)
		m.bytes(attrIPv4Dst, t.Dst[12:]...)
	} else {
		m.bytes(attrIPv6Src, t.Src[:]...)
		m.bytes(attrIPv6Dst, t.Dst[:]...)
	}
	m.close(ip)
	proto := m.nest(attrTupleProto)
	m.bytes(attrProtoNum, t.Proto)
	m.u16(attrPortSrc, t.SrcPort)
	m.u16(attrPortDst, t.DstPort)
	m.close(proto)
	m.close(whole)
}

// nat says what a flow's source (or destination) becomes.
func (m *message) nat(typ uint16, addr *[16]byte, port uint16) {
	whole := m.nest(typ)
	if isMapped(addr) {
		m.bytes(attrNATIPv4Min, addr[12:]...)
		m.bytes(attrNATIPv4Max, addr[12:]...)
	} else {
		m.bytes(attrNATIPv6Min, addr[:]...)
		m.bytes(attrNATIPv6Max, addr[:]...)
	}
	proto := m.nest(attrNATProto)
	m.u16(attrNATPortMin, port)
	m.u16(attrNATPortMax, port)
	m.close(proto)
	m.close(whole)
}

// create writes all of an entry. The reply tuple is the plain inverse: the
// kernel derives the translated one.
func (m *message) create(e *Entry) {
	inverse := e.Orig.Inverse()
	m.tuple(attrTupleOrig, &e.Orig)
	m.tuple(attrTupleReply, &inverse)
	if e.Reply.Dst != e.Orig.Src || e.Reply.DstPort != e.Orig.SrcPort {
		m.nat(attrNATSrc, &e.Reply.Dst, e.Reply.DstPort)
	}
	if e.Reply.Src != e.Orig.Dst || e.Reply.SrcPort != e.Orig.DstPort {
		m.nat(attrNATDst, &e.Reply.Src, e.Reply.SrcPort)
	}
	m.state(e)
}

// state writes what may change in an entry.
func (m *message) state(e *Entry) {
	m.u32(attrStatus, uint32(e.Status&(SeenReply|Assured)|Confirmed))
	m.u32(attrTimeout, e.Timeout)
	if e.Mark != 0 {
		m.u32(attrMark, e.Mark)
	}
	if e.Orig.Proto != unix.IPPROTO_TCP {
		return
	}
	info := m.nest(attrProtoInfo)
	tcp := m.nest(attrTCP)
	m.bytes(attrTCPState, e.TCP.State)
	m.bytes(attrTCPWScaleOrig, e.TCP.WScaleOrig)
	m.bytes(attrTCPWScaleRepl, e.TCP.WScaleReply)
	m.bytes(attrTCPFlagsOrig, e.TCP.FlagsOrig&tcpFlagsKept|tcpBeLiberal, tcpFlagsWhole)
	m.bytes(attrTCPFlagsReply, e.TCP.FlagsReply&tcpFlagsKept|tcpBeLiberal, tcpFlagsWhole)
	m.close(tcp)
	m.close(info)
}

// attribute takes the first attribute off b. The nested and byte-order bits are
// taken off its type. ok is false at the end.
func attribute(b []byte) (typ uint16, value, rest []byte, ok bool, err error) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil, false, nil
	}
	n := int(native.Uint16(b))
	if n < unix.SizeofNlAttr || n > len(b) {
		return 0, nil, nil, false, errTruncated
	}
	typ = native.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	return typ, b[unix.SizeofNlAttr:n], b[min((n+3)&^3, len(b)):], true, nil
}

// each calls f with every attribute in b.
func each(b []byte, f func(typ uint16, v []byte) error) error {
	for {
		typ, v, rest, ok, err := attribute(b)
		if err != nil || !ok {
			return err
		}
		if err := f(typ, v); err != nil {
			return err
		}
		b = rest
	}
}

func get8(v []byte, to *uint8) error {
	if len(v) < 1 {
		return errTruncated
	}
	*to = v[0]
	return nil
}

func get16(v []byte, to *uint16) error {
	if len(v) < 2 {
		return errTruncated
	}
	*to = network.Uint16(v)
	return nil
}

func get32[T ~uint32](v []byte, to *T) error {
	if len(v) < 4 {
		return errTruncated
	}
	*to = T(network.Uint32(v))
	return nil
}

func getBytes(b []byte, to *uint64) error {
	return each(b, func(typ uint16, v []byte) error {
		if typ != attrCountBytes {
			return nil
		}
		if len(v) < 8 {
			return errTruncated
		}
		*to = network.Uint64(v)
		return nil
	})
}

func getAddress(v []byte, to *[16]byte) error {
	switch len(v) {
	case 4:
		copy(to[:], mappedPrefix[:])
		copy(to[12:], v)
	case 16:
		copy(to[:], v)
	default:
		return errTruncated
	}
	return nil
}

// parse reads an entry from a message's body, behind the netlink header.
func parse(body []byte, e *Entry) error {
	if len(body) < 4 {
		return errTruncated
	}
	*e = Entry{}
	return each(body[4:], func(typ uint16, v []byte) error {
		switch typ {
		case attrTupleOrig:
			return parseTuple(v, &e.Orig)
		case attrTupleReply:
			return parseTuple(v, &e.Reply)
		case attrStatus:
			return get32(v, &e.Status)
		case attrTimeout:
			return get32(v, &e.Timeout)
		case attrMark:
			return get32(v, &e.Mark)
		case attrProtoInfo:
			return parseProtoInfo(v, &e.TCP)
		case attrCountOrig:
			return getBytes(v, &e.OrigBytes)
		case attrCountReply:
			return getBytes(v, &e.ReplyBytes)
		}
		return nil
	})
}

func parseTuple(b []byte, t *Tuple) error {
	return each(b, func(typ uint16, v []byte) error {
		switch typ {
		case attrTupleIP:
			return each(v, func(typ uint16, v []byte) error {
				switch typ {
				case attrIPv4Src, attrIPv6Src:
					return getAddress(v, &t.Src)
				case attrIPv4Dst, attrIPv6Dst:
					return getAddress(v, &t.Dst)
				}
				return nil
			})
		case attrTupleProto:
			return each(v, func(typ uint16, v []byte) error {
				switch typ {
				case attrProtoNum:
					return get8(v, &t.Proto)
				case attrPortSrc:
					return get16(v, &t.SrcPort)
				case attrPortDst:
					return get16(v, &t.DstPort)
				}
				return nil
			})
		}
		return nil
	})
}

func parseProtoInfo(b []byte, tcp *TCP) error {
	return each(b, func(typ uint16, v []byte) error {
		if typ != attrTCP {
			return nil
		}
		return each(v, func(typ uint16, v []byte) error {
			switch typ {
			case attrTCPState:
				return get8(v, &tcp.State)
			case attrTCPWScaleOrig:
				return get8(v, &tcp.WScaleOrig)
			case attrTCPWScaleRepl:
				return get8(v, &tcp.WScaleReply)
			case attrTCPFlagsOrig:
				return get8(v, &tcp.FlagsOrig)
			case attrTCPFlagsReply:
				return get8(v, &tcp.FlagsReply)
			}
			return nil
		})
	})
}
