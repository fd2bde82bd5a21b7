package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Packet is a captured packet without its link-layer header.
type Packet struct {
	At       time.Time
	Outgoing bool   // sent by the machine, not received
	Protocol uint16 // EtherType
	Data     []byte // at most snapLength octets
}

// IPv4 takes the packet apart; ok is false for anything else.
func (p Packet) IPv4() (header IPv4, payload []byte, ok bool) {
	if p.Protocol != etherIPv4 {
		return IPv4{}, nil, false
	}
	return parseIPv4(p.Data)
}

const (
	snapLength = 256
	keptLast   = 4096 // packets
	keptFound  = 16
	// receiveBuffer holds what arrives while this process is not scheduled.
	receiveBuffer = 16 << 20
)

// Capture watches one device of a machine. It keeps the last packets for a
// file, and counts those that its filter finds.
type Capture struct {
	Name string // <machine>-<device>

	file   *os.File
	raw    syscall.RawConn
	filter func(Packet) bool
	task   sync.WaitGroup

	mu    sync.Mutex
	last  []Packet // a ring once it is full
	next  int
	found []Packet
	count int
	total int
}

// StartCapture captures on a device until Stop. The filter, which may be nil,
// sees every packet; it is called by one goroutine.
func StartCapture(m *topo.Machine, device string, filter func(Packet) bool) (*Capture, error) {
	c := &Capture{Name: m.Name + "-" + device, filter: filter}
	err := m.InNetwork(func() error {
		// A packet socket sees nothing before it is bound.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), c.Name)
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	})
	if err == nil {
		c.raw, err = c.file.SyscallConn()
	}
	if err != nil {
		if c.file != nil {
			err = errors.Join(err, c.file.Close())
		}
		return nil, fmt.Errorf("capture on %s: %w", c.Name, err)
	}
	c.task.Go(c.read)
	return c, nil
}

func (c *Capture) read() {
	buffer := make([]byte, 1<<16)
	for {
		var n int
		var from unix.Sockaddr
		var failure error
		err := c.raw.Read(func(fd uintptr) bool {
			n, from, failure = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(failure, unix.EAGAIN)
		})
		if err != nil { // closed
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if failure != nil || !ok {
			continue // ENETDOWN, when the device goes down
		}
		c.keep(Packet{
			At: time.Now(), Outgoing: link.Pkttype == unix.PACKET_OUTGOING,
			Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, link.Protocol)),
			Data:     append([]byte(nil), buffer[:min(n, snapLength)]...),
		})
	}
}

func (c *Capture) keep(p Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	if len(c.last) < keptLast {
		c.last = append(c.last, p)
	} else {
		c.last[c.next] = p
		c.next = (c.next + 1) % keptLast
	}
	if c.filter != nil && c.filter(p) {
		c.count++
		if len(c.found) < keptFound {
			c.found = append(c.found, p)
		}
	}
}

// Count returns how many packets the filter found, and the first of them.
func (c *Capture) Count() (int, []Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count, append([]Packet(nil), c.found...)
}

// Total returns how many packets passed.
func (c *Capture) Total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Stop ends the capture. It fails if packets passed unseen.
func (c *Capture) Stop() error {
	// Everything that has arrived must have been read first.
	deadline := time.Now().Add(drainLimit)
	for before := -1; before != c.Total() && time.Now().Before(deadline); {
		before = c.Total()
		time.Sleep(drainPause)
	}
	var lost uint32
	var failure error
	err := c.raw.Control(func(fd uintptr) {
		var stats *unix.TpacketStats
		if stats, failure = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); failure == nil {
			lost = stats.Drops
		}
	})
	err = errors.Join(err, failure, c.file.Close())
	c.task.Wait()
	if lost > 0 {
		err = errors.Join(err, fmt.Errorf("capture on %s missed %d packets", c.Name, lost))
	}
	return err
}

// How long Stop looks for packets that are still on their way to it.
const (
	drainPause = 20 * time.Millisecond
	drainLimit = 2 * time.Second
)

// WritePcap writes the last packets as a libpcap file (LINKTYPE_LINUX_SLL),
// for tcpdump -r.
func (c *Capture) WritePcap(w io.Writer) error {
	c.mu.Lock()
	packets := append(append([]Packet(nil), c.last[c.next:]...), c.last[:c.next]...)
	c.mu.Unlock()
	// https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-03.html
	header := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	header = binary.LittleEndian.AppendUint16(header, 2)
	header = binary.LittleEndian.AppendUint16(header, 4)
	header = append(header, make([]byte, 8)...)
	header = binary.LittleEndian.AppendUint32(header, 1<<16)
	header = binary.LittleEndian.AppendUint32(header, 113)
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, p := range packets {
		if _, err := w.Write(p.record()); err != nil {
			return err
		}
	}
	return nil
}

// record is the packet in a libpcap file, with a Linux cooked header.
func (p Packet) record() []byte {
	const cookedLength = 16
	length := uint32(cookedLength + len(p.Data))
	b := binary.LittleEndian.AppendUint32(nil, uint32(p.At.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.At.Nanosecond()/1000))
	b = binary.LittleEndian.AppendUint32(b, length)
	b = binary.LittleEndian.AppendUint32(b, length)
	direction := uint16(unix.PACKET_HOST)
	if p.Outgoing {
		direction = unix.PACKET_OUTGOING
	}
	b = binary.BigEndian.AppendUint16(b, direction)
	b = append(b, make([]byte, 12)...)
	b = binary.BigEndian.AppendUint16(b, p.Protocol)
	return append(b, p.Data...)
}
