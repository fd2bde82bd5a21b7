package nft

import (
	"net/netip"
	"testing"
)

// FuzzElements feeds elements of sets as the kernel lists them, of whoever's making:
// what is taken for ours is written as it was read, or it would be taken for
// something that packets do not meet.
func FuzzElements(f *testing.F) {
	c := newContents()
	Change{
		AddPeers: []Peer{
			{Addr: netip.MustParseAddr("192.168.80.8"), Local: netip.MustParseAddr("192.168.4.4"), Keyed: true, Key: 101},
			{Addr: netip.MustParseAddr("192.168.80.8"), Local: netip.MustParseAddr("192.168.4.4")},
		},
		AddSteers: map[Match]Mark{{Src: netip.MustParsePrefix("10.244.1.5/32"), Dst: netip.MustParsePrefix("172.16.101.0/24")}: {Mark: 1, Mask: 0x3fff, Zone: 17600}},
		AddZones:  map[string]uint16{"vpx-orders": 17600},
	}.applyTo(c)
	for set, elems := range c.elements() {
		for key, chain := range elems {
			f.Add(set, []byte(key), chain)
		}
	}
	f.Add("steer4_32_24", []byte("\x0a\x00\x00\x01\x0a\x00\x00\x01"), "refuse")
	f.Fuzz(func(t *testing.T, set string, key []byte, chain string) {
		got := newContents()
		if err := got.decode(set, elements{string(key): chain}); err != nil || set == setRemotes || got.empty() {
			return // not ours, or derived
		}
		// Sets have no targets.
		if target, ok := got.elements()[set][string(key)]; !ok || target != chain && target != "" {
			t.Errorf("set %s: element %q to %q is read as %+v, which is written %q", set, key, chain, got, got.elements())
		}
	})
}
