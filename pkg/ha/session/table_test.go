package session

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

func flow(i int) conntrack.Entry {
	src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff))
	dst := netip.MustParseAddrPort("172.16.101.5:5432")
	as := netip.AddrPortFrom(netip.MustParseAddr("172.16.101.100"), uint16(i))
	return conntrack.Entry{
		Orig: conntrack.MakeTuple(unix.IPPROTO_TCP, src, dst), Reply: conntrack.MakeTuple(unix.IPPROTO_TCP, dst, as),
		Status: conntrack.SeenReply | conntrack.Assured, Timeout: 1000, Mark: uint32(i),
		TCP: conntrack.TCP{State: conntrack.TCPEstablished, FlagsOrig: 3, FlagsReply: 3, WScaleOrig: 7},
	}
}

// model is what a reader makes of the changes.
type model map[conntrack.Tuple]uint32

func (m model) read(t *table, c *cursor, limit int) bool {
	return t.next(c, limit, func(e *conntrack.Entry, _ int64, dead bool) {
		if dead {
			delete(m, e.Orig)
		} else {
			m[e.Orig] = e.Mark
		}
	})
}

func (m model) equal(n model) bool {
	if len(m) != len(n) {
		return false
	}
	for k, v := range m {
		if n[k] != v {
			return false
		}
	}
	return true
}

// Whatever changes between reads, a reader that has read all has the table; and
// one that starts anew at what it has seen, too.
func TestReadersConverge(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		tab := newTable(7)
		want := model{}
		fast, slow := model{}, model{}
		fc, _ := tab.read(7, 0)
		sc, _ := tab.read(7, 0)
		for range 400 {
			for range r.IntN(30) {
				e := flow(r.IntN(200))
				if r.IntN(3) == 0 {
					tab.end(&e.Orig)
					delete(want, e.Orig)
					continue
				}
				e.Mark = r.Uint32()
				tab.put(&e)
				want[e.Orig] = e.Mark
			}
			for !fast.read(tab, fc, 7) {
			}
			if !fast.equal(want) {
				t.Fatalf("seed %d: a reader has %d flows, want %d", seed, len(fast), len(want))
			}
			slow.read(tab, sc, 5)
			if r.IntN(10) == 0 { // reconnect
				tab.close(sc)
				var ok bool
				if sc, ok = tab.read(7, sc.seq); !ok {
					t.Fatalf("seed %d: change %d is not known any more", seed, sc.seq)
				}
			}
		}
		for !slow.read(tab, sc, 5) {
		}
		if !slow.equal(want) || tab.live != len(want) {
			t.Fatalf("seed %d: the slow reader has %d flows, the table %d, want %d", seed, len(slow), tab.live, len(want))
		}
		again := newTable(1)
		for k := range want {
			e := tab.get(&k).entry
			again.put(&e)
		}
		if again.digest != tab.digest {
			t.Fatalf("seed %d: the digest depends on history", seed)
		}
	}
}

func TestOldEpochsAndForgottenEndsStartOver(t *testing.T) {
	tab := newTable(7)
	e := flow(1)
	tab.put(&e)
	if _, ok := tab.read(8, 0); ok {
		t.Error("another epoch's number was taken")
	}
	if _, ok := tab.read(7, tab.seq+1); ok {
		t.Error("a number from the future was taken")
	}
	c, _ := tab.read(7, tab.seq)
	for i := range 2*maxGraves + 10 {
		e := flow(i)
		tab.put(&e)
		tab.end(&e.Orig)
	}
	if !tab.behind(c) {
		t.Error("a reader that missed ended flows may go on")
	}
	if _, ok := tab.read(7, c.seq); ok {
		t.Error("a reader from before the oldest tombstone may go on")
	}
	fresh, _ := tab.read(0, 0)
	if tab.behind(fresh) {
		t.Error("a whole copy is held up by ends from before it")
	}
	if n := len(tab.graves) - tab.head; n > maxGraves {
		t.Errorf("%d tombstones", n)
	}
	// Memory is bounded by what lives and the tombstones.
	if tab.used > maxGraves+3 {
		t.Errorf("%d slots for no flow", tab.used)
	}
}

func TestSweepFindsWhatIsNotThere(t *testing.T) {
	tab := newTable(7)
	for i := range 10 {
		e := flow(i)
		tab.put(&e)
	}
	tab.begin()
	for i := range 9 {
		e := flow(i)
		tab.seen(tab.get(&e.Orig))
	}
	var rest []conntrack.Entry
	tab.rest(func(e *conntrack.Entry, _ int64) { rest = append(rest, *e) })
	if len(rest) != 1 || rest[0].Mark != 9 {
		t.Errorf("the sweep left %v", rest)
	}
}

func BenchmarkTable(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		tab := newTable(1)
		for i := range 100000 {
			e := flow(i)
			tab.put(&e)
		}
	}
}
