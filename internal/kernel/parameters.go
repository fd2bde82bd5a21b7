package kernel

import (
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// parameters keeps files of a namespace's parameters open, because some are
// looked at twice a second: an open one is read by one system call, from any
// thread, where a visit takes a thread to the namespace and back. A file is the
// parameter's for as long as that exists; reading one whose device has gone, or
// has another name now, fails (fs/proc/proc_sysctl.c, grab_header), also if there is
// a device of that name again.
type parameters struct {
	mu    sync.Mutex
	files map[string]int // descriptors by name
}

// keptParameters is how many are kept open for a namespace: a proxy's has five that are
// polled, a function host's own one for each device, of which there may be
// thousands.
const keptParameters = 64

// read returns the values of the parameters whose files are open, and the names of
// the others.
func (p *parameters) read(names []string, values map[string]string) (rest []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		fd, ok := p.files[name]
		if !ok {
			rest = append(rest, name)
			continue
		}
		value, err := readWhole(fd)
		if err != nil {
			_ = unix.Close(fd)
			delete(p.files, name)
			rest = append(rest, name)
			continue
		}
		values[name] = value
	}
	return rest
}

// load is readSysctl that keeps the file. The calling thread must be in the namespace.
func (p *parameters) load(dir, name string) (string, error) {
	path, err := sysctlPath(dir, name)
	if err != nil {
		return "", err
	}
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	value, err := readWhole(fd)
	if err != nil {
		_ = unix.Close(fd)
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	p.keep(name, fd)
	return value, nil
}

func (p *parameters) keep(name string, fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.files[name]; ok || len(p.files) >= keptParameters {
		_ = unix.Close(fd)
		return
	}
	if p.files == nil {
		p.files = map[string]int{}
	}
	p.files[name] = fd
}

func (p *parameters) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range p.files {
		_ = unix.Close(fd)
	}
	p.files = nil
}

// readWhole reads a file of /proc/sys from its beginning: most are a few bytes long.
func readWhole(fd int) (string, error) {
	var value []byte
	for {
		var part [4096]byte
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, part[:], int64(len(value))) })
		if err != nil {
			return "", err
		}
		value = append(value, part[:n]...)
		if n < len(part) {
			return strings.TrimSpace(string(value)), nil
		}
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR { //nolint:errorlint // an errno as it is
			return n, err
		}
	}
}
