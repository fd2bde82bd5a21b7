// Package probe sends a packet as a pod would, and watches on every device of a
// machine where it passes and what comes back.
package probe

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Flow is the probe's identity, which no translation changes: the destination, and
// a number that travels along.
type Flow struct {
	From netip.Addr     // the pod; zero where only the proxy's side is watched
	To   netip.AddrPort // port 0: ICMP echo
	// Token is the TCP sequence number of the SYN, or what the echo carries.
	Token uint32
}

// Kind is what a packet of the flow is.
type Kind string

// The kinds.
const (
	Request     Kind = "request"
	Answer      Kind = "answer"
	Refused     Kind = "refused"     // TCP RST
	Unreachable Kind = "unreachable" // ICMP, about the request
)

// Parsed is a packet of the flow.
type Parsed struct {
	Kind     Kind
	GRE      bool
	Outer    [2]netip.Addr // source and destination, if GRE
	From, To netip.AddrPort
	Code     int // of an ICMP unreachable
	Size     int // octets
}

// The headers' sizes and fields (RFC 791, 8200, 9293, 792, 2784, 2890).
const (
	ipv4Header, ipv6Header = 20, 40
	tcpHeader              = 20
	echoHeader             = 8
	greHeader              = 4
	flagSYN, flagRST       = 0x02, 0x04
	flagACK                = 0x10
)

// header is an IP header.
type header struct {
	src, dst netip.Addr
	protocol byte
	payload  []byte
	size     int
}

func parseIP(b []byte) (h header, ok bool) {
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		n := int(b[0]&15) * 4
		if n < ipv4Header || len(b) < n || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return header{}, false // a later fragment has no header of the next protocol
		}
		return header{
			src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])),
			protocol: b[9], payload: b[n:], size: int(binary.BigEndian.Uint16(b[2:])),
		}, true
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		return header{
			src: netip.AddrFrom16([16]byte(b[8:])), dst: netip.AddrFrom16([16]byte(b[24:])),
			protocol: b[6], payload: b[ipv6Header:], size: ipv6Header + int(binary.BigEndian.Uint16(b[4:])),
		}, true
	}
	return header{}, false
}

// parse tells whether a packet is of the flow.
func (f Flow) parse(b []byte) (Parsed, bool) {
	h, ok := parseIP(b)
	if !ok {
		return Parsed{}, false
	}
	if h.protocol != unix.IPPROTO_GRE {
		return f.inner(h)
	}
	inner, ok := decapsulate(h.payload)
	if !ok {
		return Parsed{}, false
	}
	in, ok := parseIP(inner)
	if !ok {
		return Parsed{}, false
	}
	p, ok := f.inner(in)
	p.GRE, p.Outer, p.Size = true, [2]netip.Addr{h.src, h.dst}, h.size
	return p, ok
}

// decapsulate returns what is behind a GRE header.
func decapsulate(b []byte) ([]byte, bool) {
	if len(b) < greHeader {
		return nil, false
	}
	n := greHeader
	for _, flag := range []byte{0x80, 0x20, 0x10} { // checksum, key, sequence number
		if b[0]&flag != 0 {
			n += 4
		}
	}
	if len(b) < n {
		return nil, false
	}
	return b[n:], true
}

func (f Flow) inner(h header) (Parsed, bool) {
	p := Parsed{From: netip.AddrPortFrom(h.src, 0), To: netip.AddrPortFrom(h.dst, 0), Size: h.size}
	switch h.protocol {
	case unix.IPPROTO_TCP:
		return f.tcp(h, p)
	case unix.IPPROTO_ICMP:
		return f.icmp(h, p, 8, 0, 3)
	case unix.IPPROTO_ICMPV6:
		return f.icmp(h, p, 128, 129, 1)
	}
	return p, false
}

func (f Flow) tcp(h header, p Parsed) (Parsed, bool) {
	if len(h.payload) < tcpHeader || f.To.Port() == 0 {
		return p, false
	}
	sport, dport := binary.BigEndian.Uint16(h.payload), binary.BigEndian.Uint16(h.payload[2:])
	seq, ack, flags := binary.BigEndian.Uint32(h.payload[4:]), binary.BigEndian.Uint32(h.payload[8:]), h.payload[13]
	p.From, p.To = netip.AddrPortFrom(h.src, sport), netip.AddrPortFrom(h.dst, dport)
	switch {
	case p.To == f.To && seq == f.Token && flags&(flagSYN|flagACK) == flagSYN:
		p.Kind = Request
	case p.From == f.To && ack == f.Token+1 && flags&flagACK != 0:
		p.Kind = Answer
		if flags&flagRST != 0 {
			p.Kind = Refused
		}
	default:
		return p, false
	}
	return p, true
}

func (f Flow) icmp(h header, p Parsed, request, reply, unreachable byte) (Parsed, bool) {
	if len(h.payload) < echoHeader {
		return p, false
	}
	body := h.payload[echoHeader:]
	switch h.payload[0] {
	case request, reply:
		if f.To.Port() != 0 || len(body) < 4 || binary.BigEndian.Uint32(body) != f.Token {
			return p, false
		}
		if h.payload[0] == request && h.dst == f.To.Addr() {
			p.Kind = Request
			return p, true
		}
		p.Kind = Answer
		return p, h.payload[0] == reply && h.src == f.To.Addr()
	case unreachable:
		return f.unreachable(h, p, body)
	}
	return p, false
}

// unreachable is an error about the request, whose beginning it carries: of a TCP
// segment at least the ports and the sequence number (RFC 792).
func (f Flow) unreachable(h header, p Parsed, body []byte) (Parsed, bool) {
	about, ok := parseIP(body)
	if !ok || about.dst != f.To.Addr() {
		return p, false
	}
	p.Kind, p.Code = Unreachable, int(h.payload[1])
	switch {
	case about.protocol == unix.IPPROTO_TCP && len(about.payload) >= 8:
		return p, binary.BigEndian.Uint16(about.payload[2:]) == f.To.Port() && binary.BigEndian.Uint32(about.payload[4:]) == f.Token
	case f.To.Port() == 0 && len(about.payload) >= echoHeader+4:
		return p, binary.BigEndian.Uint32(about.payload[echoHeader:]) == f.Token
	}
	return p, false
}

// request builds the packet.
func (f Flow) request() []byte {
	v6 := f.To.Addr().Is6()
	var body []byte
	protocol := byte(unix.IPPROTO_TCP)
	checksumAt := 16
	switch {
	case f.To.Port() != 0:
		body = make([]byte, tcpHeader)
		binary.BigEndian.PutUint16(body, f.sourcePort())
		binary.BigEndian.PutUint16(body[2:], f.To.Port())
		binary.BigEndian.PutUint32(body[4:], f.Token)
		body[12], body[13] = tcpHeader/4<<4, flagSYN
		binary.BigEndian.PutUint16(body[14:], 1024) // window
	default:
		body = make([]byte, echoHeader+4)
		protocol, body[0], checksumAt = unix.IPPROTO_ICMP, 8, 2
		if v6 {
			protocol, body[0] = unix.IPPROTO_ICMPV6, 128
		}
		binary.BigEndian.PutUint16(body[4:], f.sourcePort())
		binary.BigEndian.PutUint32(body[echoHeader:], f.Token)
	}
	sum := uint32(0)
	if protocol != unix.IPPROTO_ICMP {
		sum = add(add(0, f.From.AsSlice()), f.To.Addr().AsSlice()) + uint32(protocol) + uint32(len(body))
	}
	binary.BigEndian.PutUint16(body[checksumAt:], fold(add(sum, body)))
	if v6 {
		p := make([]byte, ipv6Header)
		p[0], p[6], p[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(body)))
		copy(p[8:], f.From.AsSlice())
		copy(p[24:], f.To.Addr().AsSlice())
		return slices.Concat(p, body)
	}
	p := make([]byte, ipv4Header)
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(ipv4Header+len(body)))
	copy(p[12:], f.From.AsSlice())
	copy(p[16:], f.To.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[10:], fold(add(0, p)))
	return slices.Concat(p, body)
}

// sourcePort is among those that the kernel takes for itself
// (ip_local_port_range), so that nobody mistakes the probe for a service.
func (f Flow) sourcePort() uint16 { return 32768 + uint16(f.Token%28232) }

func add(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
