package nft_test

import (
	"reflect"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

// TestLoadRemembers: what nobody has changed is not read again; whatever anybody
// changes is, and so is a namespace that has the name of another.
func TestLoadRemembers(t *testing.T) {
	m := newMachine(t, "own", "vpx-red")
	ts := m.tables("own")
	m.apply(ts, "", everything())
	whole := m.load(ts, "")
	first := ts.Remembered("")
	for range 2 {
		c := m.load(ts, "")
		if !same(first.Steers, ts.Remembered("").Steers) {
			t.Error("read again although nothing has changed")
		}
		if !reflect.DeepEqual(c, whole) {
			t.Errorf("got %+v, want %+v", c, whole)
		}
		// It is the caller's.
		clear(c.Peers)
		clear(c.Steers)
		clear(c.Zones)
	}
	m.apply(ts, "vpx-red", everything())
	if m.load(ts, ""); !same(first.Steers, ts.Remembered("").Steers) {
		t.Error("read again because of another namespace")
	}
	m.nft("own", "add table ip somebody")
	if m.load(ts, ""); same(first.Steers, ts.Remembered("").Steers) {
		t.Error("not read again after somebody's change")
	}
	m.nft("own", "delete table inet "+nft.TableName)
	if c := m.load(ts, ""); len(c.Steers) != 0 {
		t.Errorf("%d steers of a table that somebody has deleted", len(c.Steers))
	}

	red := m.load(ts, "vpx-red")
	m.remove("vpx-red")
	if _, err := ts.Load(t.Context(), "vpx-red"); err == nil {
		t.Error("a namespace was remembered that is gone")
	}
	m.create("vpx-red")
	if again := m.load(ts, "vpx-red"); len(again.Steers) != 0 || len(red.Steers) == 0 {
		t.Errorf("a new namespace has %d steers, the one before had %d", len(again.Steers), len(red.Steers))
	}
}

// same tells whether two maps are one.
func same[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func TestMemory(t *testing.T) {
	var m nft.Memory[int, string]
	if _, ok := m.Get("red", 0); ok {
		t.Error("an empty memory remembers the zero version")
	}
	m.Put("red", 1, true, "one")
	if v, ok := m.Get("red", 1); !ok || v != "one" {
		t.Errorf("Get = %q, %v", v, ok)
	}
	if _, ok := m.Get("red", 2); ok {
		t.Error("another version is taken for the same")
	}
	if _, ok := m.Get("green", 1); ok {
		t.Error("another namespace is taken for the same")
	}
	m.Put("red", 1, false, "of no version")
	if _, ok := m.Get("red", 1); ok {
		t.Error("what has no version is taken for a version's")
	}
	if v := m.Last("red"); v != "of no version" {
		t.Errorf("Last = %q", v)
	}
	m.Forget("red")
	if v := m.Last("red"); v != "" {
		t.Errorf("Last after Forget = %q", v)
	}
}
