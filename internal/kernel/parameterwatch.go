package kernel

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// parameterWatch hears of parameters that somebody writes: a file of /proc/sys has
// inotify(7) events like any other, while it is open. A write through another mount of
// /proc is to another file, and not heard of.
type parameterWatch struct {
	fd   int
	file *os.File

	mu sync.Mutex
	of map[int]*parameters // by watch
}

// newParameterWatch returns nil where it cannot watch, for instance because the user's
// inotify instances are used up (fs.inotify.max_user_instances).
func newParameterWatch() *parameterWatch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	w := &parameterWatch{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), of: map[int]*parameters{}}
	go w.follow()
	return w
}

// close ends the watch. No add or remove may follow.
func (w *parameterWatch) close() error {
	if w == nil {
		return nil
	}
	return w.file.Close()
}

// add has those told who listen to p when an open file is written, for as long as it is
// open. It returns the watch, or -1 if there can be none.
func (w *parameterWatch) add(fd int, p *parameters) int {
	if w == nil {
		return -1
	}
	w.mu.Lock() // before the first event of it is read
	defer w.mu.Unlock()
	wd, err := unix.InotifyAddWatch(w.fd, fmt.Sprintf("/proc/self/fd/%d", fd), unix.IN_MODIFY)
	if err != nil {
		return -1
	}
	w.of[wd] = p
	return wd
}

func (w *parameterWatch) remove(wd int) {
	if w == nil || wd < 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.of, wd)
	_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) //nolint:gosec // the parameter may have gone, and its watch with it
}

func (w *parameterWatch) follow() {
	buffer := make([]byte, 4<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			return
		}
		w.tell(buffer[:n])
	}
}

// tell reads a run of struct inotify_event, whose names are empty.
func (w *parameterWatch) tell(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; len(b) >= unix.SizeofInotifyEvent; b = b[min(unix.SizeofInotifyEvent+int(native.Uint32(b[12:])), len(b)):] {
		wd, mask := int(int32(native.Uint32(b))), native.Uint32(b[4:]) //nolint:gosec // as the kernel has it
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			for _, p := range w.of {
				p.tell()
			}
		case mask&unix.IN_MODIFY != 0 && w.of[wd] != nil:
			w.of[wd].tell()
		}
	}
}
