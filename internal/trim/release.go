package trim

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// program is what a program has mapped of its own file, to read or to execute.
type program struct{ mappings []mapping }

// open finds the mappings, and divides them.
func open() (*program, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	found, err := mappings(f, self)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("/proc/self/maps has no mapping of %s that is only read", self)
	}
	p := &program{found}
	for _, m := range p.mappings {
		err = errors.Join(err, m.divide())
	}
	return p, err
}

// release lets go of garbage, and of the pages of the program's file. What the program
// goes on to need of these comes back at a minor fault for a few of them. It does no
// harm at any time.
func (p *program) release() error {
	debug.FreeOSMemory()
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	for _, m := range p.mappings {
		err = errors.Join(err, m.release(pagemap))
	}
	if err := errors.Join(err, pagemap.Close()); err != nil {
		return fmt.Errorf("release the pages of the program's file: %w", err)
	}
	return nil
}

// mapping is a part of the address space.
type mapping struct{ start, end uintptr }

// mappings reads /proc/PID/maps (proc(5)), and keeps what is mapped of a file to be
// read or executed, not to be written.
func mappings(maps io.Reader, of string) (found []mapping, err error) {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		m, permissions, path, err := parseMapping(lines.Text())
		if err != nil {
			return nil, err
		}
		if path == of && (permissions == "r--p" || permissions == "r-xp") {
			found = append(found, m)
		}
	}
	return found, lines.Err()
}

// parseMapping reads START-END PERMISSIONS OFFSET DEVICE INODE PATH.
func parseMapping(line string) (m mapping, permissions, path string, err error) {
	const fields = 6
	parts := make([]string, 0, fields)
	rest := line
	for len(parts) < fields-1 {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		parts = append(parts, part)
	}
	if _, err := fmt.Sscanf(parts[0], "%x-%x", &m.start, &m.end); err != nil {
		return m, "", "", fmt.Errorf("%q is no mapping: %w", line, err)
	}
	return m, parts[1], strings.TrimLeft(rest, " "), nil
}

// grain is how much the kernel maps at a fault. By itself it maps up to 16 pages around
// the one that is needed, as far as they are in its page cache (mm/memory.c,
// fault_around_bytes), and two thirds of them are needed by nobody here.
const grain = 16 << 10

// divide makes many mappings of one: the kernel maps nothing around a fault that is in
// another. What tells neighbors apart is whether a core dump has them, which says nothing
// about pages of a file: by default it has none (core(5)).
func (m mapping) divide() error {
	if os.Getpagesize() >= grain { // a fault brings one page, or two
		return nil
	}
	for at := (m.start + grain - 1) &^ (grain - 1); at+grain <= m.end; at += 2 * grain {
		if err := advise(at, at+grain, unix.MADV_DONTDUMP); err != nil {
			return err
		}
	}
	return nil
}

// Of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
	entryBytes  = 8
)

// release lets go of the pages that are the file's. One that has been written to is not:
// it has a relocation, or a breakpoint of a debugger or a probe, which would be lost.
func (m mapping) release(pagemap io.ReaderAt) error {
	size := uintptr(os.Getpagesize())
	entries := make([]byte, (m.end-m.start)/size*entryBytes)
	if _, err := pagemap.ReadAt(entries, int64(m.start/size*entryBytes)); err != nil {
		return fmt.Errorf("/proc/self/pagemap at %x: %w", m.start, err)
	}
	from := m.start // nothing from here on has been written to
	for at := m.start; at < m.end; at, entries = at+size, entries[entryBytes:] {
		entry := binary.NativeEndian.Uint64(entries)
		if entry&pageSwapped == 0 && (entry&pagePresent == 0 || entry&pageOfFile != 0) {
			continue
		}
		if err := advise(from, at, unix.MADV_DONTNEED); err != nil {
			return err
		}
		from = at + size
	}
	return advise(from, m.end, unix.MADV_DONTNEED)
}

// advise is madvise(2) for a part of the address space, which may be empty.
func advise(start, end uintptr, advice uintptr) error {
	if start == end {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, advice); errno != 0 {
		return fmt.Errorf("madvise %x-%x: %w", start, end, errno)
	}
	return nil
}
