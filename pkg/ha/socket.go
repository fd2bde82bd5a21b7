package ha

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

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

// Socket is a Transport over a raw socket, which needs CAP_NET_RAW. It waits in the
// kernel, not in the Go runtime's poller: neither its goroutine nor the time that
// it waits for is behind other goroutines when the kernel wakes its thread.
type Socket struct {
	fd    int
	local netip.Addr
	index int
	buf   [maxPacket]byte
	oob   [controlSpace]byte
	out   []byte // control message that selects source and interface
	// empty is when the socket was last seen to hold nothing (CLOCK_BOOTTIME).
	empty time.Duration

	mu     sync.Mutex
	wake   int // eventfd(2)
	closed bool
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
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(fd))
	}
	return &Socket{fd: fd, wake: wake, local: local, index: index, out: sourceMessage(local, index), empty: boottime()}, nil
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
	// When a packet came counts, not when it is read.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return 0, fmt.Errorf("SO_TIMESTAMPNS: %w", err)
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
	return unix.Sendmsg(s.fd, payload, s.out, to, unix.MSG_DONTWAIT)
}

// Wait implements Transport.
func (s *Socket) Wait(limit time.Duration) error {
	var timeout *unix.Timespec
	if limit >= 0 {
		ts := unix.NsecToTimespec(limit.Nanoseconds())
		timeout = &ts
	}
	on := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(on, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("ha: wait for adverts: %w", err)
	}
	if on[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(s.wake, count[:]) // there is nothing else to be done with it
	}
	return nil
}

// Wake implements Transport.
func (s *Socket) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_, _ = unix.Write(s.wake, binary.NativeEndian.AppendUint64(nil, 1)) // EAGAIN: it is awake
	}
}

// Receive implements Transport. Packets that it cannot understand are skipped.
func (s *Socket) Receive() (Datagram, bool, error) {
	for {
		// Not unix.Recvmsg, which asks for the protocol of each packet's sender.
		n, oobn, _, from, err := syscall.Recvmsg(s.fd, s.buf[:], s.oob[:], unix.MSG_DONTWAIT)
		now := boottime()
		switch {
		case errors.Is(err, unix.EAGAIN):
			s.empty = now
			return Datagram{}, false, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ECONNREFUSED):
			continue // said once each: the link went down, or an ICMP error came
		case err != nil:
			return Datagram{}, false, fmt.Errorf("ha: receive: %w", err)
		}
		messages, err := unix.ParseSocketControlMessage(s.oob[:oobn])
		if err != nil {
			continue
		}
		var d Datagram
		var ok bool
		if s.local.Is4() {
			d, ok = datagram4(s.buf[:n])
		} else {
			d, ok = datagram6(s.buf[:n], messages, from)
		}
		if ok {
			// No longer than since there was nothing: the kernel's stamp is of
			// a clock that may have been set meanwhile.
			d.Waited = min(waited(messages, time.Now()), now-s.empty)
			return d, true, nil
		}
	}
}

// waited returns how long ago, at a moment, the kernel stamped a packet; 0 if it
// has not, or later.
func waited(messages []unix.SocketControlMessage, now time.Time) time.Duration {
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			// struct timespec of a 64-bit kernel.
			sec, nsec := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			return max(now.Sub(time.Unix(int64(sec), int64(nsec))), 0)
		}
	}
	return 0
}

// Close implements Transport.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := errors.Join(unix.Close(s.fd), unix.Close(s.wake)); err != nil {
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
func datagram6(payload []byte, messages []unix.SocketControlMessage, from syscall.Sockaddr) (Datagram, bool) {
	src, ok := from.(*syscall.SockaddrInet6)
	if !ok {
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
