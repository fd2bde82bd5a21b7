package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	// captureBuffer lets some thousand packets wait while a busy machine
	// looks at others.
	captureBuffer = 4 << 20
	// snapLength holds the headers of a probe in GRE, and of what an ICMP error
	// quotes.
	snapLength = 256
	// maxSightings bounds what a capture keeps: a probe passes a dozen devices,
	// a few times.
	maxSightings = 256
)

// Sighting is a packet of a flow on a device.
type Sighting struct {
	Parsed
	Netns  string
	Device string
	Out    bool // leaving by the device
	At     time.Time

	index int
}

// Capture watches for a flow on all devices of a namespace.
type Capture struct {
	flow  Flow
	netns string
	file  *os.File
	raw   syscall.RawConn
	done  chan struct{}

	mu   sync.Mutex
	seen []Sighting
	news chan struct{} // buffered, 1
}

// Watch begins to watch in a namespace ("" is the agent's own). Close ends it.
func Watch(ctx context.Context, h kernel.Host, netns string, f Flow) (*Capture, error) {
	c := &Capture{flow: f, netns: netns, done: make(chan struct{}), news: make(chan struct{}, 1)}
	err := h.Run(ctx, netns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap(unix.ETH_P_ALL)))
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
		}
		c.file = os.NewFile(uintptr(fd), "packets")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch packets in network namespace %q: %w", netns, err)
	}
	if c.raw, err = c.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, c.file.Close())
	}
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer close(c.done)
	buffer := make([]byte, snapLength)
	for {
		n, from, err := c.receive(buffer)
		if err != nil {
			return // closed
		}
		p, ok := c.flow.parse(buffer[:min(n, len(buffer))])
		sll, isLink := from.(*unix.SockaddrLinklayer)
		if !ok || !isLink {
			continue
		}
		c.mu.Lock()
		if len(c.seen) < maxSightings {
			c.seen = append(c.seen, Sighting{Parsed: p, Netns: c.netns, Out: sll.Pkttype == unix.PACKET_OUTGOING, At: time.Now(), index: sll.Ifindex})
		}
		c.mu.Unlock()
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
}

func (c *Capture) receive(b []byte) (n int, from unix.Sockaddr, err error) {
	var failed error
	err = c.raw.Read(func(fd uintptr) bool {
		n, from, failed = unix.Recvfrom(int(fd), b, 0)
		return failed != unix.EAGAIN
	})
	if err == nil && failed != nil && failed != unix.ENETDOWN { // of one device
		err = failed
	}
	return max(n, 0), from, err
}

// Seen returns what has been seen so far, in order, without names of devices.
func (c *Capture) Seen() []Sighting {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Sighting(nil), c.seen...)
}

// Close ends the watch and returns what it has seen.
func (c *Capture) Close(ctx context.Context, h kernel.Host) ([]Sighting, error) {
	err := c.file.Close()
	<-c.done
	handle, inErr := h.In(c.netns)
	if inErr != nil {
		return nil, errors.Join(err, inErr)
	}
	links, listErr := handle.Links(ctx)
	if listErr != nil {
		return nil, errors.Join(err, listErr)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for i := range c.seen {
		c.seen[i].Device = names[c.seen[i].index]
	}
	return c.seen, err
}

// swap puts a protocol number into network byte order, as packet(7) wants it.
func swap(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
