package nat

import (
	"context"
	"fmt"
	"sync"
)

// Exclusive is a Backend that writes by one backend and removes what an earlier
// run has left in others, so that a host can be switched over.
type Exclusive struct {
	inUse  Backend
	others []Other

	mu    sync.Mutex
	clean map[string]bool // namespaces in which others hold nothing
}

// Other is a backend that is not in use.
type Other struct {
	Name string
	Backend
}

var (
	_ Backend  = (*Exclusive)(nil)
	_ Surveyor = (*Exclusive)(nil)
)

// NewExclusive returns an Exclusive. It is safe for concurrent use if all
// backends are.
func NewExclusive(inUse Backend, others ...Other) *Exclusive {
	return &Exclusive{inUse: inUse, others: others, clean: map[string]bool{}}
}

// Read implements Backend. What others hold is left over.
func (e *Exclusive) Read(ctx context.Context, netns string) (RuleSet, error) {
	s, err := e.inUse.Read(ctx, netns)
	if err != nil {
		return s, err
	}
	if e.isClean(netns) && netns != "" {
		return s, nil
	}
	clean := true
	for _, o := range e.others {
		left, err := o.Read(ctx, netns)
		if err != nil {
			return s, err
		}
		if !left.Empty() {
			clean = false
			s.Strays = append(s.Strays, fmt.Sprintf("rules in %s, which is not in use", o.Name))
		}
	}
	e.setClean(netns, clean)
	return s, nil
}

// isClean says whether others are known to hold nothing. Only an earlier run of
// ours has written by them, so that stays true; in the agent's own namespace they
// are looked at again all the same, for Survey.
func (e *Exclusive) isClean(netns string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clean[netns]
}

func (e *Exclusive) setClean(netns string, clean bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if clean {
		e.clean[netns] = true
	} else {
		delete(e.clean, netns)
	}
}

// Write implements Backend. Others are emptied last, so that there are never no
// rules at all.
func (e *Exclusive) Write(ctx context.Context, netns string, want RuleSet) error {
	if err := e.inUse.Write(ctx, netns, want); err != nil {
		return err
	}
	if e.isClean(netns) && !want.Empty() {
		return nil
	}
	for _, o := range e.others {
		left, err := o.Read(ctx, netns)
		if err == nil && !left.Empty() {
			err = o.Write(ctx, netns, RuleSet{})
		}
		if err != nil {
			return err
		}
	}
	e.setClean(netns, !want.Empty()) // an empty namespace is about to go
	return nil
}

// Counters implements Backend.
func (e *Exclusive) Counters(ctx context.Context, netns string) ([]Counter, error) {
	return e.inUse.Counters(ctx, netns)
}

// Survey implements Surveyor. ip-masq-agent may be found by a backend that is
// not in use; what comes before our rules, or refuses them, only by the one that
// has them.
func (e *Exclusive) Survey(netns string) Survey {
	var out Survey
	if s, ok := e.inUse.(Surveyor); ok {
		out = s.Survey(netns)
	}
	for _, o := range e.others {
		if s, ok := o.Backend.(Surveyor); ok {
			out.MasqAgents = append(out.MasqAgents, s.Survey(netns).MasqAgents...)
		}
	}
	return out
}
