package node

import (
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/plan"
)

// survey asks the NAT backend what decides beside our rules. It has just read
// them.
func (n *Node) survey() {
	if n.opts.Kinds.NATSurvey == nil {
		return
	}
	found := n.opts.Kinds.NATSurvey()
	n.mu.Lock()
	before := n.notices
	n.notices = found.Conflicts(n.current.State.NAT[desired.NATKey{}].Masquerade)
	now := n.notices
	n.mu.Unlock()
	for _, s := range now {
		if !slices.Contains(before, s) {
			n.opts.Log.Warn("conflict with another program", "problem", s)
		}
	}
	for _, s := range before {
		if !slices.Contains(now, s) {
			n.opts.Log.Info("conflict over", "problem", s)
		}
	}
}

// nodeProblems are those that keep no attachment from being ready. The caller
// holds the lock.
func (n *Node) nodeProblems() []plan.Problem {
	var out []plan.Problem
	if n.masqFault != "" {
		out = append(out, plan.Problem{Message: n.masqFault})
	}
	for _, s := range n.notices {
		out = append(out, plan.Problem{Message: s})
	}
	return out
}
