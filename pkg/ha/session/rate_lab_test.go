package session_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/mdlayher/socket"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// BenchmarkNewFlows is what replication costs a packet that is a new flow, with
// one address translation on its way: beside no listener at all, one for every
// event, and replication itself. The figures are behind docs/adr/0013.
func BenchmarkNewFlows(b *testing.B) {
	for _, mode := range []string{"nobody listens", "one listens to all", "replicated"} {
		b.Run(mode, func(b *testing.B) {
			p, other := pair(b, 500*time.Millisecond)
			ends := world(b, p, other)
			sh(b, ends, "server", "iptables -t raw -A PREROUTING -p udp -j DROP")
			switch mode {
			case "one listens to all":
				listenToAll(b, p.path)
			case "replicated":
				p.m.SetActive("g", true)
				eventually(b, "the standby", func() bool { return len(p.status(b).Standbys) == 1 })
			}
			flood := newFlood(b, ends)
			flood.send(b, 1000) // neighbors
			b.ResetTimer()
			flood.send(b, b.N)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
		})
	}
}

// listenToAll reads the events of new, changed and ended flows as they come.
func listenToAll(b *testing.B, path string) {
	f, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(f)
	s, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, "events", &socket.Config{NetNS: f})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	if err := s.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		b.Fatal(err)
	}
	for _, g := range []int{unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_UPDATE, unix.NFNLGRP_CONNTRACK_DESTROY} {
		if err := s.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			b.Fatal(err)
		}
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := s.Recvfrom(b.Context(), buf, 0); err != nil && b.Context().Err() != nil {
				return
			}
		}
	}()
}

// flood sends packets of which each is a new flow.
type flood struct {
	ends   kernel.Host
	conn   *ipv4.PacketConn
	batch  []ipv4.Message
	source uint16
	port   int
}

const floodPorts = 60000

func newFlood(b *testing.B, ends kernel.Host) *flood {
	f := &flood{ends: ends, source: 10000, port: floodPorts}
	for range 64 {
		f.batch = append(f.batch, ipv4.Message{Buffers: [][]byte{make([]byte, 16)}})
	}
	b.Cleanup(func() { _ = f.conn.Close() })
	return f
}

func (f *flood) send(b *testing.B, n int) {
	b.Helper()
	for n > 0 {
		if f.port+len(f.batch) > floodPorts {
			if f.conn != nil {
				_ = f.conn.Close()
			}
			f.source++
			f.port = 1000
			at := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.9"), f.source)
			c := in(b, f.ends, "client", func() (net.PacketConn, error) { return net.ListenPacket("udp4", at.String()) })
			f.conn = ipv4.NewPacketConn(c)
		}
		part := f.batch[:min(n, len(f.batch))]
		for i := range part {
			part[i].Addr = &net.UDPAddr{IP: net.IPv4(10, 8, 0, 8), Port: f.port}
			f.port++
		}
		if _, err := f.conn.WriteBatch(part, 0); err != nil {
			b.Fatal(err)
		}
		n -= len(part)
	}
}
