package controller

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// guard keeps a store that lost attachments from tearing down the nodes' data
// paths. Operators delete by way of tombstones; what vanishes without one is
// lost. Once more than a third of all is lost, the last good set is served until
// the loss is confirmed, or mended. The zero value is ready to use.
type guard struct {
	served *intent.Set // nil before the first good set
	lost   []string    // attachments that vanished without a tombstone
	// expected is how many attachments there were before this process, while
	// that is in doubt: who they were is not known.
	expected int
	held     bool
}

// offer hands the store's set to the guard: count is how many attachments it
// has, readable or not, and indexed how many the index says there should be.
func (g *guard) offer(set *intent.Set, count, indexed int) {
	if g.served != nil {
		for _, name := range intent.Vanished(g.served, set) {
			if !slices.Contains(g.lost, name) {
				g.lost = append(g.lost, name)
			}
		}
	} else if indexed > 0 {
		g.expected = indexed
	}
	// What is back is lost no more, nor is what was deleted since.
	g.lost = slices.DeleteFunc(g.lost, func(name string) bool {
		return set.Attachment(name) != nil || slices.ContainsFunc(set.Removed, func(a *intent.Attachment) bool { return a.ObjectName() == name })
	})
	missing, of := g.missing(count)
	if g.held {
		g.held = missing > 0
	} else {
		g.held = 3*missing > of
	}
	if !g.held {
		g.served, g.expected = set, 0
	}
}

// missing tells how many attachments are lost, of how many.
func (g *guard) missing(count int) (missing, of int) {
	missing = max(len(g.lost), g.expected-count)
	return missing, count + missing
}

// confirm accepts the loss and returns the names that are known of it.
func (g *guard) confirm(set *intent.Set) []string {
	lost := slices.Sorted(slices.Values(g.lost))
	g.served, g.lost, g.expected, g.held = set, nil, 0, false
	return lost
}

// reason is for operators; "" if nothing is held.
func (g *guard) reason(count int) string {
	if !g.held {
		return ""
	}
	missing, of := g.missing(count)
	names := ""
	if shown := slices.Sorted(slices.Values(g.lost)); len(shown) > 0 {
		more := ""
		if len(shown) > 5 {
			shown, more = shown[:5], ", …"
		}
		names = " (" + strings.Join(shown, ", ") + more + ")"
	}
	return fmt.Sprintf("%d of %d attachments vanished from the store without having been deleted%s; nodes keep what they had; "+
		"restore the store or apply them again, or give them up with `vpcproxyctl controller confirm-removal`", missing, of, names)
}
