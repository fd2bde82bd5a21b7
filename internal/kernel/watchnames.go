package kernel

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nameWatch hears of names that appear in a directory or vanish from it. The end
// of a namespace has no event of its own, and while we hold it open it has no
// end either.
type nameWatch struct {
	dir    string
	fd     int
	file   *os.File
	inside int // the directory's watch, -1 while there is no directory
}

// newNameWatch returns nil where it cannot watch, for instance because the user's
// inotify instances are used up (fs.inotify.max_user_instances): the next refresh
// finds out as well.
func newNameWatch(dir string) *nameWatch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	w := &nameWatch{dir: filepath.Clean(dir), fd: fd, file: os.NewFile(uintptr(fd), "inotify"), inside: -1}
	// The directory comes with the first namespace: watch for it as well.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(w.dir), unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		_ = w.file.Close()
		return nil
	}
	w.enter()
	return w
}

func (w *nameWatch) enter() {
	inside, err := unix.InotifyAddWatch(w.fd, w.dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE|unix.IN_ONLYDIR)
	if err != nil {
		inside = -1
	}
	w.inside = inside
}

// follow sends hints until the context ends.
func (w *nameWatch) follow(ctx context.Context, in chan<- Hint) {
	stop := context.AfterFunc(ctx, func() { _ = w.file.Close() })
	defer func() {
		if stop() {
			_ = w.file.Close()
		}
	}()
	buffer := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			return
		}
		if w.concerned(buffer[:n]) {
			send(ctx, in, HintNamespaces)
		}
	}
}

// concerned reads a run of struct inotify_event (inotify(7)).
func (w *nameWatch) concerned(b []byte) bool {
	concerned := false
	for len(b) >= unix.SizeofInotifyEvent {
		wd, mask := int(int32(native.Uint32(b))), native.Uint32(b[4:])
		end := min(unix.SizeofInotifyEvent+int(native.Uint32(b[12:])), len(b))
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		b = b[end:]
		switch {
		case wd == w.inside, mask&unix.IN_Q_OVERFLOW != 0:
			concerned = true
		case name == filepath.Base(w.dir):
			w.enter()
			concerned = true
		}
	}
	return concerned
}
