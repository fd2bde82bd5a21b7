package kernel

import "context"

// hintOrder is the order in which waiting hints are handed out: the order of making.
var hintOrder = []Hint{
	HintNamespaces, HintFirewall, HintLinks, HintEgress, HintAddresses, HintNeighbors, HintSysctls, HintNexthops, HintRoutes, HintRules,
}

// MergeHints passes hints on, each one once however often it came while the
// reader was busy; HintAll swallows the others. It never makes a sender wait. The
// returned channel closes when in closes or the context ends.
func MergeHints(ctx context.Context, in <-chan Hint) <-chan Hint {
	out := make(chan Hint)
	go func() {
		defer close(out)
		waiting := map[Hint]bool{}
		for {
			var ready chan<- Hint
			next, ok := firstHint(waiting)
			if ok {
				ready = out
			}
			select {
			case <-ctx.Done():
				return
			case h, open := <-in:
				if !open {
					return
				}
				waiting[h] = true
			case ready <- next:
				if next == HintAll {
					clear(waiting)
				} else {
					delete(waiting, next)
				}
			}
		}
	}()
	return out
}

func firstHint(waiting map[Hint]bool) (Hint, bool) {
	if waiting[HintAll] {
		return HintAll, true
	}
	for _, h := range hintOrder {
		if waiting[h] {
			return h, true
		}
	}
	return "", false
}
