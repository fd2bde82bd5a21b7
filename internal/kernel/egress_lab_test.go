package kernel_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// cable is a link whose egress is watched at its far end.
type cable struct {
	kernel.Handle
	host  kernel.Host
	index int
	near  int // packet socket to send from
	far   int // packet socket at the other end
}

func newCable(t *testing.T) *cable {
	t.Helper()
	lab.Require(t, lab.GRE, lab.Clsact)
	host := newMachine(t)
	if err := host.CreateNamespace(t.Context(), "far"); err != nil {
		t.Fatal(err)
	}
	run(t, host, "", "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "port")
	port, err := in(t, host, "").LinkByName(t.Context(), "port")
	if err != nil {
		t.Fatal(err)
	}
	if err := in(t, host, "").MoveLink(t.Context(), port.Index, "far"); err != nil {
		t.Fatal(err)
	}
	c := &cable{host: host, near: packetSocket(t, host, "", "eth1"), far: packetSocket(t, host, "far", "port")}
	c.Handle = in(t, host, "")
	link, err := c.LinkByName(t.Context(), "eth1")
	if err != nil {
		t.Fatal(err)
	}
	c.index = link.Index
	// A device that has just found its carrier drops for a moment.
	poll(t, "the cable carries frames", func() bool {
		c.send(t, ethernet(0x88b5, make([]byte, 46)))
		ready := []unix.PollFd{{Fd: int32(c.far), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return n == 1 && err == nil
	})
	c.arrived(t)
	return c
}

// packetSocket brings a link up and opens a socket that is bound to it.
func packetSocket(t *testing.T, host kernel.Host, netns, name string) int {
	t.Helper()
	run(t, host, netns, "sysctl", "-qw", "net.ipv6.conf."+name+".disable_ipv6=1") // silence
	run(t, host, netns, "ip", "link", "set", name, "up")
	link, err := in(t, host, netns).LinkByName(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	err = host.Run(t.Context(), netns, func() (err error) {
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// arrived takes the frames that have come to the far end: all that were sent before,
// since a last one of a protocol that nobody filters comes behind them.
func (c *cable) arrived(t *testing.T) [][]byte {
	t.Helper()
	last := ethernet(0x88b6, make([]byte, 46))
	c.send(t, last)
	var frames [][]byte
	for {
		ready := []unix.PollFd{{Fd: int32(c.far), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 30_000); n == 0 || err != nil {
			t.Fatalf("the last frame did not arrive: %v", err)
		}
		buffer := make([]byte, 2048)
		n, err := unix.Read(c.far, buffer)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(buffer[:n], last) {
			return frames
		}
		frames = append(frames, buffer[:n])
	}
}

func (c *cable) send(t *testing.T, frame []byte) {
	t.Helper()
	// ENOBUFS is how a packet socket is told of a drop.
	if _, err := unix.Write(c.near, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Error(err)
	}
}

func ethernet(typ uint16, payload []byte) []byte {
	frame := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, byte(typ >> 8), byte(typ)}
	return append(frame, payload...)
}

// packet is an Ethernet frame with an IP header and a first payload byte, which of
// ICMPv6 is the type.
func packet(src, dst string, protocol, first byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	payload := make([]byte, 24)
	payload[0] = first
	if s.Is4() {
		h := make([]byte, 12, 64)
		h[0], h[3], h[8], h[9] = 0x45, 44, 64, protocol
		h = append(append(h, s.AsSlice()...), d.AsSlice()...)
		return ethernet(unix.ETH_P_IP, append(h, payload...))
	}
	h := make([]byte, 8, 64)
	h[0], h[5], h[6], h[7] = 0x60, 24, protocol, 255
	h = append(append(h, s.AsSlice()...), d.AsSlice()...)
	return ethernet(unix.ETH_P_IPV6, append(h, payload...))
}

// reset is a TCP segment with RST and ACK.
func reset(src, dst string, ttl byte) []byte {
	frame := packet(src, dst, unix.IPPROTO_TCP, 0)
	frame[14+8], frame[14+20+13] = ttl, 0x14
	return frame
}

func TestEgressGuardDropsOtherSources(t *testing.T) {
	c := newCable(t)
	const us4, us6, peer4, peer6 = "172.16.101.100", "fd00::100", "172.16.101.5", "fd00::5"
	tests := map[string]struct {
		frame []byte
		pass  bool
	}{
		"IPv4 of the set":            {packet(us4, peer4, unix.IPPROTO_TCP, 0), true},
		"IPv4 of another":            {packet("10.244.1.5", peer4, unix.IPPROTO_TCP, 0), false},
		"IPv4 off by one":            {packet("172.16.101.101", peer4, unix.IPPROTO_TCP, 0), false},
		"a reset of our own":         {reset(us4, peer4, 64), false},
		"a pod's reset":              {reset(us4, peer4, 62), true},
		"IPv4 to ourselves":          {packet("10.244.1.5", us4, unix.IPPROTO_TCP, 0), false},
		"IPv6 of the set":            {packet(us6, peer6, unix.IPPROTO_TCP, 0), true},
		"IPv6 of another":            {packet("fd00::bad", peer6, unix.IPPROTO_TCP, 0), false},
		"IPv6 same low bits":         {packet("fd01::100", peer6, unix.IPPROTO_TCP, 0), false},
		"IPv6 to ourselves":          {packet("fd00::bad", us6, unix.IPPROTO_TCP, 0), false},
		"router solicitation":        {packet("fe80::1", "ff02::2", unix.IPPROTO_ICMPV6, 133), true},
		"router advertisement":       {packet("fe80::1", "ff02::1", unix.IPPROTO_ICMPV6, 134), true},
		"neighbor solicitation":      {packet("::", "ff02::1:ff00:5", unix.IPPROTO_ICMPV6, 135), true},
		"neighbor advertisement":     {packet("fe80::1", peer6, unix.IPPROTO_ICMPV6, 136), true},
		"redirect":                   {packet("fe80::1", peer6, unix.IPPROTO_ICMPV6, 137), false},
		"ICMPv6 echo":                {packet("fe80::1", peer6, unix.IPPROTO_ICMPV6, 128), false},
		"UDP that looks like ICMPv6": {packet("fe80::1", peer6, unix.IPPROTO_UDP, 135), false},
		"ARP":                        {ethernet(unix.ETH_P_ARP, make([]byte, 46)), true},
		"a protocol of its own":      {ethernet(0x88b5, make([]byte, 46)), true},
	}
	for name, test := range tests { // without a guard all is open
		c.send(t, test.frame)
		if got := c.arrived(t); len(got) != 1 {
			t.Fatalf("%s: %d frames arrived before there was a guard", name, len(got))
		}
	}
	if err := c.SetEgressSources(t.Context(), c.index, []netip.Addr{netip.MustParseAddr(us4), netip.MustParseAddr(us6)}); err != nil {
		t.Fatal(err)
	}
	var dropped uint64
	for name, test := range tests {
		c.send(t, test.frame)
		got := c.arrived(t)
		if !test.pass && name != "a reset of our own" { // which is not counted
			dropped++
		}
		if test.pass != (len(got) == 1) {
			t.Errorf("%s: %d frames arrived", name, len(got))
		}
		if drops, err := c.EgressDrops(t.Context(), c.index); err != nil || drops != dropped {
			t.Errorf("%s: %d drops counted, %v, want %d", name, drops, err, dropped)
		}
	}
	if err := c.DeleteEgressGuard(t.Context(), c.index); err != nil {
		t.Fatal(err)
	}
	for name, test := range tests {
		c.send(t, test.frame)
		if got := c.arrived(t); len(got) != 1 {
			t.Errorf("%s: %d frames arrived after the guard went", name, len(got))
		}
	}
	if out := run(t, c.host, "", "tc", "qdisc", "show", "dev", "eth1", "clsact"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// While the set changes, a source of no set never passes, and one of every set
// always does.
func TestEgressGuardIsNeverOpen(t *testing.T) {
	c := newCable(t)
	always := netip.MustParseAddr("172.16.101.100")
	sets := [][]netip.Addr{
		{always},
		{always, netip.MustParseAddr("172.16.101.1"), netip.MustParseAddr("fd00::1")},
		{netip.MustParseAddr("172.16.101.2"), always},
		{always, netip.MustParseAddr("fd00::2")},
	}
	set := func(i int) {
		if err := c.SetEgressSources(t.Context(), c.index, sets[i%len(sets)]); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	good, bad := packet(always.String(), "172.16.101.5", unix.IPPROTO_UDP, 0), packet("10.244.1.5", "172.16.101.5", unix.IPPROTO_UDP, 0)
	var stop atomic.Bool
	var sent uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			c.send(t, good)
			c.send(t, bad)
			sent++
		}
	}()
	for i := range 100 {
		set(i)
	}
	stop.Store(true)
	<-done
	var good2, bad2 uint64
	for _, frame := range c.arrived(t) {
		switch {
		case slices.Equal(frame, good):
			good2++
		case slices.Equal(frame, bad):
			bad2++
		}
	}
	drops, err := c.EgressDrops(t.Context(), c.index)
	if err != nil {
		t.Fatal(err)
	}
	if sent == 0 || good2 != sent || bad2 != 0 || drops != sent {
		t.Errorf("sent %d of each: %d good and %d bad arrived, %d drops counted", sent, good2, bad2, drops)
	}
}

func TestEgressGuardAndOthers(t *testing.T) {
	c := newCable(t)
	ctx := t.Context()
	source := []netip.Addr{netip.MustParseAddr("172.16.101.100")}
	run(t, c.host, "", "tc", "qdisc", "add", "dev", "eth1", "clsact")
	foreign := []string{"dev", "eth1", "egress", "prio", "500", "protocol", "ip", "u32", "match", "u32", "0", "0", "action", "ok"}
	run(t, c.host, "", "tc", append([]string{"filter", "add"}, foreign...)...)
	if _, err := c.EgressSources(ctx, c.index); !errors.Is(err, kernel.ErrNotFound) || errors.Is(err, kernel.ErrIncomplete) {
		t.Fatalf("got %v for a link with a foreign filter only", err)
	}
	spoil := map[string][]string{
		"drop deleted":      {"filter", "del", "dev", "eth1", "egress", "prio", "179"},
		"resets let pass":   {"filter", "del", "dev", "eth1", "egress", "prio", "175"},
		"discovery deleted": {"filter", "del", "dev", "eth1", "egress", "prio", "178"},
		"pass all added":    {"filter", "add", "dev", "eth1", "egress", "prio", "176", "protocol", "ip", "u32", "match", "u32", "0", "0", "action", "ok"},
		"extra drop added":  {"filter", "add", "dev", "eth1", "egress", "prio", "180", "protocol", "ipv6", "u32", "match", "u32", "0", "0", "action", "drop"},
	}
	for name, args := range spoil {
		if err := c.SetEgressSources(ctx, c.index, source); err != nil {
			t.Fatal(err)
		}
		run(t, c.host, "", "tc", args...)
		if _, err := c.EgressSources(ctx, c.index); !errors.Is(err, kernel.ErrIncomplete) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := c.SetEgressSources(ctx, c.index, source); err != nil {
			t.Fatalf("%s: repair: %v", name, err)
		}
		if got, err := c.EgressSources(ctx, c.index); err != nil || !slices.Equal(got, source) {
			t.Errorf("%s: repaired to %v, %v", name, got, err)
		}
	}
	if err := c.DeleteEgressGuard(ctx, c.index); err != nil {
		t.Fatal(err)
	}
	if out := run(t, c.host, "", "tc", "filter", "show", "dev", "eth1", "egress", "prio", "500"); out == "" {
		t.Error("someone else's filter was removed")
	}
}
