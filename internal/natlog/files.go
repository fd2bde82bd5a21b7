package natlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const (
	current = "nat.log"
	// parts is into how many files the log is divided: so much of it goes at once.
	parts = 8
)

// files is the log on disk: nat.log is being written, nat.log.N is older the
// smaller N is.
type files struct {
	dir  string
	part int64 // bytes

	mu   sync.Mutex
	file *os.File
	out  *bufio.Writer
	size int64
	next int // the N to come
	err  error
}

func openFiles(dir string, size int64) (*files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &files{dir: dir, part: size / parts, next: 1}
	old, err := f.old()
	if err != nil {
		return nil, err
	}
	if len(old) > 0 {
		f.next = old[len(old)-1] + 1
	}
	return f, f.open()
}

func (f *files) open() error {
	file, err := os.OpenFile(filepath.Join(f.dir, current), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.file, f.out, f.size = file, bufio.NewWriterSize(file, 64<<10), st.Size()
	return nil
}

// old lists the numbers of the older parts, ascending.
func (f *files) old() ([]int, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		var n int
		if rest, ok := strings.CutPrefix(e.Name(), current+"."); ok {
			if _, err := fmt.Sscanf(rest, "%d", &n); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func (f *files) numbered(n int) string { return filepath.Join(f.dir, fmt.Sprintf("%s.%d", current, n)) }

// append keeps the first error for flush.
func (f *files) append(r *Record) {
	line, err := json.Marshal(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.size+int64(len(line))+1 > f.part && f.size > 0 {
		err = f.rotate()
	}
	if err == nil {
		_, err = f.out.Write(append(line, '\n'))
		f.size += int64(len(line)) + 1
	}
	if f.err == nil {
		f.err = err
	}
}

// rotate begins a new file and removes the oldest ones.
func (f *files) rotate() error {
	if err := errors.Join(f.out.Flush(), f.file.Close(), os.Rename(filepath.Join(f.dir, current), f.numbered(f.next)), f.open()); err != nil {
		return err
	}
	f.next++
	old, err := f.old()
	if err != nil {
		return err
	}
	for _, n := range old[:max(0, len(old)-(parts-1))] {
		if err := os.Remove(f.numbered(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// flush writes what has gathered, and returns what went wrong since the last
// call. After a failure the writer begins anew: a full disk may have room again.
func (f *files) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := errors.Join(f.err, f.out.Flush())
	f.err = nil
	if err != nil {
		f.out.Reset(f.file)
	}
	return err
}

func (f *files) close() error {
	err := f.flush()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(err, f.file.Close())
}

// paths lists the parts, the oldest first.
func (f *files) paths() ([]string, error) {
	if err := f.flush(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, err := f.old()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, n := range old {
		all = append(all, f.numbered(n))
	}
	return append(all, filepath.Join(f.dir, current)), nil
}
