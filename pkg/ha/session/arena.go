package session

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arena is a table's memory outside of the collector's heap: slots hold no pointer,
// and within the heap they would make it keep as much again free. A slot is used
// only while its table is.
type arena struct{ maps [][]byte }

// newArena returns one that is given back after its table.
func newArena(owner *table) *arena {
	a := &arena{}
	runtime.AddCleanup(owner, (*arena).release, a)
	return a
}

// chunk returns slots, all zero.
func (a *arena) chunk() []slot {
	b, err := unix.Mmap(-1, 0, slotsPerChunk*int(unsafe.Sizeof(slot{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]slot, slotsPerChunk) // too many mappings: the heap will do
	}
	a.maps = append(a.maps, b)
	return unsafe.Slice((*slot)(unsafe.Pointer(unsafe.SliceData(b))), slotsPerChunk)
}

func (a *arena) release() {
	for _, b := range a.maps {
		_ = unix.Munmap(b)
	}
}
