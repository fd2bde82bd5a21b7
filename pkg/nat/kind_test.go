package nat

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// broken is a Backend that fails in some namespaces.
type broken struct {
	in    []string
	after func() // called by every failure
}

var errBroken = errors.New("broken")

func (b broken) err(netns string) error {
	if !slices.Contains(b.in, netns) {
		return nil
	}
	b.after()
	return errBroken
}

func (b broken) Read(_ context.Context, netns string) (RuleSet, error) {
	return RuleSet{Rules: map[Key][]Rule{{IPv4, Input}: nil}}, b.err(netns)
}

func (b broken) Write(_ context.Context, netns string, _ RuleSet) error { return b.err(netns) }

func (b broken) Counters(_ context.Context, netns string) ([]Counter, error) {
	return nil, b.err(netns)
}

func TestKindToleratesOnlyNamespacesThatAreGone(t *testing.T) {
	ctx := t.Context()
	for name, deleted := range map[string]bool{"deleted meanwhile": true, "still there": false} {
		t.Run(name, func(t *testing.T) {
			names := []string{"", "vpx-a"}
			k := NewKind(broken{in: []string{"vpx-a"}, after: func() {
				if deleted {
					names = []string{""}
				}
			}}, func(context.Context) ([]string, error) { return names, nil })

			have, err := k.List(ctx)
			switch {
			case deleted && (err != nil || len(have) != 1):
				t.Errorf("List = %v, %v; want the one namespace that is left", have, err)
			case !deleted && !errors.Is(err, errBroken):
				t.Errorf("List = %v, %v; want an error: unknown is not none", have, err)
			}
			err = k.Delete(ctx, desired.NATKey{Netns: "vpx-a"}, RuleSet{})
			if deleted != (err == nil) {
				t.Errorf("Delete = %v with the namespace deleted: %t", err, deleted)
			}
		})
	}
}

func TestKindListFailsWithTheNamespaceList(t *testing.T) {
	k := NewKind(broken{}, func(context.Context) ([]string, error) { return nil, errBroken })
	if _, err := k.List(t.Context()); !errors.Is(err, errBroken) {
		t.Errorf("List = %v, want %v", err, errBroken)
	}
}
