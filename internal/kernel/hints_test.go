package kernel

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

func TestMergeHints(t *testing.T) {
	tests := map[string]struct{ in, want []Hint }{
		"each one once":        {in: []Hint{HintRules, HintRules, HintRules}, want: []Hint{HintRules}},
		"in the order to make": {in: []Hint{HintRules, HintRoutes, HintLinks}, want: []Hint{HintLinks, HintRoutes, HintRules}},
		"all swallows":         {in: []Hint{HintRules, HintAll, HintLinks}, want: []Hint{HintAll}},
		"nothing":              {},
	}
	for _, h := range hintOrder {
		tests["is known: "+string(h)] = struct{ in, want []Hint }{in: []Hint{h}, want: []Hint{h}}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				in := make(chan Hint)
				out := MergeHints(ctx, in)
				for _, h := range test.in {
					in <- h // nobody reads out: this must not block
				}
				var got []Hint
				for {
					synctest.Wait()
					select {
					case h := <-out:
						got = append(got, h)
						continue
					default:
					}
					break
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
				cancel()
				if _, open := <-out; open {
					t.Error("open after its context ended")
				}
			})
		})
	}
}

func TestMergeHintsEndsWithItsSource(t *testing.T) {
	in := make(chan Hint)
	out := MergeHints(t.Context(), in)
	close(in)
	if _, open := <-out; open {
		t.Error("open after its source closed")
	}
}
