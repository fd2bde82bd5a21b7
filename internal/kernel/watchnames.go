package kernel

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchNames hints at names that appear in dir or vanish from it. The end of a
// namespace has no event of its own, and while we hold it open it has no end
// either. Where the user's inotify instances are used up
// (fs.inotify.max_user_instances) the next refresh finds out.
func watchNames(ctx context.Context, dir string, in chan<- Hint) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "inotify")
	stop := context.AfterFunc(ctx, func() { _ = file.Close() })
	defer func() {
		if stop() {
			_ = file.Close()
		}
	}()
	// The directory comes with the first namespace: watch for it as well.
	parent, base := filepath.Split(filepath.Clean(dir))
	if _, err := unix.InotifyAddWatch(fd, parent, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		return
	}
	inside := addNamesWatch(fd, dir)
	buffer := make([]byte, 16<<10)
	for {
		n, err := file.Read(buffer)
		if err != nil {
			return
		}
		hint := false
		for b := buffer[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask := int(int32(native.Uint32(b))), native.Uint32(b[4:])
			end := min(unix.SizeofInotifyEvent+int(native.Uint32(b[12:])), len(b))
			name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
			b = b[end:]
			if wd != inside && name == base {
				inside = addNamesWatch(fd, dir)
			}
			hint = hint || wd == inside || name == base || mask&unix.IN_Q_OVERFLOW != 0
		}
		if hint {
			send(ctx, in, HintNamespaces)
		}
	}
}

// addNamesWatch returns -1 while there is no such directory.
func addNamesWatch(fd int, dir string) int {
	wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE|unix.IN_ONLYDIR)
	if err != nil {
		return -1
	}
	return wd
}
