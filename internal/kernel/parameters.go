package kernel

import (
	"context"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// parameters keeps files of a namespace's parameters open, because some are
// looked at again and again: an open one is read by one system call, from any
// thread, where a visit takes a thread to the namespace and back, and can be watched.
// A file is the parameter's for as long as that exists; reading one whose device has
// gone, or has another name now, fails (fs/proc/proc_sysctl.c, grab_header), also if
// there is a device of that name again.
type parameters struct {
	watch *parameterWatch // nil: none can be watched

	mu    sync.Mutex
	files map[string]parameter // by name

	listening sync.Mutex
	listeners map[chan struct{}]bool
}

func newParameters(w *parameterWatch) *parameters {
	return &parameters{watch: w, files: map[string]parameter{}, listeners: map[chan struct{}]bool{}}
}

// parameter is an open file and its watch, -1 if it has none.
type parameter struct{ fd, wd int }

// keptParameters is how many are kept open for a namespace: a proxy's has six that are
// wanted, a function host's own some for each device, of which there may be
// thousands.
const keptParameters = 64

// read returns the values of the parameters whose files are open, and the names of
// the others.
func (p *parameters) read(names []string, values map[string]string) (rest []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		file, ok := p.files[name]
		if !ok {
			rest = append(rest, name)
			continue
		}
		value, err := readWhole(file.fd)
		if err != nil {
			p.shut(file)
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
	p.mu.Lock()
	defer p.mu.Unlock()
	file := parameter{fd, -1}
	_, have := p.files[name]
	keep := !have && len(p.files) < keptParameters
	if keep {
		file.wd = p.watch.add(fd, p) // first: what changes after it has been read is told
	}
	value, err := readWhole(fd)
	if err != nil || !keep {
		p.shut(file)
	} else {
		p.files[name] = file
	}
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return value, nil
}

// shut closes a file. p.mu is held.
func (p *parameters) shut(file parameter) {
	p.watch.remove(file.wd)
	_ = unix.Close(file.fd)
}

// follow sends hints until the context ends.
func (p *parameters) follow(ctx context.Context, in chan<- Hint) {
	written := make(chan struct{}, 1)
	p.listening.Lock()
	p.listeners[written] = true
	p.listening.Unlock()
	defer func() {
		p.listening.Lock()
		defer p.listening.Unlock()
		delete(p.listeners, written)
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-written:
			send(ctx, in, HintSysctls)
		}
	}
}

// tell says that a parameter has been written. It does not wait: one word that a
// listener has not heard yet is enough.
func (p *parameters) tell() {
	p.listening.Lock()
	defer p.listening.Unlock()
	for written := range p.listeners {
		select {
		case written <- struct{}{}:
		default:
		}
	}
}

// watched tells whether all of the parameters are.
func (p *parameters) watched(names []string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		if file, ok := p.files[name]; !ok || file.wd < 0 {
			return false
		}
	}
	return true
}

func (p *parameters) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, file := range p.files {
		p.shut(file)
	}
	clear(p.files)
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
