package vip

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// hardware is an Ethernet address.
type hardware [6]byte

var broadcast = hardware{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func parseHardware(s string) (hardware, error) {
	var h hardware
	n, err := fmt.Sscanf(s, "%02x:%02x:%02x:%02x:%02x:%02x", &h[0], &h[1], &h[2], &h[3], &h[4], &h[5])
	if err != nil || n != len(h) || h.String() != s {
		return h, fmt.Errorf("%q is not an Ethernet address", s)
	}
	return h, nil
}

func (h hardware) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", h[0], h[1], h[2], h[3], h[4], h[5])
}

const (
	etherARP, etherIPv6 = 0x0806, 0x86dd
	arpRequest          = 1
	arpReply            = 2
)

func ethernet(dst, src hardware, kind uint16) []byte {
	b := append(dst[:len(dst):len(dst)], src[:]...)
	return binary.BigEndian.AppendUint16(b, kind)
}

// arp is an ARP packet for IPv4 over Ethernet (RFC 826).
func arp(op uint16, src hardware, sender netip.Addr, target hardware, asked netip.Addr) []byte {
	b := ethernet(broadcast, src, etherARP)
	b = append(b, 0, 1, 0x08, 0x00, 6, 4) // Ethernet, IPv4, and the lengths of their addresses
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, src[:]...), sender.AsSlice()...)
	return append(append(b, target[:]...), asked.AsSlice()...)
}

// announcements are the frames that say that addr is at mac: for IPv4 a
// gratuitous ARP as a request (RFC 5227 section 3) and as a reply, because
// neighbors heed one or the other; a reply counts as gratuitous for Linux only
// if both hardware addresses are the sender's (net/ipv4/arp.c, arp_is_garp). For
// IPv6 an unsolicited neighbor advertisement.
func announcements(mac hardware, addr netip.Addr) [][]byte {
	if addr.Is4() {
		return [][]byte{arp(arpRequest, mac, addr, hardware{}, addr), arp(arpReply, mac, addr, mac, addr)}
	}
	return [][]byte{unsolicitedAdvertisement(mac, addr)}
}

// question asks who has addr, without telling an address of one's own (RFC 5227
// section 2.1.1, RFC 4862 section 5.4.2).
func question(mac hardware, addr netip.Addr) []byte {
	if addr.Is4() {
		return arp(arpRequest, mac, netip.IPv4Unspecified(), hardware{}, addr)
	}
	return solicitation(mac, addr)
}

const (
	icmpSolicitation, icmpAdvertisement = 135, 136
	optionTargetLinkLayer               = 2
	protocolICMPv6, hopLimit            = 58, 255
)

// unsolicitedAdvertisement is RFC 4861 section 7.2.6 with the flags of RFC 9568
// section 6.4.2: Router and Override set, Solicited clear.
func unsolicitedAdvertisement(mac hardware, addr netip.Addr) []byte {
	body := append([]byte{icmpAdvertisement, 0, 0, 0, 0xa0, 0, 0, 0}, addr.AsSlice()...)
	body = append(append(body, optionTargetLinkLayer, 1), mac[:]...)
	return icmpv6(mac, addr, netip.MustParseAddr("ff02::1"), body)
}

// solicitation asks for addr as duplicate address detection does, to its
// solicited-node multicast address (RFC 4291 section 2.7.1).
func solicitation(mac hardware, addr netip.Addr) []byte {
	a := addr.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], a[13:])
	body := append([]byte{icmpSolicitation, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
	return icmpv6(mac, netip.IPv6Unspecified(), netip.AddrFrom16(group), body)
}

// icmpv6 wraps a message for a multicast group and fills in its checksum (RFC
// 4443 section 2.3, RFC 2464 section 7).
func icmpv6(mac hardware, src, dst netip.Addr, body []byte) []byte {
	d := dst.As16()
	pseudo := append(src.AsSlice(), d[:]...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, protocolICMPv6)
	binary.BigEndian.PutUint16(body[2:], checksum(append(pseudo, body...)))
	b := ethernet(hardware{0x33, 0x33, d[12], d[13], d[14], d[15]}, mac, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, protocolICMPv6, hopLimit)
	return append(append(append(b, src.AsSlice()...), d[:]...), body...)
}

// checksum is RFC 1071; b has an even length.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// claimant returns who says in a frame that he has addr: any ARP packet whose
// sender's address it is, or a neighbor advertisement.
func claimant(frame []byte, addr netip.Addr) (hardware, bool) {
	const header, arpLength, ipv6Header = 14, 28, 40
	if len(frame) < header {
		return hardware{}, false
	}
	kind, b := binary.BigEndian.Uint16(frame[12:]), frame[header:]
	switch {
	case kind == etherARP && addr.Is4() && len(b) >= arpLength:
		if sender := netip.AddrFrom4([4]byte(b[14:18])); sender == addr {
			return hardware(b[8:14]), true
		}
	case kind == etherIPv6 && addr.Is6() && len(b) >= ipv6Header+24:
		if b[6] == protocolICMPv6 && b[ipv6Header] == icmpAdvertisement && netip.AddrFrom16([16]byte(b[ipv6Header+8:ipv6Header+24])) == addr {
			return hardware(frame[6:12]), true
		}
	}
	return hardware{}, false
}
