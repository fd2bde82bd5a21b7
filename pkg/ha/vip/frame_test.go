package vip

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
)

var (
	testMAC = hardware{0x02, 0, 0, 0, 0x04, 0x04}
	v4      = netip.MustParseAddr("192.168.4.100")
	v6      = netip.MustParseAddr("2001:db8::100")
)

func TestAnnouncements(t *testing.T) {
	for addr, want := range map[netip.Addr][]string{
		v4: {
			"ffffffffffff" + "020000000404" + "0806" + "0001080006040001" + "020000000404" + "c0a80464" + "000000000000" + "c0a80464",
			"ffffffffffff" + "020000000404" + "0806" + "0001080006040002" + "020000000404" + "c0a80464" + "020000000404" + "c0a80464",
		},
		v6: {
			"333300000001" + "020000000404" + "86dd" + "60000000" + "0020" + "3a" + "ff" +
				"20010db8000000000000000000000100" + "ff020000000000000000000000000001" +
				"8800" + "7329" + "a0000000" + "20010db8000000000000000000000100" + "0201" + "020000000404",
		},
	} {
		got := announcements(testMAC, addr)
		if len(got) != len(want) {
			t.Fatalf("%v: %d frames, want %d", addr, len(got), len(want))
		}
		for i := range want {
			if hex.EncodeToString(got[i]) != want[i] {
				t.Errorf("%v frame %d:\n got %x\nwant %s", addr, i, got[i], want[i])
			}
		}
	}
}

func TestClaimant(t *testing.T) {
	for _, addr := range []netip.Addr{v4, v6} {
		for i, f := range announcements(testMAC, addr) {
			if who, ok := claimant(f, addr); !ok || who != testMAC {
				t.Errorf("%v frame %d: %v %t", addr, i, who, ok)
			}
			if _, ok := claimant(f, addr.Next()); ok {
				t.Errorf("%v frame %d claims another address", addr, i)
			}
			for n := range f[:len(f)-8] {
				_, _ = claimant(f[:n], addr) // must not panic
			}
		}
		if _, ok := claimant(question(testMAC, addr), addr); ok {
			t.Errorf("%v: a question claims", addr)
		}
	}
}

func TestHardware(t *testing.T) {
	if h, err := parseHardware("02:00:00:00:04:04"); err != nil || h != testMAC {
		t.Errorf("%v %v", h, err)
	}
	for _, s := range []string{"", "02:00:00:00:04", "02:00:00:00:04:04:05", "0.0.0.0"} {
		if _, err := parseHardware(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

// FuzzClaimant feeds what comes from a link. Whoever is taken for the owner of an
// address has named it; an announcement always claims its address, and a
// question never does.
func FuzzClaimant(f *testing.F) {
	for _, addr := range []netip.Addr{v4, v6} {
		for _, frame := range append(announcements(testMAC, addr), question(testMAC, addr)) {
			f.Add(frame, addr.AsSlice(), testMAC[:])
		}
	}
	f.Fuzz(func(t *testing.T, frame, raw, hw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || len(hw) < len(hardware{}) {
			return
		}
		who, ok := claimant(frame, addr)
		if ok && (!bytes.Contains(frame, raw) || !bytes.Contains(frame, who[:])) {
			t.Errorf("%v is taken for the owner of %v by a frame without both: %x", who, addr, frame)
		}
		mac := hardware(hw[:len(hardware{})])
		for _, a := range announcements(mac, addr) {
			if got, ok := claimant(a, addr); !ok || got != mac {
				t.Errorf("an announcement of %v at %v is taken for %v, %t", addr, mac, got, ok)
			}
		}
		if got, ok := claimant(question(mac, addr), addr); ok && !addr.IsUnspecified() {
			t.Errorf("who asks for %v is taken for its owner %v", addr, got)
		}
	})
}
