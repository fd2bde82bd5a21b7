package nft

import "testing"

func TestMarkChainNames(t *testing.T) {
	for _, m := range []Mark{{Mark: 0x100, Mask: 0xff00}, {Mark: 1, Mask: 0xffffffff}, {Mark: 0xdeadbeef, Mask: 0xffffffff},
		{Mark: 1, Mask: 0xff, Zone: 17600}, {Refuse: true}} {
		if got, ok := parseMarkChain(m.chain()); !ok || got != m {
			t.Errorf("%s is read as %+v, %v", m.chain(), got, ok)
		}
	}
	for _, name := range []string{
		"", "gre", "mark_", "mark_00000100", "mark_100_ff00", "mark_00000100_0000ff00x", "mark_00000100-0000ff00",
		"mark_0000010g_0000ff00", "mark_0000010A_0000ffff", "mark_+0000100_0000ff00", "mark_00000000_0000ff00", "mark_00010000_0000ff00",
	} {
		if m, ok := parseMarkChain(name); ok {
			t.Errorf("%q is taken for the chain of %+v", name, m)
		}
	}
}

func TestSteerMapNames(t *testing.T) {
	for _, m := range []steerMap{{false, 32, 24}, {false, 0, 0}, {true, 128, 64}, {true, 32, 32}} {
		if got, ok := parseSteerMap(m.name()); !ok || got != m {
			t.Errorf("%s is read as %+v, %v", m.name(), got, ok)
		}
	}
	for _, name := range []string{
		"", "peers4", "steer4", "steer4_32", "steer5_32_24", "steer4_33_24", "steer4_24_33", "steer6_129_0",
		"steer4_-1_24", "steer4_032_24", "steer4_32_24_1", "steer4_32_24x", "xsteer4_32_24",
	} {
		if m, ok := parseSteerMap(name); ok {
			t.Errorf("%q is taken for the map of %+v", name, m)
		}
	}
}
