package nat

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// memory is a Backend that holds one namespace's rules.
type memory struct {
	held   RuleSet
	err    error
	reads  int
	writes int
	survey Survey
}

func (m *memory) Read(context.Context, string) (RuleSet, error) {
	m.reads++
	return m.held, m.err
}

func (m *memory) Write(_ context.Context, _ string, want RuleSet) error {
	m.writes++
	if m.err == nil {
		m.held = want
	}
	return m.err
}

func (m *memory) Counters(context.Context, string) ([]Counter, error) { return nil, m.err }

func (m *memory) Survey(string) Survey { return m.survey }

func TestExclusiveRemovesFromOthers(t *testing.T) {
	want := Render(desired.NAT{Guarded: []string{"vpx-+"}})
	old := &memory{held: Render(desired.NAT{Guarded: []string{"vpx-a"}}), survey: Survey{MasqAgents: []MasqAgent{{}}, Before: []string{"x"}}}
	now := &memory{survey: Survey{Refusing: []string{"y"}}}
	e := NewExclusive(now, Other{"old", old})
	have, err := e.Read(t.Context(), "")
	if d := Diff(want, have); err != nil || d == "" {
		t.Fatalf("Diff = %q, %v; want that rules are missing", d, err)
	}
	if err := now.Write(t.Context(), "", want); err != nil {
		t.Fatal(err)
	}
	have, _ = e.Read(t.Context(), "")
	if d := Diff(want, have); !strings.Contains(d, "left over: rules in old") {
		t.Errorf("Diff = %q, want what is left over", d)
	}
	for range 2 {
		if err := e.Write(t.Context(), "", want); err != nil {
			t.Fatal(err)
		}
	}
	have, _ = e.Read(t.Context(), "")
	if d := Diff(want, have); d != "" || !old.held.Empty() || old.writes != 1 {
		t.Errorf("Diff = %q, the other holds %v after %d writes", d, old.held, old.writes)
	}
	if s := e.Survey(""); len(s.MasqAgents) != 1 || len(s.Refusing) != 1 || len(s.Before) != 0 {
		t.Errorf("Survey = %+v", s)
	}
}

func TestExclusiveIsUnknownIfOneIs(t *testing.T) {
	broken := &memory{err: errors.New("broken")}
	for _, e := range []*Exclusive{NewExclusive(broken, Other{"other", &memory{}}), NewExclusive(&memory{}, Other{"other", broken})} {
		if _, err := e.Read(t.Context(), ""); err == nil {
			t.Error("Read succeeded: unknown is not none")
		}
		if err := e.Write(t.Context(), "", RuleSet{}); err == nil {
			t.Error("Write succeeded")
		}
	}
}

func TestExclusiveLooksOnce(t *testing.T) {
	other := &memory{}
	e := NewExclusive(&memory{}, Other{"other", other})
	for netns, want := range map[string]int{"": 3, "vpx-a": 1} {
		other.reads = 0
		for range 3 {
			if _, err := e.Read(t.Context(), netns); err != nil {
				t.Fatal(err)
			}
		}
		if other.reads != want {
			t.Errorf("%q: the other was read %d times, want %d", netns, other.reads, want)
		}
	}
}
