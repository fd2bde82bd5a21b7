package source

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

const (
	// directoryPoll finds what inotify cannot: changes on network file
	// systems, and a directory that was replaced as a whole.
	directoryPoll = 4 * time.Second
	// directorySettle lets a burst of writes end before the files are read.
	directorySettle = 50 * time.Millisecond
)

// Directory is static intent: manifests in a directory, no controller.
type Directory struct {
	path string
	pool netip.Prefix
	gate *Gate
	log  *slog.Logger

	mu      sync.Mutex
	problem error
	last    *intent.Set
	loaded  bool

	seen string // the files that the last load has found; of Run
}

// NewDirectory returns a source that offers the manifests in a directory to
// the gate, at once and whenever they change.
func NewDirectory(path string, pool netip.Prefix, gate *Gate, log *slog.Logger) *Directory {
	return &Directory{path: path, pool: pool, gate: gate, log: log}
}

// String names the source for status and logs.
func (d *Directory) String() string { return "directory " + d.path }

// Problem is why the directory cannot be read now; nil if it can.
func (d *Directory) Problem() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.problem
}

// Run follows the directory until the context ends. Files that do not decode
// leave the last good intent in force.
func (d *Directory) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", d.path, err)
	}
	defer func() { _ = w.Close() }()
	poll := time.NewTimer(rhythm.Until(directoryPoll))
	defer poll.Stop()
	settle := time.NewTimer(0)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			settle.Reset(directorySettle)
		case err := <-w.Errors:
			d.log.Warn("directory watch failed; polling goes on", "directory", d.path, "err", err)
		case <-poll.C:
			poll.Reset(rhythm.Until(directoryPoll))
			if d.Problem() != nil || files(d.path) != d.seen {
				d.load(w)
			}
		case <-settle.C:
			d.load(w)
		}
	}
}

// files tells what can be seen of a directory's files without reading them. It is the
// same while nobody has changed them.
func files(path string) string {
	var all strings.Builder
	add := func(name string, info fs.FileInfo, err error) {
		inode := uint64(0)
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				inode = st.Ino
			}
			fmt.Fprintln(&all, name, inode, info.Size(), info.ModTime().UnixNano())
			return
		}
		fmt.Fprintln(&all, name, err)
	}
	info, err := os.Stat(path)
	add(".", info, err)
	entries, err := os.ReadDir(path)
	if err != nil {
		fmt.Fprintln(&all, err)
	}
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(path, e.Name())) // of what a link leads to
		add(e.Name(), info, err)
	}
	return all.String()
}

func (d *Directory) load(w *fsnotify.Watcher) {
	d.seen = files(d.path) // first: what changes after it is read again
	// Adding again is how a directory that was made anew is followed; for
	// one that is watched it changes nothing.
	watchErr := w.Add(d.path)
	set, err := manifest.LoadDir(d.path, d.pool)
	if err == nil {
		err = watchErr
	}
	d.mu.Lock()
	before := d.problem
	d.problem = err
	changed := err == nil && (!d.loaded || !reflect.DeepEqual(d.last, set))
	if changed {
		d.last, d.loaded = set, true
	}
	d.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		d.log.Error("intent not taken over; the last good one stays in force", "directory", d.path, "err", err)
	case err == nil && before != nil:
		d.log.Info("intent can be read again", "directory", d.path)
	}
	if changed {
		d.gate.Offer(set)
	}
}
