package ha

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

const (
	// receiveBuffer holds seconds of adverts: each takes about 1 KiB of it.
	receiveBuffer = 1 << 20
	// maxPacket is more than the longest advert, of 255 IPv6 addresses.
	maxPacket = 8192
	// controlSpace is room for the control messages that are asked for.
	controlSpace = 128
)

// Socket is a Transport over a raw socket, which needs CAP_NET_RAW.
type Socket struct {
	file  *os.File
	conn  syscall.RawConn
	local netip.Addr
	index int
	buf   [maxPacket]byte
	oob   [controlSpace]byte
	out   []byte // control message that selects source and interface
}

var _ Transport = (*Socket)(nil)

// OpenSocket opens a socket for adverts from local over an interface, in the
// network namespace of the calling thread. With multicast it joins the group.
// It sends with TTL or hop limit 255. The interface must exist; one that is
// made anew later needs a new Socket.
func OpenSocket(iface string, local netip.Addr, multicast bool) (*Socket, error) {
	s, err := openSocket(iface, local, multicast)
	if err != nil {
		return nil, fmt.Errorf("ha: socket for %v on %s: %w", local, iface, err)
	}
	return s, nil
}

func openSocket(iface string, local netip.Addr, multicast bool) (*Socket, error) {
	family := unix.AF_INET6
	if local.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, vrrp.Protocol)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: give the process CAP_NET_RAW", err)
	} else if err != nil {
		return nil, err
	}
	index, err := prepare(fd, iface, local, multicast)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// Non-blocking, so that os.File waits in the runtime's poller, and Close
	// wakes a reader.
	file := os.NewFile(uintptr(fd), "vrrp "+iface)
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Socket{file: file, conn: conn, local: local, index: index, out: sourceMessage(local, index)}, nil
}

// prepare sets the socket's options and returns the interface's index.
func prepare(fd int, iface string, local netip.Addr, multicast bool) (int, error) {
	request, err := unix.NewIfreq(iface)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("no such interface: %w", err)
	}
	index := int(request.Uint32())
	if err := unix.BindToDevice(fd, iface); err != nil {
		return 0, fmt.Errorf("SO_BINDTODEVICE: %w", err)
	}
	// Best effort: adverts must not be lost while the reader is not scheduled.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return 0, fmt.Errorf("SO_RCVBUF: %w", err)
		}
	}
	// Internetwork control, as routing protocols use (RFC 4594 section 3.2).
	const classSelector6 = 0xc0
	options := []option{
		{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, vrrp.HopLimit},
		{"IPV6_MULTICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, vrrp.HopLimit},
		{"IPV6_MULTICAST_LOOP", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0},
		{"IPV6_MULTICAST_IF", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index},
		{"IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
		{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
		{"IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, classSelector6},
	}
	if local.Is4() {
		// TTL and addresses are in the header, which a raw IPv4 socket delivers.
		options = []option{
			{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, vrrp.HopLimit},
			{"IP_MULTICAST_TTL", unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, vrrp.HopLimit},
			{"IP_MULTICAST_LOOP", unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0},
			{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, classSelector6},
		}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return 0, fmt.Errorf("%s: %w", o.text, err)
		}
	}
	if multicast {
		return index, join(fd, local, index)
	}
	return index, nil
}

type option struct {
	text               string
	level, name, value int
}

func join(fd int, local netip.Addr, index int) error {
	var err error
	if local.Is4() {
		m := &unix.IPMreqn{Multiaddr: vrrp.GroupIPv4.As4(), Address: local.As4(), Ifindex: int32(index)}
		err = errors.Join(unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, m),
			unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, m))
	} else {
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: vrrp.GroupIPv6.As16(), Interface: uint32(index)})
	}
	if err != nil {
		return fmt.Errorf("cannot join the VRRP group: %w", err)
	}
	return nil
}

// sourceMessage is the control message that has a packet sent from local.
func sourceMessage(local netip.Addr, index int) []byte {
	if local.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(index), Spec_dst: local.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(index), Addr: local.As16()})
}

// Send implements Transport.
func (s *Socket) Send(dst netip.Addr, payload []byte) error {
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16(), ZoneId: uint32(s.index)}
	if dst.Is4() {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	var sent error
	err := s.conn.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(fd), payload, s.out, to, unix.MSG_DONTWAIT)
	})
	return errors.Join(err, sent)
}

// Receive implements Transport. Packets that it cannot understand are skipped.
func (s *Socket) Receive() (Datagram, error) {
	for {
		var n, oobn int
		var from unix.Sockaddr
		var failed error
		err := s.conn.Read(func(fd uintptr) bool {
			n, oobn, _, from, failed = unix.Recvmsg(int(fd), s.buf[:], s.oob[:], unix.MSG_DONTWAIT)
			return !errors.Is(failed, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return Datagram{}, fmt.Errorf("ha: receive: %w", err)
		case errors.Is(failed, unix.EINTR), errors.Is(failed, unix.ENETDOWN), errors.Is(failed, unix.ECONNREFUSED):
			continue // said once each: the link went down, or an ICMP error came
		case failed != nil:
			return Datagram{}, fmt.Errorf("ha: receive: %w", failed)
		}
		var d Datagram
		var ok bool
		if s.local.Is4() {
			d, ok = datagram4(s.buf[:n])
		} else {
			d, ok = datagram6(s.buf[:n], s.oob[:oobn], from)
		}
		if ok {
			return d, nil
		}
	}
}

// Close implements Transport. It may be called while others send and receive.
func (s *Socket) Close() error {
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("ha: %w", err)
	}
	return nil
}

// datagram4 takes a packet with its IPv4 header (RFC 791 section 3.1) apart.
func datagram4(b []byte) (Datagram, bool) {
	const minHeader = 20
	if len(b) < minHeader || b[0]>>4 != 4 {
		return Datagram{}, false
	}
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if header < minHeader || total < header || total > len(b) {
		return Datagram{}, false
	}
	return Datagram{
		Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])),
		TTL: int(b[8]), Payload: b[header:total],
	}, true
}

// datagram6 takes destination and hop limit from the control messages.
func datagram6(payload, oob []byte, from unix.Sockaddr) (Datagram, bool) {
	src, ok := from.(*unix.SockaddrInet6)
	if !ok {
		return Datagram{}, false
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return Datagram{}, false
	}
	d := Datagram{Src: netip.AddrFrom16(src.Addr), TTL: -1, Payload: payload}
	for _, m := range messages {
		if m.Header.Level != unix.IPPROTO_IPV6 {
			continue
		}
		switch m.Header.Type {
		case unix.IPV6_HOPLIMIT:
			if len(m.Data) >= 4 {
				d.TTL = int(binary.NativeEndian.Uint32(m.Data))
			}
		case unix.IPV6_PKTINFO:
			if len(m.Data) >= 16 {
				d.Dst = netip.AddrFrom16([16]byte(m.Data))
			}
		}
	}
	return d, d.TTL >= 0 && d.Dst.IsValid()
}
