package echo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// arphrdIPGRE is a GRE device's type (ARPHRD_IPGRE, include/uapi/linux/if_arp.h).
const arphrdIPGRE = 778

// origin is where a packet came from, and where its answer goes.
type origin struct {
	device int        // index of the tunnel's
	peer   netip.Addr // on the underlay
}

// socket sends and receives packets by the tunnels of a namespace.
type socket struct {
	file *os.File
	raw  syscall.RawConn
}

// open opens a socket in the calling thread's namespace: on one device, or with 0
// on all.
func open(device int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder, Ifindex: device}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket: %w", err), unix.Close(fd))
	}
	s := &socket{file: os.NewFile(uintptr(fd), "echo")}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// networkOrder is the protocol as packet(7) wants it.
var networkOrder = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, etherType))

// Close may be called at any time; a receive in progress fails with os.ErrClosed.
func (s *socket) Close() error { return s.file.Close() }

// send passes a packet to a tunnel, for a peer. On a multipoint device the
// hardware address is the peer's underlay address (ipgre_header, net/ipv4/ip_gre.c).
func (s *socket) send(b []byte, to origin) error {
	a := &unix.SockaddrLinklayer{Protocol: networkOrder, Ifindex: to.device, Halen: 4}
	four := to.peer.As4()
	copy(a.Addr[:], four[:])
	var sent error
	err := s.raw.Control(func(fd uintptr) { sent = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, a) })
	return errors.Join(err, sent)
}

// receive returns the next packet that came out of a tunnel.
func (s *socket) receive(b []byte) (n int, from origin, err error) {
	for {
		var sender unix.Sockaddr
		var failed error
		err = s.raw.Read(func(fd uintptr) bool {
			n, sender, failed = unix.Recvfrom(int(fd), b, 0)
			return failed != unix.EAGAIN
		})
		if err != nil {
			return 0, origin{}, err
		}
		if errors.Is(failed, unix.ENETDOWN) { // of one device
			continue
		}
		if failed != nil {
			return 0, origin{}, failed
		}
		if a, ok := sender.(*unix.SockaddrLinklayer); ok && a.Hatype == arphrdIPGRE && a.Halen == 4 {
			return n, origin{a.Ifindex, netip.AddrFrom4([4]byte(a.Addr[:]))}, nil
		}
	}
}

// device is the name of a device, or "" if it is gone.
func (s *socket) device(index int) string {
	ifr, err := unix.NewIfreq("lo") // any valid name
	if err != nil {
		return ""
	}
	ifr.SetUint32(uint32(index)) //nolint:gosec // an index is positive
	if s.raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, ifr) }) != nil || err != nil {
		return ""
	}
	return ifr.Name()
}
