package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// sample is how long new connections are counted.
	sample = 10 * time.Second
	// openers is how many TCP connections are opened at a time.
	openers = 4
	tcpPort = 7008
	// floodPorts begin where nobody listens.
	floodPorts, floodSpan = 20000, 40000
	perCall               = 64
)

// rates is new connections in a second.
type rates struct{ udp, tcp float64 }

// round is the same without replication and with it, one after the other.
type round struct{ alone, replicated rates }

// sources numbers the sockets that flows come from, so that none comes twice.
var sources atomic.Uint32

// newConnections counts them with and without replication.
func (s *stack) newConnections(ctx context.Context, replicated bool) (r rates, err error) {
	if err := s.start(ctx, replicated); err != nil {
		return r, err
	}
	wait(ctx, 3*time.Second)
	// Nobody answers the flood, not even to say so.
	for _, action := range []string{"-D", "-I"} {
		line := fmt.Sprintf("iptables -t raw %s PREROUTING -p udp --dport %d:%d -j DROP", action, floodPorts, floodPorts+floodSpan)
		if err := s.server().Type(ctx, line); err != nil && action == "-I" {
			return r, err
		}
	}
	if r.tcp, err = s.open(ctx); err != nil {
		return r, err
	}
	r.udp, err = s.flood()
	return r, err
}

// flood sends packets that are each a new flow, and counts those that arrive.
func (s *stack) flood() (rate float64, err error) {
	var c net.PacketConn
	err = s.pod().InNetwork(func() (err error) {
		c, err = net.ListenPacket("udp4", netip.AddrPortFrom(s.lab.Hosts[0].Pods[0].Address, uint16(10000+sources.Add(1))).String())
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	batch := make([]ipv4.Message, perCall)
	to := make([]*net.UDPAddr, perCall)
	for i := range batch {
		to[i] = &net.UDPAddr{IP: topo.ServerAddress.AsSlice()}
		batch[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 32)}, Addr: to[i]}
	}
	before, err := s.received()
	if err != nil {
		return 0, err
	}
	p, start, port := ipv4.NewPacketConn(c), time.Now(), 0
	for time.Since(start) < sample && port < floodSpan {
		for i := range to {
			to[i].Port = floodPorts + port
			port++
		}
		if _, err := p.WriteBatch(batch, 0); err != nil {
			return 0, fmt.Errorf("flood: %w", err)
		}
		if port+perCall > floodSpan { // the same ports again would be no new flows
			_ = c.Close()
			err = s.pod().InNetwork(func() (err error) {
				c, err = net.ListenPacket("udp4", netip.AddrPortFrom(s.lab.Hosts[0].Pods[0].Address, uint16(10000+sources.Add(1))).String())
				return err
			})
			if err != nil {
				return 0, err
			}
			p, port = ipv4.NewPacketConn(c), 0
		}
	}
	took := time.Since(start)
	after, err := s.received()
	return float64(after-before) / took.Seconds(), err
}

// received is how many packets have come to the server's network from the
// proxies.
func (s *stack) received() (n uint64, err error) {
	err = s.server().InNetwork(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for line := range bytes.Lines(b) {
			name, rest, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
			if !ok || !strings.HasPrefix(name, "proxy") {
				continue
			}
			packets, err := strconv.ParseUint(strings.Fields(rest)[1], 10, 64)
			if err != nil {
				return err
			}
			n += packets
		}
		return nil
	})
	return n, err
}

// open opens TCP connections, with one request each, as fast as it can.
func (s *stack) open(ctx context.Context) (float64, error) {
	var l net.Listener
	err := s.server().InNetwork(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", tcpPort))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.CopyN(c, c, 1)
				_, _ = c.Read(make([]byte, 1)) // the end
				_ = c.Close()
			}()
		}
	}()
	var count atomic.Int64
	var opening sync.WaitGroup
	errs := make([]error, openers)
	start := time.Now()
	for i := range openers {
		opening.Go(func() {
			errs[i] = s.pod().InNetwork(func() error {
				for time.Since(start) < sample {
					if err := request(ctx); err != nil {
						return err
					}
					count.Add(1)
				}
				return nil
			})
		})
	}
	opening.Wait()
	return float64(count.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

// request is one short connection. It is reset at its end, so that no port stays
// taken.
func request(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp4", netip.AddrPortFrom(topo.ServerAddress, tcpPort).String())
	if err != nil {
		return err
	}
	b := []byte{1}
	if _, err = c.Write(b); err == nil {
		_, err = io.ReadFull(c, b)
	}
	if t, ok := c.(*net.TCPConn); ok {
		err = errors.Join(err, t.SetLinger(0))
	}
	return errors.Join(err, c.Close())
}
