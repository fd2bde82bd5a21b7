package route_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/pkg/route"
)

var (
	podA   = desired.SteerKey{Src: prefix("10.244.1.7/32"), Dst: prefix("172.16.101.0/24")}
	podB   = desired.SteerKey{Src: prefix("10.244.1.8/32"), Dst: prefix("172.16.101.0/24")}
	podC   = desired.SteerKey{Src: prefix("10.244.1.9/32"), Dst: prefix("172.16.101.0/24")}
	podAll = desired.SteerKey{Src: prefix("10.244.1.7/32"), Dst: prefix("172.16.0.0/16")}
	zoned  = desired.Steer{Mark: 0x300, Mask: 0xff00, Zone: 17603}
	refuse = desired.Steer{Refuse: true}
)

// Whatever is exchanged, the kernel holds exactly that, and nothing for what is
// gone.
func TestExchange(t *testing.T) {
	m, s := newSteers(t)
	ctx := t.Context()
	expectSteers(t, s, steerSet{})
	for _, step := range []struct {
		name              string
		remove, add, want steerSet
	}{
		{"the first of all", nil, steerSet{podA: zoned}, steerSet{podA: zoned}},
		{"another", nil, steerSet{podB: zoned}, steerSet{podA: zoned, podB: zoned}},
		{"the same again", nil, steerSet{podB: zoned}, steerSet{podA: zoned, podB: zoned}},
		{"to another mark", steerSet{podB: zoned}, steerSet{podB: first}, steerSet{podA: zoned, podB: first}},
		{"to be refused", steerSet{podA: zoned}, steerSet{podA: refuse}, steerSet{podA: refuse, podB: first}},
		{"to another range", steerSet{podA: refuse}, steerSet{podAll: first}, steerSet{podAll: first, podB: first}},
		{"unchanged", steerSet{podB: first}, steerSet{podB: first}, steerSet{podAll: first, podB: first}},
		{"absent", steerSet{podC: first}, nil, steerSet{podAll: first, podB: first}},
		{"away", steerSet{podAll: first, podB: first}, nil, steerSet{}},
	} {
		ok(t, s.Exchange(ctx, step.remove, step.add))
		expectSteers(t, s, step.want)
	}
	if out := m.NFT(t, "", "list tables"); out != "" {
		t.Errorf("left behind: %s", out)
	}
	if err := s.Exchange(ctx, nil, steerSet{podA: {}}); err == nil || !strings.Contains(err.Error(), "mark") {
		t.Errorf("an invalid steer: %v", err)
	}
}

// The engine acts on a list: what has been exchanged since is left alone.
func TestExchangeOvertakesAList(t *testing.T) {
	_, s := newSteers(t)
	ctx := t.Context()
	ok(t, s.UpsertBatch(ctx, steerItems(steerSet{podA: zoned, podB: zoned}))...)
	expectSteers(t, s, steerSet{podA: zoned, podB: zoned})
	ok(t, s.Exchange(ctx, steerSet{podA: zoned}, steerSet{podC: zoned, podB: first}))
	want := steerSet{podB: first, podC: zoned}
	// An engine that wanted and saw other things:
	ok(t, s.DeleteBatch(ctx, steerItems(steerSet{podC: zoned}))...)
	ok(t, s.UpsertBatch(ctx, steerItems(steerSet{podA: zoned, podB: zoned}))...)
	expectSteers(t, s, want)
	// That was a new list: from here on it is the engine's again.
	ok(t, s.DeleteBatch(ctx, steerItems(steerSet{podC: zoned}))...)
	expectSteers(t, s, steerSet{podB: first})
}

// slowTable answers a Load with what was there before an exchange.
type slowTable struct {
	brokenTable
	meanwhile func()
	before    nft.Contents
}

func (s *slowTable) Load(context.Context, string) (nft.Contents, error) {
	s.meanwhile()
	return s.before, nil
}

func (*slowTable) Namespaces(context.Context) ([]string, error) { return nil, nil }

func (*slowTable) Exchange(context.Context, map[nft.Match]nft.Mark, map[nft.Match]nft.Mark) (bool, error) {
	return true, nil
}

// What is exchanged while a list is read is in the list.
func TestExchangeDuringAList(t *testing.T) {
	table := &slowTable{before: nft.Contents{Steers: map[nft.Match]nft.Mark{{Src: podA.Src, Dst: podA.Dst}: {Mark: 0x300, Mask: 0xff00, Zone: 17603}}}}
	s := route.NewSteers(table, table)
	table.meanwhile = func() {
		ok(t, s.Exchange(t.Context(), steerSet{podA: zoned}, steerSet{podB: first}))
	}
	if got, err := s.List(t.Context()); err != nil || !maps.Equal(got, steerSet{podB: first}) {
		t.Errorf("listed %v, %v", got, err)
	}
	table.meanwhile = func() {}
	if got, err := s.List(t.Context()); err != nil || !maps.Equal(got, steerSet{podA: zoned}) {
		t.Errorf("the next list is %v, %v: it is newer than the exchange", got, err)
	}
}

func TestExchangeThatFails(t *testing.T) {
	b := brokenTable{errors.New("no buffer space available")}
	if err := route.NewSteers(b, b).Exchange(t.Context(), nil, steerSet{podA: zoned}); !errors.Is(err, b.err) {
		t.Errorf("%v", err)
	}
}
