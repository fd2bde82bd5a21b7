package election

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

func TestProbesNeedThreeMisses(t *testing.T) {
	var p probes
	target := desired.HaVip{Attachment: "red", Probe: netip.MustParseAddr("172.16.101.1")}
	other := desired.HaVip{Attachment: "blue", Probe: netip.MustParseAddr("172.16.101.1")}
	silent := map[string]bool{}
	ping := func(_ context.Context, v desired.HaVip) error {
		if silent[v.Attachment] {
			return errors.New("no answer")
		}
		return nil
	}
	round := func(wantChanged, wantUp bool) {
		t.Helper()
		if changed := p.round(t.Context(), []desired.HaVip{target, other}, ping); changed != wantChanged || p.allUp() != wantUp {
			t.Errorf("changed %t, up %t; want %t, %t", changed, p.allUp(), wantChanged, wantUp)
		}
	}
	round(false, true)
	silent["red"] = true
	round(false, true)
	round(false, true)
	round(true, false)
	round(false, false)
	silent["red"] = false
	round(true, true)
	silent["red"] = true
	round(false, true)
	round(false, true)
	round(true, false)
	if !p.round(t.Context(), []desired.HaVip{other}, ping) || !p.allUp() {
		t.Error("a target that is no longer wanted counts")
	}
}

func TestEcho(t *testing.T) {
	b := echo(0xfffe)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if sum = sum&0xffff + sum>>16; sum != 0xffff {
		t.Errorf("checksum of %x: %x", b, sum)
	}
	from := netip.MustParseAddr("172.16.101.1")
	packet := append(append([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0}, from.AsSlice()...), 172, 16, 101, 10)
	packet = append(packet, b...)
	packet[20] = echoReply
	if !answers(packet, from, 0xfffe) {
		t.Error("a reply is none")
	}
	for name, wrong := range map[string]bool{
		"another id": answers(packet, from, 1), "another sender": answers(packet, from.Next(), 0xfffe), "cut": answers(packet[:24], from, 0xfffe), "empty": answers(nil, from, 0xfffe),
	} {
		if wrong {
			t.Errorf("%s answers", name)
		}
	}
	packet[20] = echoRequest
	if answers(packet, from, 0xfffe) {
		t.Error("a request answers")
	}
}
