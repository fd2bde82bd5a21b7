package vrrp

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// holds and refuses name the rule of docs/rfc9568.md that the test shows to be
// kept, and the one it shows to be enforced against its violation.
// TestEveryRuleIsTested in package ha reads these calls.
func holds(*testing.T, string)   {}
func refuses(*testing.T, string) {}

var (
	src4 = netip.MustParseAddr("192.168.4.4")
	dst4 = netip.MustParseAddr("192.168.4.5")
	src6 = netip.MustParseAddr("fe80::4")
	dst6 = GroupIPv6
	addr = netip.MustParseAddr

	sample4 = Advertisement{VRID: 51, Priority: 200, Interval: 100 * time.Millisecond, Addresses: []netip.Addr{addr("192.168.4.100")}}
	sample6 = Advertisement{VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{addr("fe80::100"), addr("2001:db8::100")}}
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encode(t *testing.T, a Advertisement, src, dst netip.Addr, form Form, s *Sealer) []byte {
	t.Helper()
	b, err := a.Append(nil, src, dst, form, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The checksums of these packets were added up by hand, not by the code.
func TestGoldenPackets(t *testing.T) {
	holds(t, "RFC9568-5.2.8-1")
	holds(t, "RFC9568-5.2.8-2")
	for _, c := range []struct {
		name     string
		advert   Advertisement
		src, dst netip.Addr
		form     Form
		golden   string
	}{
		// 3133 + c801 + 000a + c0a8 + 0464 = 1be4a -> be4b -> ^ 41b4
		{"IPv4, message only", sample4, src4, dst4, RFC9568, "31 33 c8 01 000a 41b4 c0a80464"},
		// 1be4a + c0a8 + 0404 + c0a8 + 0405 + 0070 + 000c = 3481f -> 4822 -> ^ b7dd
		{"IPv4, with pseudo-header", sample4, src4, dst4, RFC5798, "31 33 c8 01 000a b7dd c0a80464"},
		// 3133 + 6402 + 0064 + fe80 + 0100 + 2001 + 0db8 + 0100 = 1c3d2;
		// + fe80 + 0004 + ff02 + 0012 + 0070 + 0028 = 3c202 -> c205 -> ^ 3dfa
		{"IPv6", sample6, src6, dst6, RFC9568, "31 33 64 02 0064 3dfa fe800000000000000000000000000100 20010db8000000000000000000000100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			golden := unhex(t, c.golden)
			if got := encode(t, c.advert, c.src, c.dst, c.form, nil); !slices.Equal(got, golden) {
				t.Errorf("encoded\n%x, want\n%x", got, golden)
			}
			got, err := Parse(golden, c.src, c.dst, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Packet{Advertisement: c.advert, Form: c.form}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// rechecked changes one byte of sample4's golden packet and makes the checksum
// right again, so that only the change can be the reason for a discard.
func rechecked(t *testing.T, at int, value byte) []byte {
	t.Helper()
	b := encode(t, sample4, src4, dst4, RFC9568, nil)
	b[at] = value
	sum := checksum(b, src4, dst4, RFC9568)
	b[checksumOffset], b[checksumOffset+1] = byte(sum>>8), byte(sum)
	return b
}

func TestDiscards(t *testing.T) {
	refuses(t, "RFC9568-5.2.2-1")
	refuses(t, "RFC9568-7.1-1")
	refuses(t, "RFC9568-5.2.5-1")
	refuses(t, "RFC9568-7.1-5")
	refuses(t, "RFC9568-5.2.8-1")
	refuses(t, "RFC9568-5.2.8-2")
	interval := rechecked(t, 4, 0xf0) // reserved bits set, interval 0
	interval[5] = 0
	sum := checksum(interval, src4, dst4, RFC9568)
	interval[6], interval[7] = byte(sum>>8), byte(sum)
	flipped := encode(t, sample4, src4, dst4, RFC9568, nil)
	flipped[2] ^= 1
	six := encode(t, sample6, src6, dst6, RFC9568, nil)
	messageOnly := checksum(six, src4, dst4, RFC9568)
	six[6], six[7] = byte(messageOnly>>8), byte(messageOnly)
	for _, c := range []struct {
		name     string
		b        []byte
		src, dst netip.Addr
		want     Reason
	}{
		{"version 2", rechecked(t, 0, 0x21), src4, dst4, Version},
		{"type 2", rechecked(t, 0, 0x32), src4, dst4, Type},
		{"type 0", rechecked(t, 0, 0x30), src4, dst4, Type},
		{"no address", rechecked(t, 3, 0), src4, dst4, CountZero},
		{"more addresses than there are", rechecked(t, 3, 2), src4, dst4, Truncated},
		{"interval zero although reserved bits are set", interval, src4, dst4, IntervalZero},
		{"one bit flipped", flipped, src4, dst4, Checksum},
		{"pseudo-header of another packet", encode(t, sample4, src4, dst4, RFC5798, nil), src4, addr("192.168.4.6"), Checksum},
		{"IPv6 without pseudo-header", six, src6, dst6, Checksum},
		{"two families", encode(t, sample4, src4, dst4, RFC9568, nil), src4, dst6, Family},
		{"empty", nil, src4, dst4, Truncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.b, c.src, c.dst, nil)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestEveryTruncationIsDiscarded(t *testing.T) {
	refuses(t, "RFC9568-7.1-3")
	for _, whole := range [][]byte{
		encode(t, sample4, src4, dst4, RFC9568, nil),
		encode(t, Advertisement{VRID: 1, Interval: Tick, Addresses: []netip.Addr{src4, dst4, src4}}, src4, dst4, RFC5798, nil),
	} {
		for n := range whole {
			if _, err := Parse(whole[:n], src4, dst4, nil); !errors.Is(err, Truncated) {
				t.Errorf("%d of %d bytes: %v, want %v", n, len(whole), err, Truncated)
			}
		}
	}
}

func TestParseAccepts(t *testing.T) {
	holds(t, "RFC9568-5.2.2-1")
	holds(t, "RFC9568-7.1-1")
	holds(t, "RFC9568-7.1-3")
	holds(t, "RFC9568-5.2.5-1")
	holds(t, "RFC9568-7.1-5")
	holds(t, "RFC9568-5.2.6-1")
	reserved := rechecked(t, 4, 0xf0)
	longest := sample4
	longest.Interval, longest.Addresses = MaxInterval, slices.Repeat([]netip.Addr{src4}, 255)
	for _, c := range []struct {
		name string
		b    []byte
		want Advertisement
	}{
		{"reserved bits set", reserved, sample4},
		{"the most of everything", encode(t, longest, src4, dst4, RFC9568, nil), longest},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.b, src4, dst4, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.Advertisement, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	refuses(t, "RFC9568-5.2.6-1")
	with := func(change func(*Advertisement)) Advertisement { a := sample4; change(&a); return a }
	for _, c := range []struct {
		name     string
		a        Advertisement
		src, dst netip.Addr
		says     string
	}{
		{"VRID 0", with(func(a *Advertisement) { a.VRID = 0 }), src4, dst4, "VRID 0"},
		{"interval 0", with(func(a *Advertisement) { a.Interval = 0 }), src4, dst4, "interval 0s"},
		{"an interval that would set the reserved bits", with(func(a *Advertisement) { a.Interval = MaxInterval + Tick }), src4, dst4, "interval 40.96s"},
		{"half a centisecond", with(func(a *Advertisement) { a.Interval = 15 * time.Millisecond }), src4, dst4, "steps of 10ms"},
		{"no address", with(func(a *Advertisement) { a.Addresses = nil }), src4, dst4, "0 addresses"},
		{"256 addresses", with(func(a *Advertisement) { a.Addresses = slices.Repeat(a.Addresses, 256) }), src4, dst4, "256 addresses"},
		{"IPv6 address over IPv4", with(func(a *Advertisement) { a.Addresses = sample6.Addresses }), src4, dst4, "per family"},
		{"destination of another family", sample4, src4, dst6, "one family"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := c.a.Append([]byte("as it was"), c.src, c.dst, RFC9568, nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
			if string(b) != "as it was" {
				t.Errorf("the buffer became %q", b)
			}
		})
	}
}

func TestReasonsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if name := r.Counter(); name == "" || name == "unknown" || seen[name] {
			t.Errorf("reason %d is called %q", r, name)
		} else {
			seen[name] = true
		}
	}
}

func FuzzParse(f *testing.F) {
	s, err := NewSealer(testKeys, 1, at(7))
	if err != nil {
		f.Fatal(err)
	}
	for _, form := range []Form{RFC9568, RFC5798} {
		b, err := sample4.Append(nil, src4, dst4, form, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		b, _ = sample4.Append(nil, src4, dst4, form, s)
		f.Add(b, false)
	}
	b, err := sample6.Append(nil, src6, dst6, RFC9568, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Fuzz(func(t *testing.T, b []byte, six bool) {
		src, dst := src4, dst4
		if six {
			src, dst = src6, dst6
		}
		p, err := Parse(b, src, dst, nil)
		if err != nil {
			var reason Reason
			if !errors.As(err, &reason) {
				t.Fatalf("error %v is no Reason", err)
			}
			return
		}
		if p.VRID == 0 {
			return // no virtual router has it, so package ha drops it; it cannot be sent
		}
		// What was understood can be said again and means the same.
		again, err := p.Append(nil, src, dst, p.Form, nil)
		if err != nil {
			t.Fatalf("parsed %+v, which cannot be encoded: %v", p, err)
		}
		back, err := Parse(again, src, dst, nil)
		if diff := cmp.Diff(p, back, cmpopts.EquateComparable(netip.Addr{})); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}
