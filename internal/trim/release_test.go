package trim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMappings(t *testing.T) {
	const program = "/usr/sbin/a program (deleted)"
	got, err := mappings(strings.NewReader(`00400000-01a63000 r-xp 00000000 fe:00 10010808                           /usr/sbin/a program (deleted)
01a63000-01a64000 r--p 01663000 fe:00 10010808                           /usr/sbin/a program (deleted)
01a64000-01a65000 rw-p 01664000 fe:00 10010808                           /usr/sbin/a program (deleted)
7f5a5c000000-7f5a5c021000 rw-p 00000000 00:00 0 
7ffd0-7ffd1 r--p 00000000 fe:00 7 /usr/lib/another
`), program)
	if want := []mapping{{0x400000, 0x1a63000}, {0x1a63000, 0x1a64000}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%x, %v, want %x", got, err, want)
	}
	if got, err := mappings(strings.NewReader("nonsense r--p\n"), program); err == nil {
		t.Errorf("nonsense was read as %+v", got)
	}
}

// TestRelease: the program has less of its file in memory, and goes on.
func TestRelease(t *testing.T) {
	var r releaser
	if err := r.release(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, m := range r.program.mappings {
			// From Linux 5.14 on.
			if err := advise(m.start, m.end, unix.MADV_POPULATE_READ); err != nil {
				t.Fatal(err)
			}
		}
		before := residentFiles(t)
		if err := r.release(); err != nil {
			t.Fatal(err)
		}
		// What this needs itself is back, of a program that is not much larger.
		if after := residentFiles(t); after > before*4/5 {
			t.Errorf("%d kB of files are in memory, before there were %d", after, before)
		}
	}
}

// TestWrittenPagesStay, however often all others are let go of.
func TestWrittenPagesStay(t *testing.T) {
	m, memory := mapped(t, unix.PROT_READ|unix.PROT_WRITE)
	size := os.Getpagesize()
	written := map[int]bool{0: true, 3: true, len(memory)/size - 1: true}
	for page := range written {
		copy(memory[page*size:], "breakpoint")
	}
	if err := m.divide(); err != nil {
		t.Fatal(err)
	}
	pagemap := pagemap(t)
	for range 2 {
		if err := advise(m.start, m.end, unix.MADV_POPULATE_READ); err != nil {
			t.Fatal(err)
		}
		if err := m.release(pagemap); err != nil {
			t.Fatal(err)
		}
		for page, present := range presence(t, m) {
			if present != written[page] {
				t.Errorf("page %d is in memory: %v", page, present)
			}
		}
	}
	for page := range written {
		if !bytes.HasPrefix(memory[page*size:], []byte("breakpoint")) {
			t.Errorf("page %d has lost what was written", page)
		}
	}
}

// TestFaultsBringLittle: a page that is needed brings no more than its grain.
func TestFaultsBringLittle(t *testing.T) {
	m, memory := mapped(t, unix.PROT_READ)
	if err := m.divide(); err != nil {
		t.Fatal(err)
	}
	size := os.Getpagesize()
	needed := len(memory)/size/2 + 1
	if memory[needed*size] != byte(needed) {
		t.Fatal("not what was written to the file")
	}
	for page, present := range presence(t, m) {
		if near := page*size/max(grain, size) == needed*size/max(grain, size); present && !near || page == needed && !present {
			t.Errorf("page %d is in memory: %v", page, present)
		}
	}
}

// mapped maps a file of a MiB, each page of which begins with its number, at a multiple
// of what the kernel maps around a fault.
func mapped(t *testing.T, protection int) (mapping, []byte) {
	t.Helper()
	const length, aligned = 1 << 20, 64 << 10
	content := make([]byte, length)
	for at := 0; at < length; at += os.Getpagesize() {
		content[at] = byte(at / os.Getpagesize())
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	space, err := unix.Mmap(-1, 0, length+aligned, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(space) })
	start := unsafe.Pointer(&space[(aligned-uintptr(unsafe.Pointer(&space[0]))%aligned)%aligned])
	if _, err := unix.MmapPtr(int(f.Fd()), 0, start, length, protection, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
	return mapping{uintptr(start), uintptr(start) + length}, unsafe.Slice((*byte)(start), length)
}

func pagemap(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// presence tells which pages are in memory.
func presence(t *testing.T, m mapping) (pages []bool) {
	t.Helper()
	size := uintptr(os.Getpagesize())
	entries := make([]byte, (m.end-m.start)/size*entryBytes)
	if _, err := pagemap(t).ReadAt(entries, int64(m.start/size*entryBytes)); err != nil {
		t.Fatal(err)
	}
	for ; len(entries) > 0; entries = entries[entryBytes:] {
		pages = append(pages, binary.NativeEndian.Uint64(entries)&pagePresent != 0)
	}
	return pages
}

// residentFiles returns the kB of files that are in the program's memory.
func residentFiles(t *testing.T) (kb int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
