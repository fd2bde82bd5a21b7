package session

import (
	"bufio"
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

func sampleBatch() ([]byte, batch) {
	six := flow(3)
	six.Orig = conntrack.MakeTuple(17, netip.MustParseAddrPort("[fd00::1]:5"), netip.MustParseAddrPort("[fd01::1]:53"))
	six.Reply = six.Orig.Inverse() // not translated
	six.TCP = conntrack.TCP{}
	h := batch{stream: 3, epoch: 1 << 60, after: 17, seq: 20, first: true, last: true, changes: []change{
		{entry: flow(1)}, {entry: conntrack.Entry{Orig: flow(2).Orig}, dead: true}, {entry: six},
	}}
	b := appendBatch(frame(nil, frameBatch), &h)
	for i := range h.changes {
		c := &h.changes[i]
		b = appendChange(b, &c.entry, int64(c.entry.Timeout), c.dead)
	}
	return seal(b), h
}

func TestFramesReadAsWritten(t *testing.T) {
	b, want := sampleBatch()
	typ, body, _, err := readFrame(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil || typ != frameBatch {
		t.Fatal(typ, err)
	}
	got, err := decodeBatch(body, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(batch{}, change{})); d != "" {
		t.Error(d)
	}
	sub := subscription{stream: 1, netns: "vpx-db", epoch: 5, seq: 6}
	if got, err := decodeSubscription(appendSubscription(nil, &sub)); err != nil || got != sub {
		t.Errorf("subscription %+v, %v", got, err)
	}
	st := state{stream: 1, epoch: 5, seq: 6, live: 7, digest: 8}
	if got, err := decodeState(appendState(nil, &st)); err != nil || got != st {
		t.Errorf("state %+v, %v", got, err)
	}
	a := ack{stream: 1, epoch: 5, seq: 6}
	if got, err := decodeAck(appendAck(nil, &a)); err != nil || got != a {
		t.Errorf("ack %+v, %v", got, err)
	}
	if got, err := decodeHello(appendHello(nil, "group")); err != nil || got != "group" {
		t.Errorf("hello %q, %v", got, err)
	}
	other := appendHello(nil, "group")
	other[4] = 2
	if _, err := decodeHello(other); err == nil || !strings.Contains(err.Error(), "run one release on all members") {
		t.Errorf("hello of another version: %v", err)
	}
}

func TestFramesAreBounded(t *testing.T) {
	for _, n := range []uint32{0, maxFrame + 1, 1 << 31} {
		b := be.AppendUint32(nil, n)
		if _, _, _, err := readFrame(bufio.NewReader(bytes.NewReader(b)), nil); !errors.Is(err, errMalformed) {
			t.Errorf("a frame of %d bytes: %v", n, err)
		}
	}
	six := flow(1)
	six.Orig = conntrack.MakeTuple(6, netip.MustParseAddrPort("[fd00::1]:5"), netip.MustParseAddrPort("[fd01::1]:53"))
	six.Reply = conntrack.MakeTuple(6, netip.MustParseAddrPort("[fd01::1]:53"), netip.MustParseAddrPort("[fd02::1]:53"))
	b := appendBatch(frame(nil, frameBatch), &batch{})
	for range batchLimit {
		b = appendChange(b, &six, 1, false)
	}
	if len(b) > maxFrame {
		t.Errorf("the largest batch has %d bytes", len(b))
	}
}

// No bytes of a peer crash the decoders, or pass as something that cannot be
// written again as it was read.
func FuzzDecode(f *testing.F) {
	b, _ := sampleBatch()
	f.Add(byte(frameBatch), b[5:])
	f.Add(byte(frameHello), appendHello(nil, "g"))
	f.Add(byte(frameSubscribe), appendSubscription(nil, &subscription{netns: "x"}))
	f.Add(byte(frameState), appendState(nil, &state{}))
	f.Add(byte(frameAck), appendAck(nil, &ack{}))
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		switch typ {
		case frameHello:
			_, _ = decodeHello(body)
		case frameSubscribe:
			if s, err := decodeSubscription(body); err == nil && !bytes.Equal(appendSubscription(nil, &s), body) {
				t.Errorf("%+v", s)
			}
		case frameState:
			_, _ = decodeState(body)
		case frameAck:
			_, _ = decodeAck(body)
		case frameBatch:
			h, err := decodeBatch(body, nil)
			if err != nil {
				return
			}
			again := appendBatch(nil, &h)
			for i := range h.changes {
				c := &h.changes[i]
				again = appendChange(again, &c.entry, int64(c.entry.Timeout), c.dead)
			}
			second, err := decodeBatch(again, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range h.changes { // a time-out is bounded when it is written
				h.changes[i].entry.Timeout = min(h.changes[i].entry.Timeout, 1<<31)
			}
			if d := cmp.Diff(h, second, cmp.AllowUnexported(batch{}, change{})); d != "" {
				t.Error(d)
			}
		}
	})
}
