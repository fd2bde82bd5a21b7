package trim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Release lets go of garbage, and of the pages of the program's file. What the program
// goes on to need of these comes back at a minor fault for some of them at a time. It
// does no harm at any time.
func Release() error {
	debug.FreeOSMemory()
	if err := release(); err != nil {
		return fmt.Errorf("release the pages of the program's file: %w", err)
	}
	return nil
}

func release() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	list, err := mappings(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	found := false
	for _, m := range list {
		if m.path != self || !m.clean() {
			continue
		}
		found = true
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno)
		}
	}
	if !found {
		return fmt.Errorf("/proc/self/smaps has no mapping of %s that nobody has written to", self)
	}
	return nil
}

// mapping is one of /proc/PID/smaps (proc(5)).
type mapping struct {
	start, end  uintptr
	permissions string
	path        string
	pages       string // that are not the file's, as "0 kB"
}

// clean tells whether all pages are the file's, and stay so: where there are others,
// they have been written to before the mapping was made read-only, as those of
// relocations are, and would be lost.
func (m mapping) clean() bool {
	return (m.permissions == "r--p" || m.permissions == "r-xp") && m.pages == "0 kB"
}

// mappings reads /proc/PID/smaps: a line for each mapping, then what is known of it.
func mappings(r io.Reader) (all []mapping, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if strings.HasSuffix(key, ":") {
			if key == "Anonymous:" && len(all) > 0 {
				all[len(all)-1].pages = strings.TrimSpace(value)
			}
			continue
		}
		m, err := heading(lines.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// heading reads START-END PERMISSIONS OFFSET DEVICE INODE PATH.
func heading(line string) (m mapping, err error) {
	const fields = 6
	parts := make([]string, 0, fields)
	rest := line
	for len(parts) < fields-1 {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		parts = append(parts, part)
	}
	if _, err := fmt.Sscanf(parts[0], "%x-%x", &m.start, &m.end); err != nil {
		return mapping{}, fmt.Errorf("%q is no mapping: %w", line, err)
	}
	m.permissions, m.path = parts[1], strings.TrimLeft(rest, " ")
	return m, nil
}
