// Package echo measures the way through a tunnel: what is lost in each direction,
// how long it takes, and how large a packet may be each way.
//
// Its packets travel in GRE beside IP, as a protocol of their own: they take the
// tunnel's device, key, underlay way and peer list, and meet no route, filter,
// translation or connection tracking inside, so that a measurement neither
// depends on these nor changes what they count. The node agent at the other end
// answers; nothing but its packets ever reaches it.
package echo

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// etherType is IEEE Std 802's Local Experimental EtherType 1, which package nft
// admits from peers.
const etherType = unix.ETH_P_802_EX1

// kind is what a packet is.
type kind byte

const (
	// request is counted and answered.
	request kind = 1
	// question is answered, and not counted: how many have come?
	question kind = 2
	answer   kind = 3
)

// packet is one of ours, which is padded to any size.
type packet struct {
	kind kind
	// size is in octets: of a request or question the answer that is wanted,
	// of an answer what it answers, as it came.
	size    uint16
	session uint64 // a random number for each measurement
	seq     uint32 // of the request, which its answer repeats
	count   uint32 // of an answer: how many requests of the session have come
}

// The form: four octets that nobody else's experiment begins with, the form's
// version, the kind, and the fields in network byte order.
const (
	magic      = "vpxe"
	version    = 1
	headerSize = 24
)

// encode returns the packet in so many octets, or as many as it takes.
func (p packet) encode(octets int) []byte {
	b := append(make([]byte, 0, max(octets, headerSize)), magic...)
	b = append(b, version, byte(p.kind))
	b = binary.BigEndian.AppendUint16(b, p.size)
	b = binary.BigEndian.AppendUint64(b, p.session)
	b = binary.BigEndian.AppendUint32(b, p.seq)
	b = binary.BigEndian.AppendUint32(b, p.count)
	return b[:cap(b)]
}

// decode returns false for what is not ours.
func decode(b []byte) (packet, bool) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic || b[4] != version {
		return packet{}, false
	}
	p := packet{
		kind: kind(b[5]), size: binary.BigEndian.Uint16(b[6:]), session: binary.BigEndian.Uint64(b[8:]),
		seq: binary.BigEndian.Uint32(b[16:]), count: binary.BigEndian.Uint32(b[20:]),
	}
	return p, p.kind >= request && p.kind <= answer
}
