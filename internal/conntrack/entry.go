package conntrack

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Tuple is one direction of a flow. It is comparable and holds no pointer, so
// that tables of hundreds of thousands cost the garbage collector nothing.
type Tuple struct {
	// Src and Dst are addresses; IPv4 ones are IPv4-mapped (RFC 4291, 2.5.5.2).
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	Proto            uint8 // IPPROTO_*
}

// MakeTuple returns the tuple between two addresses of one family.
func MakeTuple(proto uint8, src, dst netip.AddrPort) Tuple {
	return Tuple{Src: src.Addr().As16(), Dst: dst.Addr().As16(), SrcPort: src.Port(), DstPort: dst.Port(), Proto: proto}
}

// Source returns where packets of the tuple come from.
func (t Tuple) Source() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(t.Src).Unmap(), t.SrcPort)
}

// Destination returns where packets of the tuple go to.
func (t Tuple) Destination() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(t.Dst).Unmap(), t.DstPort)
}

// IPv4 tells the family.
func (t Tuple) IPv4() bool { return isMapped(&t.Src) }

// mappedPrefix is what IPv4-mapped addresses begin with.
var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

func isMapped(a *[16]byte) bool { return [12]byte(a[:12]) == mappedPrefix }

// Inverse returns the tuple of answers, if nothing translates them.
func (t Tuple) Inverse() Tuple {
	return Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort, Proto: t.Proto}
}

// String is for logs: tcp 10.0.0.1:40000>172.16.101.4:5432.
func (t Tuple) String() string {
	proto := fmt.Sprintf("protocol %d", t.Proto)
	switch t.Proto {
	case unix.IPPROTO_TCP:
		proto = "tcp"
	case unix.IPPROTO_UDP:
		proto = "udp"
	}
	return fmt.Sprintf("%s %s>%s", proto, t.Source(), t.Destination())
}

// Status is the IPS_* bits of an entry (include/uapi/linux/netfilter/nf_conntrack_common.h).
type Status uint32

// The bits that matter here.
const (
	SeenReply Status = 1 << 1
	Assured   Status = 1 << 2
	Confirmed Status = 1 << 3
)

// The states of a TCP flow (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	TCPNone uint8 = iota
	TCPSynSent
	TCPSynRecv
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
)

// TCP is what an entry knows of a TCP flow beyond its tuples.
type TCP struct {
	State uint8
	// WindowScales and flags (IP_CT_TCP_FLAG_*) of the original and of the
	// reply direction.
	WScaleOrig, WScaleReply uint8
	FlagsOrig, FlagsReply   uint8
}

// Entry is one tracked flow.
type Entry struct {
	Orig Tuple // as the opener sends
	// Reply is as the answers arrive, before translation is undone: its
	// destination is the translated source.
	Reply   Tuple
	Status  Status
	Timeout uint32 // seconds that are left
	Mark    uint32
	TCP     TCP // zero unless Orig.Proto is TCP
	// OrigBytes and ReplyBytes have passed, headers included; 0 without
	// accounting (net.netfilter.nf_conntrack_acct). Read only.
	OrigBytes, ReplyBytes uint64
}

// Translated tells whether a packet of the flow leaves with a source or a destination
// other than it came with.
func (e *Entry) Translated() bool { return e.Reply != e.Orig.Inverse() }

// Closed tells whether nothing but stray segments is to come.
func (e *Entry) Closed() bool {
	return e.Orig.Proto == unix.IPPROTO_TCP && (e.TCP.State == TCPTimeWait || e.TCP.State == TCPClose)
}

// HasPorts tells whether the protocol is one whose tuples are addresses and ports,
// and nothing else: only such entries can be created.
func (e *Entry) HasPorts() bool {
	switch e.Orig.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		return true
	}
	return false
}
