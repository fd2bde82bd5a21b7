package session

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// The protocol, over TLS 1.3. Each frame is its length (4 bytes, of what
// follows), its type (1 byte) and its body; numbers are in network byte order,
// texts have their length (1 byte) before them.
//
// A standby opens a connection for each group and member, and subscribes once
// to each namespace, with a number of its choosing for the stream and what it
// has of it. The active member answers with changes: at first all flows, unless what
// the standby has can be brought up to date. A standby that finds a gap, or a
// digest that does not match its own, subscribes again with nothing.
const (
	// protocolVersion is in the hello; there is one so far.
	protocolVersion = 1
	// maxFrame bounds what a peer can make the other allocate.
	maxFrame = 64 << 10
	// batchLimit is how many changes a frame holds: 250 of IPv6 take 21 KiB,
	// and that many are one netlink exchange.
	batchLimit = 250

	frameHello     = 1 // standby: version, group
	frameSubscribe = 2 // standby: subscription
	frameBatch     = 3 // active: batch
	frameBeat      = 4 // either: nothing; the other is alive
	frameState     = 5 // active: state
	frameAck       = 6 // standby: ack
)

var magic = [4]byte{'v', 'p', 'x', 's'}

// subscription asks for the changes of one namespace after seq.
type subscription struct {
	stream     uint32
	netns      string
	epoch, seq uint64
}

// batch is changes of one stream from after `after` up to seq.
type batch struct {
	stream            uint32
	epoch, after, seq uint64
	// first begins a whole copy, which last ends: what it does not have is
	// not there.
	first, last bool
	changes     []change
}

// change is a flow as it is now, or its end.
type change struct {
	entry conntrack.Entry // only Orig, if dead
	dead  bool
}

// state is what the sender has after a change.
type state struct {
	stream     uint32
	epoch, seq uint64
	live       uint32
	digest     uint64
}

// ack says what has been applied.
type ack struct {
	stream     uint32
	epoch, seq uint64
}

var errMalformed = errors.New("malformed frame")

const (
	flagFirst = 1
	flagLast  = 2

	flagDead = 1
	flagIPv6 = 2
	// flagTranslated: the reply tuple is not the inverse of the original.
	flagTranslated = 4
)

var be = binary.BigEndian

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendHello(b []byte, group string) []byte {
	b = append(append(b, magic[:]...), protocolVersion)
	return appendText(b, group)
}

func appendSubscription(b []byte, s *subscription) []byte {
	b = be.AppendUint32(b, s.stream)
	b = be.AppendUint64(be.AppendUint64(b, s.epoch), s.seq)
	return appendText(b, s.netns)
}

// appendBatch writes all of a batch but its changes, which appendChange adds.
func appendBatch(b []byte, h *batch) []byte {
	var flags byte
	if h.first {
		flags |= flagFirst
	}
	if h.last {
		flags |= flagLast
	}
	b = append(be.AppendUint32(b, h.stream), flags)
	return be.AppendUint64(be.AppendUint64(be.AppendUint64(b, h.epoch), h.after), h.seq)
}

func appendChange(b []byte, e *conntrack.Entry, left int64, dead bool) []byte {
	var flags byte
	v4 := e.Orig.IPv4()
	translated := !dead && e.Translated()
	if dead {
		flags |= flagDead
	}
	if !v4 {
		flags |= flagIPv6
	}
	if translated {
		flags |= flagTranslated
	}
	b = append(b, flags, e.Orig.Proto)
	b = appendEnds(b, &e.Orig, v4)
	if dead {
		return b
	}
	if translated {
		b = appendEnds(b, &e.Reply, v4)
	}
	b = be.AppendUint32(b, uint32(e.Status))
	b = be.AppendUint32(b, uint32(min(left, 1<<31)))
	b = be.AppendUint32(b, e.Mark)
	return append(b, e.TCP.State, e.TCP.WScaleOrig, e.TCP.WScaleReply, e.TCP.FlagsOrig, e.TCP.FlagsReply)
}

func appendEnds(b []byte, t *conntrack.Tuple, v4 bool) []byte {
	from := 0
	if v4 {
		from = 12
	}
	b = append(append(b, t.Src[from:]...), t.Dst[from:]...)
	return be.AppendUint16(be.AppendUint16(b, t.SrcPort), t.DstPort)
}

func appendState(b []byte, s *state) []byte {
	b = be.AppendUint64(be.AppendUint64(be.AppendUint32(b, s.stream), s.epoch), s.seq)
	return be.AppendUint64(be.AppendUint32(b, s.live), s.digest)
}

func appendAck(b []byte, a *ack) []byte {
	return be.AppendUint64(be.AppendUint64(be.AppendUint32(b, a.stream), a.epoch), a.seq)
}

// decoder takes values off a frame's body. After a failure it returns zeros.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) take(n int) []byte {
	if d.failed || len(d.b) < n {
		d.failed = true
		return make([]byte, n)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() uint8    { return d.take(1)[0] }
func (d *decoder) u16() uint16  { return be.Uint16(d.take(2)) }
func (d *decoder) u32() uint32  { return be.Uint32(d.take(4)) }
func (d *decoder) u64() uint64  { return be.Uint64(d.take(8)) }
func (d *decoder) text() string { return string(d.take(int(d.u8()))) }
func (d *decoder) end() error {
	if d.failed || len(d.b) > 0 {
		return errMalformed
	}
	return nil
}

func decodeHello(b []byte) (group string, err error) {
	d := decoder{b: b}
	known := [4]byte(d.take(4)) == magic
	version := d.u8()
	switch {
	case d.failed || !known:
		return "", errMalformed
	case version != protocolVersion:
		return "", fmt.Errorf("the other side speaks version %d of session replication, this one %d: run one release on all members", version, protocolVersion)
	}
	group = d.text()
	return group, d.end()
}

func decodeSubscription(b []byte) (s subscription, err error) {
	d := decoder{b: b}
	s.stream, s.epoch, s.seq = d.u32(), d.u64(), d.u64()
	s.netns = d.text()
	return s, d.end()
}

// decodeBatch appends to changes, whose room it uses.
func decodeBatch(b []byte, changes []change) (h batch, err error) {
	d := decoder{b: b}
	h.stream = d.u32()
	flags := d.u8()
	h.first, h.last = flags&flagFirst != 0, flags&flagLast != 0
	h.epoch, h.after, h.seq = d.u64(), d.u64(), d.u64()
	h.changes = changes
	for len(d.b) > 0 && !d.failed {
		if len(h.changes) == batchLimit {
			return h, errMalformed
		}
		h.changes = append(h.changes, d.change())
	}
	return h, d.end()
}

func (d *decoder) change() (c change) {
	flags := d.u8()
	c.dead = flags&flagDead != 0
	v4 := flags&flagIPv6 == 0
	e := &c.entry
	e.Orig.Proto = d.u8()
	d.ends(&e.Orig, v4)
	// What is not of a replicated kind must not reach the kernel.
	if !e.HasPorts() || e.Orig.IPv4() != v4 {
		d.failed = true
	}
	if c.dead {
		return c
	}
	e.Reply = e.Orig.Inverse()
	if flags&flagTranslated != 0 {
		d.ends(&e.Reply, v4)
	}
	e.Status, e.Timeout, e.Mark = conntrack.Status(d.u32()), d.u32(), d.u32()
	t := d.take(5)
	e.TCP = conntrack.TCP{State: t[0], WScaleOrig: t[1], WScaleReply: t[2], FlagsOrig: t[3], FlagsReply: t[4]}
	if e.Reply.IPv4() != v4 {
		d.failed = true
	}
	return c
}

func (d *decoder) ends(t *conntrack.Tuple, v4 bool) {
	if v4 {
		t.Src, t.Dst = mapped(d.take(4)), mapped(d.take(4))
	} else {
		t.Src, t.Dst = [16]byte(d.take(16)), [16]byte(d.take(16))
	}
	t.SrcPort, t.DstPort = d.u16(), d.u16()
}

func mapped(v4 []byte) (a [16]byte) {
	a[10], a[11] = 0xff, 0xff
	copy(a[12:], v4)
	return a
}

func decodeState(b []byte) (s state, err error) {
	d := decoder{b: b}
	s.stream, s.epoch, s.seq, s.live, s.digest = d.u32(), d.u64(), d.u64(), d.u32(), d.u64()
	return s, d.end()
}

func decodeAck(b []byte) (a ack, err error) {
	d := decoder{b: b}
	a.stream, a.epoch, a.seq = d.u32(), d.u64(), d.u64()
	return a, d.end()
}

// readFrame reads one frame into buf, which it may replace by a larger one.
func readFrame(r *bufio.Reader, buf []byte) (typ byte, body, room []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	n := be.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return 0, nil, buf, fmt.Errorf("a frame of %d bytes: %w", n, errMalformed)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, max(n, 4096))
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, buf, err
	}
	return buf[0], buf[1:], buf, nil
}

// frame begins a frame in b; seal ends it.
func frame(b []byte, typ byte) []byte { return append(b[:0], 0, 0, 0, 0, typ) }

func seal(b []byte) []byte {
	be.PutUint32(b, uint32(len(b)-4))
	return b
}
