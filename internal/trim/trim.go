// Package trim gives back memory that a program has needed for a while and needs no
// more: garbage, and pages of its own file, which libraries touch when they
// initialize, and whatever happens rarely.
//
// A page of a file that nobody has written to is read again when it is needed, from
// the kernel's page cache as a rule. While it is mapped it counts as the process's
// memory, and is among the last that the kernel takes back; after that, among the
// first.
package trim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

const (
	// lookEvery is how often it is looked at what the program has. The first
	// look is that long after it is ready: its start is over.
	lookEvery = 10 * time.Second
	// worth is by how much the program must have grown: to let go costs a
	// garbage collection, and a fault for each few pages that come back.
	worth = 4 << 20
	// calm is by how much at most it may grow from one look to the next: what
	// made it grow is over.
	calm = worth / 16
	// recovery is how many looks long it takes back what it does need; work that is
	// done twice a minute has its turn in that.
	recovery = 5
)

// Run releases memory when the start is over, which is some seconds after the call, and
// whenever the program has grown and grows no more, until the context ends.
// failed is told the first failure.
func Run(ctx context.Context, failed func(error)) {
	// At least as long as a look apart from the call.
	t := time.NewTimer(lookEvery + rhythm.Until(time.Second))
	defer t.Stop()
	var g growth
	var h heap
	var r releaser
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(rhythm.Until(lookEvery))
		}
		h.look()
		size, err := resident()
		if err == nil && g.due(size) {
			err = r.release()
		}
		if err != nil && !told {
			told = true
			failed(err)
		}
	}
}

// releaser releases the memory of the running program. The zero value is ready.
type releaser struct{ program *program }

func (r *releaser) release() (err error) {
	if r.program == nil {
		if r.program, err = open(); r.program == nil {
			return err
		}
	}
	return errors.Join(err, r.program.release())
}

// growth decides when a release is worth its price. The zero value demands one at once.
type growth struct {
	released bool
	waiting  int   // looks until what came back after a release is taken for needed
	floor    int64 // what the program needs, in bytes
	last     int64 // what it had at the last look
}

// due tells whether to release, of a program that has so many bytes now.
func (g *growth) due(size int64) bool {
	grown := size - g.last
	g.last = size
	switch {
	case !g.released:
		g.released = true
	case g.waiting > 0:
		g.waiting--
		g.floor = max(g.floor, size)
		return false
	case size < g.floor:
		g.floor = size
		return false
	case size-g.floor < worth || grown > calm:
		return false
	}
	g.waiting, g.floor = recovery, 0
	return true
}

// resident returns how much of the program is in memory, in bytes (proc(5), statm).
func resident() (int64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %q: %w", b, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

const (
	// small is up to how much a heap is kept small. Half of what a collection leaves is
	// then left to garbage, not as much again.
	small = 32 << 20
	// idle is up to how many collections between two looks the program counts as at
	// rest. Twice as many do not matter then; to work that takes a millisecond or two,
	// as a bind does, they would.
	idle = 2
)

// heap has the runtime collect garbage as it suits the heap's size, unless the
// environment says how (GOGC).
type heap struct {
	percent int
	cycles  uint64 // collections until the last look
}

func (h *heap) look() {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/cycles/automatic:gc-cycles"}}
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() != metrics.KindUint64 {
			return
		}
	}
	cycles := samples[1].Value.Uint64()
	p := percent(samples[0].Value.Uint64(), cycles-h.cycles)
	h.cycles = cycles
	if p != h.percent && os.Getenv("GOGC") == "" {
		h.percent = p
		debug.SetGCPercent(p)
	}
}

// percent is GOGC for a heap that has so many bytes after a collection, of which there
// have been so many since the last look.
func percent(live, collections uint64) int {
	if live < small && collections <= idle {
		return 50
	}
	return 100
}
