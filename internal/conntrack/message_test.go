package conntrack

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// sampleEntry is a translated TCP flow.
func sampleEntry() Entry {
	e := Entry{
		Orig:   MakeTuple(unix.IPPROTO_TCP, netip.MustParseAddrPort("100.64.0.80:40000"), netip.MustParseAddrPort("172.16.101.5:5432")),
		Reply:  MakeTuple(unix.IPPROTO_TCP, netip.MustParseAddrPort("172.16.101.5:5432"), netip.MustParseAddrPort("172.16.101.100:61000")),
		Status: SeenReply | Assured, Timeout: 432000, Mark: 7,
	}
	e.TCP = TCP{State: TCPEstablished, WScaleOrig: 7, WScaleReply: 9, FlagsOrig: 3, FlagsReply: 1}
	return e
}

// FuzzParse feeds what came from ctnetlink. An entry that is understood can be
// written, and is understood again as the same flow.
func FuzzParse(f *testing.F) {
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
		e := sampleEntry()
		e.Orig.Proto, e.Reply.Proto = proto, proto
		f.Add(written(&e))
	}
	six := sampleEntry()
	six.Orig = MakeTuple(unix.IPPROTO_TCP, netip.MustParseAddrPort("[fd00::1]:5"), netip.MustParseAddrPort("[fd01::1]:53"))
	six.Reply = six.Orig.Inverse()
	f.Add(written(&six))
	f.Fuzz(func(t *testing.T, body []byte) {
		var e, again Entry
		if parse(body, &e) != nil {
			return
		}
		_ = e.Orig.String() + e.Reply.String()
		if isMapped(&e.Orig.Src) != isMapped(&e.Orig.Dst) {
			return // of two families: the kernel has no such flow
		}
		if err := parse(written(&e), &again); err != nil {
			t.Fatalf("%+v cannot be read again: %v", e, err)
		}
		if again.Orig != e.Orig || again.Timeout != e.Timeout || again.Mark != e.Mark {
			t.Errorf("written %+v, read %+v", e, again)
		}
		if e.Orig.Proto == unix.IPPROTO_TCP && again.TCP.State != e.TCP.State {
			t.Errorf("written in TCP state %d, read in %d", e.TCP.State, again.TCP.State)
		}
	})
}

// written is the body of the message that creates an entry, behind the netlink
// header.
func written(e *Entry) []byte {
	var m message
	m.begin(msgNew, 0, 1, unix.AF_INET)
	m.create(e)
	m.end()
	return m.b[unix.SizeofNlMsghdr:]
}
