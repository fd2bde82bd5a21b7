package echo

import (
	"testing"
	"time"
)

// FuzzDecode feeds what comes out of a tunnel: what is ours reads as it was
// written, in any size, and nothing makes the responder send more than asked for.
func FuzzDecode(f *testing.F) {
	for _, p := range []packet{{kind: request, size: small, session: 7, seq: 1}, {kind: question, size: 9000, session: 7, seq: 2}, {kind: answer, size: 68, session: 1 << 63, seq: 3, count: 4}} {
		f.Add(p.encode(small))
		f.Add(p.encode(0))
	}
	c := counts{n: map[session]uint32{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decode(b)
		if !ok {
			return
		}
		if again, ok := decode(p.encode(len(b))); !ok || again != p || len(p.encode(len(b))) != len(b) {
			t.Errorf("%x reads as %+v, which is written as %+v, %t", b, p, again, ok)
		}
		a, octets := c.answer(p, len(b), origin{})
		if octets != int(p.size) || a.kind != answer || a.seq != p.seq || a.session != p.session || int(a.size) != min(len(b), maxPacket-1) {
			t.Errorf("%+v is answered by %+v in %d octets", p, a, octets)
		}
		if len(c.n) != len(c.order) || len(c.n) > maxSessions {
			t.Errorf("%d sessions, %d in order", len(c.n), len(c.order))
		}
	})
}

func TestRequestsAreCountedBySession(t *testing.T) {
	c := counts{n: map[session]uint32{}}
	one, other := origin{device: 3}, origin{device: 4}
	for i, step := range []struct {
		p    packet
		from origin
		want uint32
	}{
		{packet{kind: request, session: 7}, one, 1},
		{packet{kind: request, session: 7}, one, 2},
		{packet{kind: question, session: 7}, one, 2},
		{packet{kind: request, session: 7}, other, 1}, // another tunnel
		{packet{kind: request, session: 8}, one, 1},
		{packet{kind: question, session: 9}, one, 0},
	} {
		if a, _ := c.answer(step.p, 100, step.from); a.count != step.want || a.size != 100 {
			t.Errorf("step %d: answered by %+v, want the count %d", i, a, step.want)
		}
	}
	for n := range uint64(maxSessions) {
		c.answer(packet{kind: request, session: 100 + n}, 100, one)
	}
	if len(c.n) != maxSessions || len(c.order) != maxSessions {
		t.Errorf("%d sessions are counted", len(c.n))
	}
	if a, _ := c.answer(packet{kind: question, session: 7}, 100, one); a.count != 0 {
		t.Errorf("the oldest is still counted: %d", a.count)
	}
}

func TestAnswersAreFew(t *testing.T) {
	var c counts
	now := time.Unix(1e9, 0)
	allowed := 0
	for range 3 * answerRate {
		if c.may(now) {
			allowed++
		}
	}
	if allowed != answerRate || !c.may(now.Add(time.Second)) {
		t.Errorf("%d answers in a second", allowed)
	}
}
