package nft_test

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

// manySteers returns steers of that many pods to 20 attachments.
func manySteers(n int) map[nft.Match]nft.Mark {
	steers := make(map[nft.Match]nft.Mark, n)
	for i := range n {
		src := netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|uint32(i)))), 32)
		steers[nft.Match{Src: src, Dst: netip.MustParsePrefix("172.16.101.0/24")}] = nft.Mark{Mark: uint32(i%20 + 1), Mask: 0xffff}
	}
	return steers
}

func BenchmarkFirst2000(b *testing.B) {
	m := newMachine(b, "own")
	ts := m.tables("own")
	ch := nft.Change{AddSteers: manySteers(2000)}
	for b.Loop() {
		m.apply(ts, "", ch)
		b.StopTimer()
		if err := ts.Remove(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// One more, or one less, beside 2,000 others.
func BenchmarkOneBeside2000(b *testing.B) {
	m := newMachine(b, "own")
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddSteers: manySteers(2000)})
	one := nft.Match{Src: netip.MustParsePrefix("10.99.0.1/32"), Dst: netip.MustParsePrefix("172.16.101.0/24")}
	for _, op := range []struct {
		name     string
		do, undo nft.Change
	}{
		{"add", nft.Change{AddSteers: map[nft.Match]nft.Mark{one: {Mark: 1, Mask: 0xffff}}}, nft.Change{DeleteSteers: []nft.Match{one}}},
		{"delete", nft.Change{DeleteSteers: []nft.Match{one}}, nft.Change{AddSteers: map[nft.Match]nft.Mark{one: {Mark: 1, Mask: 0xffff}}}},
	} {
		b.Run(op.name, func(b *testing.B) {
			for b.Loop() {
				m.apply(ts, "", op.do)
				b.StopTimer()
				m.apply(ts, "", op.undo)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkLoad2000(b *testing.B) {
	m := newMachine(b, "own")
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddSteers: manySteers(2000)})
	for b.Loop() {
		m.load(ts, "")
	}
}

// Most namespaces have no table: what looking costs.
func BenchmarkLoadNothing(b *testing.B) {
	m := newMachine(b, "own", "vpx-a")
	ts := m.tables("own")
	for b.Loop() {
		m.load(ts, "vpx-a")
	}
}

// One more and one less without a look, beside others.
func BenchmarkExchange(b *testing.B) {
	for _, n := range []int{1, 100, 2000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			m := newMachine(b, "own")
			ts := m.tables("own")
			defer func() { _ = ts.Close() }()
			m.apply(ts, "", nft.Change{AddSteers: manySteers(n)})
			one := map[nft.Match]nft.Mark{{Src: netip.MustParsePrefix("10.99.0.1/32"), Dst: netip.MustParsePrefix("172.16.101.0/24")}: {Mark: 1, Mask: 0xffff}}
			for b.Loop() {
				if done, err := ts.Exchange(b.Context(), nil, one); !done || err != nil {
					b.Fatal(done, err)
				}
				b.StopTimer()
				if done, err := ts.Exchange(b.Context(), one, nil); !done || err != nil {
					b.Fatal(done, err)
				}
				b.StartTimer()
			}
		})
	}
}
