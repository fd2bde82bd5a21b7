package source

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// setOf makes a set of attachments by number.
func setOf(numbers ...int) *intent.Set {
	s := &intent.Set{Pool: intent.DefaultPool}
	for _, i := range numbers {
		s.Put(&intent.Attachment{
			TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
			Metadata: intent.Metadata{Name: fmt.Sprintf("a%d", i)},
		})
	}
	return s
}

type sink struct{ got []*intent.Set }

func (s *sink) take(set *intent.Set) { s.got = append(s.got, set) }

func (s *sink) last() *intent.Set {
	if len(s.got) == 0 {
		return nil
	}
	return s.got[len(s.got)-1]
}

func TestGateHoldsALoss(t *testing.T) {
	for _, tc := range []struct {
		name          string
		before, after *intent.Set
		removed       []int
		held          bool
	}{
		{name: "one of four", before: setOf(1, 2, 3, 4), after: setOf(1, 2, 3)},
		{name: "exactly a third", before: setOf(1, 2, 3), after: setOf(1, 2)},
		{name: "two of four", before: setOf(1, 2, 3, 4), after: setOf(1, 2), held: true},
		{name: "everything", before: setOf(1, 2, 3), after: setOf(), held: true},
		{name: "the only one", before: setOf(1), after: setOf(), held: true},
		{name: "the only one, deleted by an operator", before: setOf(1), after: setOf(), removed: []int{1}},
		{name: "all deleted but one that vanished", before: setOf(1, 2, 3), after: setOf(), removed: []int{1, 2}},
		{name: "replaced by others", before: setOf(1, 2, 3), after: setOf(4, 5, 6), held: true},
		{name: "growth", before: setOf(1), after: setOf(1, 2, 3)},
		{name: "from nothing", before: setOf(), after: setOf()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out sink
			g := NewGate(filepath.Join(t.TempDir(), "intent.json"), discard(), out.take)
			g.Offer(tc.before)
			tc.after.Removed = setOf(tc.removed...).Attachments
			g.Offer(tc.after)
			if held := g.Held() != ""; held != tc.held {
				t.Fatalf("held %q, want held=%v", g.Held(), tc.held)
			}
			want := tc.after
			if tc.held {
				want = tc.before
			}
			if out.last() != want || g.Accepted() != want {
				t.Errorf("in force is %d attachments, want %d", len(out.last().Attachments), len(want.Attachments))
			}
		})
	}
}

func TestGateConfirm(t *testing.T) {
	var out sink
	g := NewGate(filepath.Join(t.TempDir(), "intent.json"), discard(), out.take)
	if _, err := g.Confirm(); !errors.Is(err, ErrNothingHeld) {
		t.Errorf("with nothing held: %v", err)
	}
	g.Offer(setOf(1, 2, 3))
	g.Offer(setOf(3))
	if h := g.Held(); !strings.Contains(h, "2 of 3 attachments vanished at once (a1, a2)") {
		t.Errorf("held: %q", h)
	}
	removed, err := g.Confirm()
	if err != nil || !slices.Equal(removed, []string{"a1", "a2"}) {
		t.Fatalf("confirm: %v, %v", removed, err)
	}
	if g.Held() != "" || len(out.last().Attachments) != 1 {
		t.Errorf("after confirm: held %q, %d attachments", g.Held(), len(out.last().Attachments))
	}
}

func TestGateLetsGoWhenTheIntentIsCompleteAgain(t *testing.T) {
	var out sink
	g := NewGate(filepath.Join(t.TempDir(), "intent.json"), discard(), out.take)
	g.Offer(setOf(1, 2, 3))
	g.Offer(setOf())
	whole := setOf(1, 2, 3, 4)
	g.Offer(whole)
	if g.Held() != "" || out.last() != whole {
		t.Error("a complete intent did not end the hold")
	}
}

func TestGateKeepsIntentForTheNextRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "intent.json")
	var first sink
	NewGate(file, discard(), first.take).Offer(setOf(1, 2, 3))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file holds keys: %v, %v", info.Mode(), err)
	}
	var second sink
	g := NewGate(file, discard(), second.take)
	if ok, err := g.Restore(); !ok || err != nil {
		t.Fatalf("restore: %v, %v", ok, err)
	}
	if len(second.last().Attachments) != 3 {
		t.Errorf("restored %d attachments", len(second.last().Attachments))
	}
	// The guard holds across the restart, too.
	g.Offer(setOf())
	if g.Held() == "" {
		t.Error("an empty intent after a restart was taken at face value")
	}
}

func TestGateRestoreOfNothingAndOfGarbage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "intent.json")
	var out sink
	g := NewGate(file, discard(), out.take)
	if ok, err := g.Restore(); ok || err != nil {
		t.Errorf("no file: %v, %v", ok, err)
	}
	if err := os.WriteFile(file, []byte(`{"attachments":[{"meta`), 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, err := g.Restore(); ok || err == nil {
		t.Errorf("truncated file: %v, %v", ok, err)
	}
	if _, err := os.Stat(file + ".corrupt"); err != nil {
		t.Errorf("truncated file was not set aside: %v", err)
	}
	if len(out.got) != 0 {
		t.Error("garbage was taken for intent")
	}
	g.Offer(setOf(1))
	if len(out.got) != 1 {
		t.Error("the gate does not work after garbage")
	}
}
