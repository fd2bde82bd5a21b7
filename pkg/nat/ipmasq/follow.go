package ipmasq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// settle lets the events of one change, such as the exchange of a ConfigMap's
// symbolic link, end before the file is read.
const settle = 50 * time.Millisecond

// Follower follows one configuration file. Load comes first, then Run.
type Follower struct {
	path, state string
	options     Options
	log         *slog.Logger
	take        func(rules []desired.Masquerade, problem string)

	current *Config // nil before the first good one
	problem error
	told    bool
}

// NewFollower returns a Follower of the file at path. take is told the rules,
// and what is wrong with the file ("" if nothing), by Load and whenever either
// changes; nil rules mean that no good configuration is known yet. The last good
// text is kept in the file state, so that a restart beside a broken file
// changes nothing.
func NewFollower(path, state string, o Options, log *slog.Logger, take func([]desired.Masquerade, string)) *Follower {
	return &Follower{path: path, state: state, options: o, log: log, take: take}
}

// String names the file.
func (f *Follower) String() string { return "ip-masq-agent configuration " + f.path }

// Load reads the file for the first time, so that what it says is known before
// rules are compared with it. A file that is not there means the defaults, as it
// does upstream; one that cannot be used leaves the last good one in force.
func (f *Follower) Load() {
	f.restore()
	f.load()
}

// Run follows the file until the context ends.
func (f *Follower) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.path, err)
	}
	defer func() { _ = w.Close() }()
	resync := time.NewTimer(0)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			resync.Reset(settle)
		case err := <-w.Errors:
			f.log.Warn("file watch failed; reading at intervals goes on", "file", f.path, "err", err)
		case <-resync.C:
			// Added again each time: the directory may have been made
			// anew, or may come later. Reading at intervals does without.
			_ = w.Add(filepath.Dir(f.path))
			resync.Reset(f.load())
		}
	}
}

// restore takes up the last good configuration of an earlier run.
func (f *Follower) restore() {
	text, err := os.ReadFile(f.state)
	if err != nil {
		return
	}
	if c, err := Parse(text, f.options); err == nil {
		f.current = &c
	}
}

// load reads the file once and returns the time until the next reading.
func (f *Follower) load() time.Duration {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = nil, nil
	}
	var c Config
	if err == nil {
		c, err = Parse(text, f.options)
	}
	if err != nil {
		return f.refuse(fmt.Errorf("%s: %w", f.path, err))
	}
	return f.accept(c, text)
}

func (f *Follower) refuse(err error) time.Duration {
	first := f.problem == nil || f.problem.Error() != err.Error()
	f.problem = err
	wait := defaultResync
	rest := "nothing is masqueraded until it is mended"
	if f.current != nil {
		wait, rest = f.current.ResyncInterval, "the last good one stays in force"
	}
	if first {
		f.log.Error("ip-masq-agent configuration not taken over; "+rest, "err", err)
		f.tell(fmt.Sprintf("ip-masq-agent configuration not taken over, %s: %v", rest, err))
	}
	return wait
}

func (f *Follower) accept(c Config, text []byte) time.Duration {
	recovered := f.problem != nil
	changed := f.current == nil || !f.current.equal(c)
	first := !f.told
	f.problem, f.current = nil, &c
	if changed || recovered || first {
		f.log.Info("ip-masq-agent configuration in force", "file", f.path, "keep", c.NonMasqueradeCIDRs,
			"masqLinkLocal", c.MasqLinkLocal, "masqLinkLocalIPv6", c.MasqLinkLocalIPv6, "resyncInterval", c.ResyncInterval)
		if err := save(f.state, text); err != nil {
			f.log.Warn("ip-masq-agent configuration cannot be kept for the next start", "err", err)
		}
		f.tell("")
	}
	return c.ResyncInterval
}

func (f *Follower) tell(problem string) {
	f.told = true
	var rules []desired.Masquerade
	if f.current != nil {
		rules = f.current.Masquerade()
	}
	f.take(rules, problem)
}

func (c Config) equal(d Config) bool {
	if len(c.NonMasqueradeCIDRs) != len(d.NonMasqueradeCIDRs) {
		return false
	}
	for i, p := range c.NonMasqueradeCIDRs {
		if p != d.NonMasqueradeCIDRs[i] {
			return false
		}
	}
	return c.MasqLinkLocal == d.MasqLinkLocal && c.MasqLinkLocalIPv6 == d.MasqLinkLocalIPv6 && c.ResyncInterval == d.ResyncInterval && c.ipv6 == d.ipv6
}

// save writes a file by renaming, so that it is whole or not there.
func save(path string, text []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
