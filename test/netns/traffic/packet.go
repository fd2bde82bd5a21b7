package traffic

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// IPv4 makes packets by hand, honest or not (RFC 791).
type IPv4 struct {
	Source, Destination netip.Addr
	Protocol            byte
	// TOS is DSCP and ECN (RFC 2474, RFC 3168).
	TOS byte
}

// ipv4HeaderLength is that of a header without options (RFC 791 section 3.1).
const ipv4HeaderLength = 20

// Packet puts the header before a payload.
func (h IPv4) Packet(payload []byte) []byte {
	p := make([]byte, ipv4HeaderLength, ipv4HeaderLength+len(payload))
	p[0], p[1] = 4<<4|ipv4HeaderLength/4, h.TOS
	binary.BigEndian.PutUint16(p[2:], uint16(ipv4HeaderLength+len(payload)))
	p[8] = 64
	p[9] = h.Protocol
	source, destination := h.Source.As4(), h.Destination.As4()
	copy(p[12:], source[:])
	copy(p[16:], destination[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, payload...)
}

// parseIPv4 is the reverse of Packet; ok is false for anything else.
func parseIPv4(p []byte) (h IPv4, payload []byte, ok bool) {
	if len(p) < ipv4HeaderLength || p[0]>>4 != 4 {
		return IPv4{}, nil, false
	}
	length := int(p[0]&0xf) * 4
	if length < ipv4HeaderLength || len(p) < length {
		return IPv4{}, nil, false
	}
	h = IPv4{
		Source: netip.AddrFrom4([4]byte(p[12:16])), Destination: netip.AddrFrom4([4]byte(p[16:20])),
		Protocol: p[9], TOS: p[1],
	}
	return h, p[length:], true
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// GRE makes GRE headers (RFC 2784, RFC 2890).
type GRE struct {
	Key      *uint32 // nil: none
	Checksum bool
	Sequence bool // number 0
}

// The flags of a GRE header and the protocol type of IPv4.
const (
	greChecksum = 0x8000
	greKey      = 0x2000
	greSequence = 0x1000
	etherIPv4   = 0x0800
)

// Packet puts the header before an IPv4 packet.
func (g GRE) Packet(inner []byte) []byte {
	var flags uint16
	var optional []byte
	if g.Checksum {
		flags |= greChecksum
		optional = append(optional, 0, 0, 0, 0)
	}
	if g.Key != nil {
		flags |= greKey
		optional = binary.BigEndian.AppendUint32(optional, *g.Key)
	}
	if g.Sequence {
		flags |= greSequence
		optional = binary.BigEndian.AppendUint32(optional, 0)
	}
	p := binary.BigEndian.AppendUint16(nil, flags)
	p = binary.BigEndian.AppendUint16(p, etherIPv4)
	p = append(append(p, optional...), inner...)
	if g.Checksum {
		binary.BigEndian.PutUint16(p[4:], checksum(p))
	}
	return p
}

// UDP makes a datagram without a checksum, which RFC 768 allows.
func UDP(sourcePort, destinationPort uint16, payload []byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, sourcePort)
	p = binary.BigEndian.AppendUint16(p, destinationPort)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(payload)))
	p = binary.BigEndian.AppendUint16(p, 0)
	return append(p, payload...)
}

// The ICMP types in use here (RFC 792).
const (
	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpEchoRequest = 8
)

// Echo makes an ICMP echo request.
func Echo(id, sequence uint16, payload []byte) []byte {
	p := []byte{icmpEchoRequest, 0, 0, 0}
	p = binary.BigEndian.AppendUint16(p, id)
	p = binary.BigEndian.AppendUint16(p, sequence)
	p = append(p, payload...)
	binary.BigEndian.PutUint16(p[2:], checksum(p))
	return p
}

// Inject sends a packet, header and all, from a machine: nothing keeps the
// source from being somebody else's.
func Inject(m *topo.Machine, packet []byte) error { return Flood(m, packet, 1) }

// Flood injects a packet so many times, as fast as it can.
func Flood(m *topo.Machine, packet []byte, times int) error {
	header, _, ok := parseIPv4(packet)
	if !ok {
		return fmt.Errorf("%s: inject: not an IPv4 packet", m.Name)
	}
	return m.InNetwork(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("%s: raw socket: %w", m.Name, err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: header.Destination.As4()}
		for range times {
			if err := unix.Sendto(fd, packet, 0, to); err != nil {
				return fmt.Errorf("%s: inject to %s: %w", m.Name, header.Destination, err)
			}
		}
		return nil
	})
}

// GREKey reads the key of a GRE header, if it has one.
func GREKey(header []byte) (key uint32, keyed bool) {
	if len(header) < 4 {
		return 0, false
	}
	flags := binary.BigEndian.Uint16(header)
	offset := 4
	if flags&greChecksum != 0 {
		offset += 4
	}
	if flags&greKey == 0 || len(header) < offset+4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(header[offset:]), true
}

// Decapsulate takes the IPv4 packet inside GRE apart.
func Decapsulate(header []byte) (inner IPv4, payload []byte, ok bool) {
	if len(header) < 4 {
		return IPv4{}, nil, false
	}
	length := 4
	for _, flag := range []uint16{greChecksum, greKey, greSequence} {
		if binary.BigEndian.Uint16(header)&flag != 0 {
			length += 4
		}
	}
	if len(header) < length {
		return IPv4{}, nil, false
	}
	return parseIPv4(header[length:])
}
