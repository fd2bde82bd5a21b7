package session

import (
	"hash/maphash"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

// index finds a table's slots by the flows' tuples. It holds numbers of slots, which
// have the tuples: a map would hold each of them a second time, half of what a flow
// costs.
//
// It is a hash table with open addressing and linear probing.
type index struct {
	seed  maphash.Seed // of this process: openers must not choose where they collide
	cells []uint32     // a power of two of them; 0, the sentinel's, is empty
	used  int
}

const fewestCells = 64

func newIndex() index {
	return index{seed: maphash.MakeSeed(), cells: make([]uint32, fewestCells)}
}

// home is the cell that a tuple's search begins at.
func (x *index) home(k *conntrack.Tuple) int {
	return int(maphash.Comparable(x.seed, *k)) & (len(x.cells) - 1)
}

func (x *index) after(cell int) int { return (cell + 1) & (len(x.cells) - 1) }

// find returns the number of a tuple's slot.
func (t *table) find(k *conntrack.Tuple) (i uint32, ok bool) {
	x := &t.index
	for cell := x.home(k); x.cells[cell] != 0; cell = x.after(cell) {
		if i := x.cells[cell]; t.slot(i).entry.Orig == *k {
			return i, true
		}
	}
	return 0, false
}

// enter adds a slot, whose tuple must not be there.
func (t *table) enter(i uint32) {
	x := &t.index
	if x.used++; x.used > len(x.cells)/4*3 {
		t.spread(2 * len(x.cells))
	}
	t.settle(i)
}

func (t *table) settle(i uint32) {
	x := &t.index
	cell := x.home(&t.slot(i).entry.Orig)
	for x.cells[cell] != 0 {
		cell = x.after(cell)
	}
	x.cells[cell] = i
}

// spread gives the index another size.
func (t *table) spread(cells int) {
	old := t.index.cells
	t.index.cells = make([]uint32, cells)
	for _, i := range old {
		if i != 0 {
			t.settle(i)
		}
	}
}

// forget takes a slot out, which still has its tuple, and closes the gap: what was
// put behind it because its own place was taken must be found from there.
func (t *table) forget(i uint32) {
	x := &t.index
	gap := x.home(&t.slot(i).entry.Orig)
	for x.cells[gap] != i {
		gap = x.after(gap)
	}
	x.used--
	for at := x.after(gap); x.cells[at] != 0; at = x.after(at) {
		home := x.home(&t.slot(x.cells[at]).entry.Orig)
		// Only what begins its search at or before the gap may move there; the
		// distances are counted around the end.
		if (at-home)&(len(x.cells)-1) >= (at-gap)&(len(x.cells)-1) {
			x.cells[gap], gap = x.cells[at], at
		}
	}
	x.cells[gap] = 0
	if len(x.cells) > fewestCells && x.used < len(x.cells)/8 {
		t.spread(len(x.cells) / 2)
	}
}
