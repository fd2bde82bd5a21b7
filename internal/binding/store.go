// Package binding keeps the bindings of a function host's pods on disk, so that
// they outlive the agent: one file for each pod, named by its address.
//
// A write replaces the file in one step and does not wait for the disk. What a
// power failure could tear apart is of no use after it: no pod survives the
// machine. So a file carries the boot it is of, and is removed after another.
package binding

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const (
	suffix  = ".json"
	newMark = ".new" // of a file that is being written
	// bootID changes with every boot (Documentation/admin-guide/sysctl/kernel.rst).
	bootID = "/proc/sys/kernel/random/boot_id"
)

// Store is a directory of bindings. It is not safe for concurrent use on one pod.
type Store struct {
	dir  string
	boot string
}

// record is a file's content.
type record struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`
	intent.Binding
}

// recordVersion is the form of a record.
const recordVersion = 1

// Open returns the store in a directory, which it makes.
func Open(dir string) (*Store, error) {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return nil, fmt.Errorf("bindings: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("bindings: %w", err)
	}
	return &Store{dir: dir, boot: strings.TrimSpace(string(boot))}, nil
}

// Load returns all bindings, by address. A record that cannot be read gives a
// binding without attachments, and a problem: the pod is known, so it must not
// be let go. Files of another boot, and those that a crash has left half
// written, are removed. An error means that nothing is known.
func (s *Store) Load() (list []*intent.Binding, problems []error, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("bindings: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(e.Name(), newMark) {
			if err := os.Remove(path); err != nil {
				problems = append(problems, fmt.Errorf("left half written: %w", err))
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), suffix)
		pod, err := netip.ParseAddr(name)
		if !ok || err != nil {
			problems = append(problems, fmt.Errorf("%s is not a binding's file; move it away", path))
			continue
		}
		b, stale, err := s.read(path, pod)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w; pod %s is refused until it is bound again, or unbound", path, err, pod))
			b = &intent.Binding{Pod: pod}
		case stale:
			if err := os.Remove(path); err != nil {
				problems = append(problems, fmt.Errorf("of another boot: %w", err))
			}
			continue
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b *intent.Binding) int { return a.Pod.Compare(b.Pod) })
	return list, problems, nil
}

func (s *Store) read(path string, pod netip.Addr) (b *intent.Binding, stale bool, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, false, err
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, false, fmt.Errorf("cannot be read: %w", err)
	}
	// Not More, which a closing bracket ends.
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, false, errors.New("cannot be read: something follows the record")
	}
	switch {
	case r.Version != recordVersion:
		return nil, false, fmt.Errorf("is of version %d; this release reads %d", r.Version, recordVersion)
	case r.Boot != s.boot:
		return nil, true, nil
	case r.Pod != pod:
		return nil, false, fmt.Errorf("is of pod %s", r.Pod)
	case len(r.Attachments) == 0:
		return nil, false, errors.New("names no attachment")
	}
	for _, a := range r.Attachments {
		if !intent.ValidName(a.Name) || len(a.CIDRs) == 0 || slices.ContainsFunc(a.CIDRs, func(c netip.Prefix) bool { return !c.IsValid() || c != c.Masked() }) {
			return nil, false, fmt.Errorf("attachment %q is not one", a.Name)
		}
	}
	return &r.Binding, false, nil
}

func (s *Store) path(pod netip.Addr) string { return filepath.Join(s.dir, pod.String()+suffix) }

// Put keeps a binding, in place of what is kept for its pod.
func (s *Store) Put(b *intent.Binding) error {
	text, err := json.Marshal(record{Version: recordVersion, Boot: s.boot, Binding: *b})
	if err != nil {
		return fmt.Errorf("keep the binding of pod %s: %w", b.Pod, err)
	}
	path := s.path(b.Pod)
	if err := replace(path, text); err != nil {
		return fmt.Errorf("keep the binding of pod %s: %w", b.Pod, errors.Join(err, remove(path+newMark)))
	}
	return nil
}

// replace writes a file in one step. A pod waits for it: package os would ask the
// kernel six times more, to have a poller look at a file that needs none.
func replace(path string, text []byte) error {
	fail := func(op string, err error) error { return &fs.PathError{Op: op, Path: path + newMark, Err: err} }
	fd, err := unix.Open(path+newMark, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail("open", err)
	}
	n, err := unix.Write(fd, text)
	if err == nil && n < len(text) {
		err = unix.ENOSPC // what the next one would say
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fail("write", err)
	}
	if err := unix.Rename(path+newMark, path); err != nil {
		return fail("rename", err)
	}
	return nil
}

// Delete forgets a pod's binding. One that is absent is success.
func (s *Store) Delete(pod netip.Addr) error {
	if err := remove(s.path(pod)); err != nil {
		return fmt.Errorf("forget the binding of pod %s: %w", pod, err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
