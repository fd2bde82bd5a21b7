package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// UnreachableError is an ICMP destination unreachable that came in answer to
// a Ping.
type UnreachableError struct {
	From netip.Addr
	Code byte   // RFC 792; 4 is "fragmentation needed"
	MTU  uint16 // for code 4 (RFC 1191)
}

// Error implements error.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("destination unreachable, code %d (mtu %d), from %s", e.Code, e.MTU, e.From)
}

// echoID tells apart the pings of this process.
var echoID atomic.Uint32

// Ping sends one ICMP echo of a packet size (octets, with the IP header; at
// least 28) that must not be fragmented, and waits for its reply. An ICMP
// unreachable is an *UnreachableError; a packet that the machine itself
// refuses is its errno, such as EMSGSIZE or EHOSTUNREACH.
func Ping(ctx context.Context, m *topo.Machine, to netip.Addr, size int) error {
	var c net.PacketConn
	err := m.InNetwork(func() (err error) {
		var lc net.ListenConfig
		if c, err = lc.ListenPacket(ctx, "ip4:icmp", "0.0.0.0"); err != nil {
			return err
		}
		raw, err := c.(*net.IPConn).SyscallConn()
		if err != nil {
			return err
		}
		var failure error
		err = raw.Control(func(fd uintptr) {
			failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		})
		return errors.Join(err, failure)
	})
	if err != nil {
		return fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	id := uint16(echoID.Add(1))
	request := Echo(id, 1, make([]byte, max(0, size-ipv4HeaderLength-8)))
	if _, err := c.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
	}
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
		}
		source, _ := netip.ParseAddr(from.String())
		done, err := echoAnswer(buffer[:n], id, source)
		if err != nil {
			return fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
		}
		if done && source == to {
			return nil
		}
	}
}

// echoAnswer tells whether an ICMP message is the reply to our echo, or says
// that the echo could not be delivered.
func echoAnswer(message []byte, id uint16, from netip.Addr) (bool, error) {
	if len(message) < 8 {
		return false, nil
	}
	switch message[0] {
	case icmpEchoReply:
		return binary.BigEndian.Uint16(message[4:]) == id, nil
	case icmpUnreachable:
		_, quoted, ok := parseIPv4(message[8:])
		if ok && len(quoted) >= 8 && quoted[0] == icmpEchoRequest && binary.BigEndian.Uint16(quoted[4:]) == id {
			return false, &UnreachableError{From: from, Code: message[1], MTU: binary.BigEndian.Uint16(message[6:])}
		}
	}
	return false, nil
}

// Stream sends numbered datagrams to a server's UDP echo and counts those
// that come back.
type Stream struct {
	conn  net.Conn
	every time.Duration
	stop  chan struct{}
	sender,
	receiver sync.WaitGroup

	mu     sync.Mutex
	sent   uint64
	back   map[uint64]struct{}
	errors int
	last   error
	heard  time.Time
	gap    time.Duration
}

// StreamReport is what became of a Stream.
type StreamReport struct {
	Sent, Lost uint64 // datagrams
	Errors     int    // of the socket, as after ICMP unreachable
	LastError  error
	// LongestGap is the longest time between two that came back.
	LongestGap time.Duration
}

// StartStream sends a datagram at every interval until Stop.
func StartStream(ctx context.Context, m *topo.Machine, server netip.Addr, every time.Duration) (*Stream, error) {
	c, err := Dial(ctx, m, "udp4", netip.AddrPortFrom(server, EchoPort).String())
	if err != nil {
		return nil, fmt.Errorf("%s: stream to %s: %w", m.Name, server, err)
	}
	s := &Stream{conn: c, every: every, stop: make(chan struct{}), back: map[uint64]struct{}{}}
	s.sender.Go(s.send)
	s.receiver.Go(s.receive)
	return s, nil
}

func (s *Stream) send() {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	var word [8]byte
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
		}
		s.mu.Lock()
		n := s.sent
		s.sent++
		s.mu.Unlock()
		binary.BigEndian.PutUint64(word[:], n)
		if _, err := s.conn.Write(word[:]); err != nil {
			s.note(err)
		}
	}
}

func (s *Stream) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors++
	s.last = err
}

func (s *Stream) receive() {
	var word [8]byte
	for {
		n, err := s.conn.Read(word[:])
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
				return
			}
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				return
			}
			s.note(err)
			continue
		}
		if n == len(word) {
			s.mu.Lock()
			s.back[binary.BigEndian.Uint64(word[:])] = struct{}{}
			if now := time.Now(); s.heard.IsZero() {
				s.heard = now
			} else {
				s.gap, s.heard = max(s.gap, now.Sub(s.heard)), now
			}
			s.mu.Unlock()
		}
	}
}

// Returned is how many datagrams have come back so far.
func (s *Stream) Returned() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.back)
}

// Gap returns the longest time so far between two that came back, and begins
// that measurement anew. One that lasts is not over before the next comes back.
func (s *Stream) Gap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := s.gap
	s.gap = 0
	return gap
}

// Stop stops sending, waits until all have come back or patience ends, and
// reports.
func (s *Stream) Stop(patience time.Duration) StreamReport {
	close(s.stop)
	s.sender.Wait()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(s.every) {
		s.mu.Lock()
		complete := uint64(len(s.back)) == s.sent
		s.mu.Unlock()
		if complete {
			break
		}
	}
	_ = s.conn.Close()
	s.receiver.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return StreamReport{Sent: s.sent, Lost: s.sent - uint64(len(s.back)), Errors: s.errors, LastError: s.last, LongestGap: s.gap}
}
