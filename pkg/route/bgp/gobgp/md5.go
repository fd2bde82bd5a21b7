package gobgp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// probeMD5 tells why listeners on an address cannot demand signatures. The
// library would go on without them. A listener for Multipath TCP, which is Go's
// default, knows none: programs that speak BGP set GODEBUG multipathtcp=0.
func probeMD5(ctx context.Context, local netip.Addr) error {
	if !local.IsValid() {
		local = netip.IPv4Unspecified()
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(local, 0).String())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", local, err)
	}
	defer func() { _ = l.Close() }()
	socket, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("listen on %s: %T has no socket", local, l)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	key := unix.TCPMD5Sig{Keylen: 1, Key: [80]byte{1}}
	key.Addr.Family = unix.AF_INET
	copy(key.Addr.Data[2:], []byte{127, 0, 0, 1})
	var failure error
	if err := raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptTCPMD5Sig(int(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key)
	}); err != nil {
		return err
	}
	if failure != nil {
		return fmt.Errorf("this kernel offers no TCP MD5 signatures (CONFIG_TCP_MD5SIG): %w", failure)
	}
	return nil
}
