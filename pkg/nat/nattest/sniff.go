package nattest

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// sniff counts the IPv4 packets that arrive at a node, by source. The returned
// function ends it and returns the counts.
func sniff(t *testing.T, h Host, at node) func() map[netip.Addr]int {
	t.Helper()
	const ethIP = unix.ETH_P_IP
	var fd int
	err := h.Run(t.Context(), at.name, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(binary.BigEndian.Uint16(
			binary.NativeEndian.AppendUint16(nil, ethIP))))
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	})
	if err != nil {
		t.Fatalf("listen to packets in %s: %v", at.name, err)
	}
	f := os.NewFile(uintptr(fd), "packets") // in the runtime's poller: Close wakes Read
	counts := make(chan map[netip.Addr]int, 1)
	go func() {
		seen := map[netip.Addr]int{}
		defer func() { counts <- seen }()
		buf := make([]byte, 64)
		for {
			n, err := f.Read(buf)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			// struct iphdr: the source is at 12.
			if err == nil && n >= 20 {
				seen[netip.AddrFrom4([4]byte(buf[12:16]))]++
			}
		}
	}()
	return func() map[netip.Addr]int {
		_ = f.Close()
		return <-counts
	}
}
