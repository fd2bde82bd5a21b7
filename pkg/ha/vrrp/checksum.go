package vrrp

import (
	"encoding/binary"
	"net/netip"
)

// Form is what the checksum of an IPv4 message covers. IPv6 has one form only:
// the message and the pseudo-header of RFC 8200 section 8.1.
type Form uint8

const (
	// RFC9568 covers the message only (RFC 9568 section 5.2.8), as sent by
	// Cisco, Juniper and Arista.
	RFC9568 Form = iota
	// RFC5798 covers a pseudo-header too, as keepalived and FRR send by
	// default.
	RFC5798
)

// String returns the form's name in configuration and metrics.
func (f Form) String() string {
	if f == RFC5798 {
		return "rfc5798"
	}
	return "rfc9568"
}

// matchingForm finds which form's checksum b carries. A message that fits both,
// whose pseudo-header sums to zero, counts as RFC9568.
func matchingForm(b []byte, src, dst netip.Addr) (Form, bool) {
	have := binary.BigEndian.Uint16(b[checksumOffset:])
	if have == checksum(b, src, dst, RFC9568) {
		return RFC9568, true
	}
	if src.Is4() && have == checksum(b, src, dst, RFC5798) {
		return RFC5798, true
	}
	return RFC9568, false
}

// checksum is the Internet checksum (RFC 1071) of a message as if its checksum
// field were zero.
func checksum(m []byte, src, dst netip.Addr, form Form) uint16 {
	sum := sum16(m[:checksumOffset]) + sum16(m[checksumOffset+2:])
	if src.Is6() || form == RFC5798 {
		sum += sum16(src.AsSlice()) + sum16(dst.AsSlice()) + Protocol + uint32(len(m))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sum16 adds b's 16-bit words. The longest message, of 64 KiB, does not overflow.
func sum16(b []byte) uint32 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}
