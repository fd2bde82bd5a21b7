// Package source brings intent to a node: from a directory of manifests, or
// from the controller; past a gate that holds a suspicious loss back and keeps
// the last good intent on disk, so that neither a restart nor an absent
// controller loses it.
package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// ErrNothingHeld is returned by Gate.Confirm when no intent is held.
var ErrNothingHeld = errors.New("no intent is held back")

// Gate keeps the last good intent. It is safe for concurrent use.
type Gate struct {
	file string
	log  *slog.Logger
	out  func(*intent.Set)

	mu       sync.Mutex
	accepted *intent.Set // nil until the first
	held     *intent.Set // nil if none
	missing  []string    // what accepted has and held has not
}

// NewGate returns a gate that calls out, one call at a time, with every intent
// that it accepts, and keeps that in file.
func NewGate(file string, log *slog.Logger, out func(*intent.Set)) *Gate {
	return &Gate{file: file, log: log, out: out}
}

// Restore accepts the intent that an earlier run kept, if there is one; it
// reports whether there was. A file that cannot be read is set aside beside
// itself with the suffix ".corrupt", and that is an error.
func (g *Gate) Restore() (bool, error) {
	b, err := os.ReadFile(g.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var set *intent.Set
	if err == nil {
		set, err = intent.DecodeSet(b)
	}
	if err != nil {
		if mv := os.Rename(g.file, g.file+".corrupt"); mv == nil {
			err = fmt.Errorf("set aside as %s.corrupt: %w", g.file, err)
		}
		return false, fmt.Errorf("last intent cannot be restored from %s: %w", g.file, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accepted = set
	g.out(set)
	return true, nil
}

// Offer hands a whole new intent to the gate. It is accepted, unless more than
// a third of all attachments have vanished from it at once without having been
// deleted by an operator: then the last good one stays in force until Confirm,
// or until a complete one is offered.
func (g *Gate) Offer(set *intent.Set) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.accepted != nil {
		set = set.Retain(g.accepted)
		missing := intent.Vanished(g.accepted, set)
		if 3*len(missing) > len(g.accepted.Attachments) {
			if g.held == nil {
				g.log.Warn("intent held back: too many attachments vanished at once; confirm with `vpcproxyctl node confirm-removal` if that is meant",
					"vanished", len(missing), "of", len(g.accepted.Attachments))
			}
			g.held, g.missing = set, missing
			return
		}
	}
	if g.held != nil {
		g.log.Info("intent is complete again, nothing is held back")
	}
	g.accept(set)
}

func (g *Gate) accept(set *intent.Set) {
	g.accepted, g.held, g.missing = set, nil, nil
	if err := g.keep(set); err != nil {
		g.log.Warn("intent is in force but cannot be kept for a restart", "err", err)
	}
	g.out(set)
}

// Confirm accepts the intent that is held, and returns the attachments that
// are given up by it; ErrNothingHeld if there is none.
func (g *Gate) Confirm() ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		return nil, ErrNothingHeld
	}
	removed := g.missing
	g.log.Warn("removal of attachments confirmed", "removed", removed)
	g.accept(g.held)
	return removed, nil
}

// Held says why an intent is held back, or "".
func (g *Gate) Held() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		return ""
	}
	shown := g.missing
	more := ""
	if len(shown) > 5 {
		shown, more = shown[:5], fmt.Sprintf(" and %d more", len(g.missing)-5)
	}
	return fmt.Sprintf("%d of %d attachments vanished at once (%s%s)",
		len(g.missing), len(g.accepted.Attachments), strings.Join(shown, ", "), more)
}

// Accepted returns the intent in force, or nil before the first.
func (g *Gate) Accepted() *intent.Set {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.accepted
}

// keep writes the intent so that a crash leaves the old file or the new one.
// It holds GRE keys: nobody but the agent may read it.
func (g *Gate) keep(set *intent.Set) (err error) {
	b, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(g.file), filepath.Base(g.file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return os.Rename(f.Name(), g.file)
}
