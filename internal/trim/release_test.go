package trim

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMappings(t *testing.T) {
	got, err := mappings(strings.NewReader(`00400000-01a63000 r-xp 00000000 fe:00 10010808                           /usr/sbin/a program (deleted)
Rss:                8956 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f5a5c000000-7f5a5c021000 rw-p 00000000 00:00 0 
Anonymous:            12 kB
7ffd0-7ffd1 r--p 00000000 fe:00 7 /usr/sbin/relocated
Anonymous:             4 kB
`))
	want := []mapping{
		{0x400000, 0x1a63000, "r-xp", "/usr/sbin/a program (deleted)", "0 kB"},
		{0x7f5a5c000000, 0x7f5a5c021000, "rw-p", "", "12 kB"},
		{0x7ffd0, 0x7ffd1, "r--p", "/usr/sbin/relocated", "4 kB"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for i, clean := range []bool{true, false, false} {
		if want[i].clean() != clean {
			t.Errorf("%+v: clean is %v", want[i], !clean)
		}
	}
	if got, err := mappings(strings.NewReader("nonsense r--p\n")); err == nil {
		t.Errorf("nonsense was read as %+v", got)
	}
}

// TestRelease: the program has less of its file in memory, and goes on.
func TestRelease(t *testing.T) {
	touch(t)
	before := residentFiles(t)
	if err := Release(); err != nil {
		t.Fatal(err)
	}
	// What this needs itself is back, of a program that is not much larger.
	if after := residentFiles(t); after > before*4/5 {
		t.Errorf("%d kB of files are in memory, before there were %d", after, before)
	}
}

// touch reads all of the program's file that is mapped read-only.
func touch(t *testing.T) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	list, err := mappings(f)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.path == self && m.clean() {
			// From Linux 5.14 on.
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_POPULATE_READ); errno != 0 {
				t.Fatalf("%+v: %v", m, errno)
			}
		}
	}
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
