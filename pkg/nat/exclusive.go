package nat

import (
	"context"
	"fmt"
)

// Exclusive is a Backend that writes by one backend and removes what an earlier
// run has left in others, so that a host can be switched over.
type Exclusive struct {
	inUse  Backend
	others []Other
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
	return &Exclusive{inUse: inUse, others: others}
}

// Read implements Backend. What others hold is left over.
func (e *Exclusive) Read(ctx context.Context, netns string) (RuleSet, error) {
	s, err := e.inUse.Read(ctx, netns)
	if err != nil {
		return s, err
	}
	for _, o := range e.others {
		left, err := o.Read(ctx, netns)
		if err != nil {
			return s, err
		}
		if !left.Empty() {
			s.Strays = append(s.Strays, fmt.Sprintf("rules in %s, which is not in use", o.Name))
		}
	}
	return s, nil
}

// Write implements Backend. Others are emptied last, so that there are never no
// rules at all.
func (e *Exclusive) Write(ctx context.Context, netns string, want RuleSet) error {
	if err := e.inUse.Write(ctx, netns, want); err != nil {
		return err
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
