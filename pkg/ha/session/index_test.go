package session

import (
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
)

// What comes and goes at random is found, and nothing else is.
func TestTheIndexFindsWhatIsThere(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 2))
		tab := newTable(7)
		there := map[int]uint32{}
		for step := range 20000 {
			n := r.IntN(2000)
			if step > 15000 {
				n = r.IntN(100) // so that it becomes smaller again
				for k := range there {
					n = k
					break
				}
			}
			e := flow(n)
			if i, ok := there[n]; ok {
				tab.forget(i)
				*tab.slot(i) = slot{}
				tab.free = append(tab.free, i)
				delete(there, n)
			} else {
				i := tab.allocate()
				tab.slot(i).entry = e
				tab.enter(i)
				there[n] = i
			}
			if step%500 != 0 {
				continue
			}
			for n := range 2000 {
				e := flow(n)
				i, ok := tab.find(&e.Orig)
				if want, is := there[n]; ok != is || i != want {
					t.Fatalf("seed %d, step %d: flow %d is found %t at %d, want %t at %d", seed, step, n, ok, i, is, want)
				}
			}
		}
		if tab.index.used != len(there) || len(tab.index.cells) > 16*max(len(there), fewestCells) {
			t.Errorf("seed %d: %d flows, counted %d, in %d cells", seed, len(there), tab.index.used, len(tab.index.cells))
		}
		runtime.KeepAlive(tab)
	}
}

// The collector does not see what slots hold.
func TestSlotsHoldNoPointer(t *testing.T) {
	var check func(reflect.Type, string)
	check = func(typ reflect.Type, at string) {
		switch typ.Kind() {
		case reflect.Struct:
			for f := range typ.Fields() {
				check(f.Type, at+"."+f.Name)
			}
		case reflect.Array:
			check(typ.Elem(), at+"[]")
		case reflect.Bool, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		default:
			t.Errorf("%s is a %s", at, typ)
		}
	}
	check(reflect.TypeFor[slot](), "slot")
}
