package probe

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

var flows = []Flow{
	{From: netip.MustParseAddr("10.244.1.5"), To: netip.MustParseAddrPort("172.16.101.5:80"), Token: 0xdeadbeef},
	{From: netip.MustParseAddr("10.244.1.5"), To: netip.MustParseAddrPort("172.16.101.5:0"), Token: 7},
	{From: netip.MustParseAddr("fd00::5"), To: netip.MustParseAddrPort("[fd01::5]:80"), Token: 0xffffffff},
	{From: netip.MustParseAddr("fd00::5"), To: netip.MustParseAddrPort("[fd01::5]:0"), Token: 1},
}

// answer turns a request around, as a server does.
func answer(f Flow, flags byte) []byte {
	b := Flow{From: f.To.Addr(), To: netip.AddrPortFrom(f.From, f.To.Port()), Token: f.Token}.request()
	at := ipv4Header
	if f.From.Is6() {
		at = ipv6Header
	}
	if f.To.Port() == 0 {
		b[at] = map[byte]byte{8: 0, 128: 129}[b[at]]
		return b
	}
	binary.BigEndian.PutUint16(b[at:], f.To.Port())
	binary.BigEndian.PutUint16(b[at+2:], f.sourcePort())
	binary.BigEndian.PutUint32(b[at+8:], f.Token+1)
	b[at+13] = flags
	return b
}

func inGRE(inner []byte) []byte {
	b := make([]byte, ipv4Header+8)
	b[0], b[9], b[ipv4Header] = 0x45, 47, 0x20
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(inner)))
	copy(b[12:], []byte{192, 168, 80, 8, 192, 168, 4, 4})
	return append(b, inner...)
}

func TestParse(t *testing.T) {
	for _, f := range flows {
		for _, tc := range []struct {
			packet []byte
			kind   Kind
			gre    bool
		}{
			{f.request(), Request, false}, {inGRE(f.request()), Request, true},
			{answer(f, flagSYN|flagACK), Answer, false}, {inGRE(answer(f, flagSYN|flagACK)), Answer, true},
		} {
			p, ok := f.parse(tc.packet)
			if !ok || p.Kind != tc.kind || p.GRE != tc.gre || p.Size != len(tc.packet) {
				t.Errorf("%+v: got %+v, %t, want %s", f, p, ok, tc.kind)
			}
			other := f
			other.Token ^= 0x100
			if _, ok := other.parse(tc.packet); ok {
				t.Errorf("%+v: another probe's packet is taken for this one's", f)
			}
		}
		if f.To.Port() != 0 {
			if p, ok := f.parse(answer(f, flagRST|flagACK)); !ok || p.Kind != Refused {
				t.Errorf("%+v: a reset is %+v, %t", f, p, ok)
			}
		}
	}
}

func TestUnreachable(t *testing.T) {
	for _, f := range flows[:2] {
		icmp := append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, f.request()...)
		b := make([]byte, ipv4Header)
		b[0], b[9] = 0x45, 1
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(icmp)))
		copy(b[12:], []byte{192, 168, 4, 4, 10, 244, 1, 5})
		p, ok := f.parse(append(b, icmp...))
		if !ok || p.Kind != Unreachable || p.Code != 13 || p.From.Addr() != netip.MustParseAddr("192.168.4.4") {
			t.Errorf("%+v: %+v, %t", f, p, ok)
		}
	}
}

// The checksums of what is sent are right: a receiver's sum over it is 0.
func TestChecksums(t *testing.T) {
	for _, f := range flows {
		b := f.request()
		h, ok := parseIP(b)
		if !ok {
			t.Fatalf("%+v: %x", f, b)
		}
		sum := uint32(0)
		if h.protocol != 1 {
			sum = add(add(0, f.From.AsSlice()), f.To.Addr().AsSlice()) + uint32(h.protocol) + uint32(len(h.payload))
		}
		if got := fold(add(sum, h.payload)); got != 0 {
			t.Errorf("%+v: the receiver's sum is %#x", f, got)
		}
		if f.From.Is4() && fold(add(0, b[:ipv4Header])) != 0 {
			t.Errorf("%+v: the header's sum is wrong", f)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, flow := range flows {
		f.Add(flow.request())
		f.Add(inGRE(answer(flow, flagSYN|flagACK)))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, flow := range flows {
			_, _ = flow.parse(b)
		}
	})
}
