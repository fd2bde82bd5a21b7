package vrrp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Numbers of RFC 9568.
const (
	Protocol = 112 // 5.1.1.4: IP protocol, IPv6 next header
	HopLimit = 255 // 5.1.1.3, 5.1.2.3: TTL and hop limit

	PriorityStop  = 0   // 5.2.4: the active has stopped
	PriorityOwner = 255 // 5.2.4: the router owns the addresses

	// Tick is the unit of Max Advertise Interval (5.2.7), a 12-bit field.
	Tick        = 10 * time.Millisecond
	MaxInterval = 4095 * Tick

	headerLen        = 8
	versionAndType   = 3<<4 | 1
	maxAddresses     = 255
	checksumOffset   = 6
	intervalMask     = 0x0fff
	ipv4Len, ipv6Len = 4, 16
)

// GroupIPv4 and GroupIPv6 are where multicast advertisements go (5.1.1.2, 5.1.2.2).
var (
	GroupIPv4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})
	GroupIPv6 = netip.MustParseAddr("ff02::12")
)

// Advertisement is the content of an ADVERTISEMENT.
type Advertisement struct {
	VRID     uint8 // 1..255
	Priority uint8 // 0: stopping, 255: owner
	// Interval is Max Advertise Interval: 10 ms to 40.95 s in steps of 10 ms.
	Interval time.Duration
	// Addresses are the virtual addresses, one to 255, all of the family of
	// the packet that carries them.
	Addresses []netip.Addr
}

// Packet is a decoded message and how it was protected.
type Packet struct {
	Advertisement
	// Form is the checksum form that matched; for IPv6 it is RFC9568.
	Form Form
	// Authenticated says that a trailer was verified.
	Authenticated bool
	// Sequence is the trailer's, when Authenticated.
	Sequence uint64
}

// Append appends the encoded message for a packet from src to dst and returns
// the longer slice. The sealer may be nil: then there is no trailer. It fails
// on a value that the format cannot carry; b is then returned as it was.
func (a Advertisement) Append(b []byte, src, dst netip.Addr, form Form, s *Sealer) ([]byte, error) {
	if err := a.check(src, dst); err != nil {
		return b, err
	}
	start := len(b)
	b = append(b, versionAndType, a.VRID, a.Priority, byte(len(a.Addresses)))
	b = binary.BigEndian.AppendUint16(b, uint16(a.Interval/Tick)) // 5.2.6: reserved bits are zero
	b = append(b, 0, 0)
	for _, addr := range a.Addresses {
		b = append(b, addr.AsSlice()...)
	}
	if s != nil {
		b = s.seal(b, start, src, dst)
	}
	m := b[start:]
	binary.BigEndian.PutUint16(m[checksumOffset:], checksum(m, src, dst, form))
	return b, nil
}

func (a Advertisement) check(src, dst netip.Addr) error {
	switch {
	case a.VRID == 0:
		return errors.New("vrrp: VRID 0: use 1 to 255")
	case a.Interval < Tick || a.Interval > MaxInterval || a.Interval%Tick != 0:
		return fmt.Errorf("vrrp: interval %v: use 10ms to 40.95s in steps of 10ms", a.Interval)
	case len(a.Addresses) == 0 || len(a.Addresses) > maxAddresses:
		return fmt.Errorf("vrrp: %d addresses: use 1 to %d", len(a.Addresses), maxAddresses)
	case !src.IsValid() || src.Is4() != dst.Is4() || !dst.IsValid():
		return fmt.Errorf("vrrp: source %v and destination %v: use two addresses of one family", src, dst)
	}
	for _, addr := range a.Addresses {
		if !addr.IsValid() || addr.Is4() != src.Is4() || addr.Is4In6() {
			return fmt.Errorf("vrrp: address %v in a packet from %v: use one instance per family", addr, src)
		}
	}
	return nil
}

// Parse decodes the payload of an IP packet from src to dst. Every error is a
// Reason. With a nil verifier a trailer is ignored.
//
// What follows the addresses is covered by the checksum and otherwise ignored,
// unless it is a trailer to verify.
func Parse(b []byte, src, dst netip.Addr, v *Verifier) (Packet, error) {
	if !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return Packet{}, Family
	}
	if len(b) < 1 {
		return Packet{}, Truncated
	}
	if b[0]>>4 != versionAndType>>4 {
		return Packet{}, Version
	}
	if b[0]&0xf != versionAndType&0xf {
		return Packet{}, Type
	}
	if len(b) < headerLen {
		return Packet{}, Truncated
	}
	count, size := int(b[3]), ipv6Len
	if src.Is4() {
		size = ipv4Len
	}
	end := headerLen + count*size
	if len(b) < end {
		return Packet{}, Truncated
	}
	form, ok := matchingForm(b, src, dst)
	if !ok {
		return Packet{}, Checksum
	}
	if count == 0 {
		return Packet{}, CountZero
	}
	// 5.2.6: reserved bits are ignored.
	ticks := binary.BigEndian.Uint16(b[4:]) & intervalMask
	if ticks == 0 {
		return Packet{}, IntervalZero
	}
	p := Packet{Form: form, Advertisement: Advertisement{VRID: b[1], Priority: b[2], Interval: time.Duration(ticks) * Tick}}
	if v != nil {
		seq, authenticated, err := v.verify(b, end, src, dst)
		if err != nil {
			return Packet{}, err
		}
		p.Sequence, p.Authenticated = seq, authenticated
	}
	p.Addresses = make([]netip.Addr, 0, count)
	for at := headerLen; at < end; at += size {
		addr, _ := netip.AddrFromSlice(b[at : at+size])
		p.Addresses = append(p.Addresses, addr)
	}
	return p, nil
}
