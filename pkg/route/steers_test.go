package route_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

type (
	steerItem = reconcile.Item[desired.SteerKey, desired.Steer]
	steerSet  = map[desired.SteerKey]desired.Steer
)

func steerItems(set steerSet) []steerItem {
	var items []steerItem
	for k, v := range set {
		items = append(items, steerItem{Key: k, Value: v})
	}
	return items
}

func newSteers(t *testing.T) (*machine.Machine, *route.Steers) {
	m := machine.Real(t, lab.NFTables)
	ok(t, m.CreateNamespace(t.Context(), "vpx-a"), m.CreateNamespace(t.Context(), "foreign"))
	return m, route.NewSteers(m.Tables(t), m)
}

func expectSteers(t *testing.T, s *route.Steers, want steerSet) {
	t.Helper()
	if got, err := s.List(t.Context()); err != nil || !maps.Equal(got, want) {
		t.Fatalf("listed %v, %v; want %v", got, err, want)
	}
}

var (
	onePod = desired.SteerKey{Src: prefix("10.244.1.5/32"), Dst: prefix("172.16.101.0/24")}
	anyPod = desired.SteerKey{Src: prefix("0.0.0.0/0"), Dst: prefix("172.16.101.0/24")}
	tunnel = desired.SteerKey{Link: "vpx-red"}
	pods6  = desired.SteerKey{Netns: "vpx-a", Src: prefix("fd00:1::/64"), Dst: prefix("fd00:2::/64")}
	first  = desired.Steer{Mark: 0x100, Mask: 0xff00}
	second = desired.Steer{Mark: 0x200, Mask: 0xff00}
)

func TestSteers(t *testing.T) {
	m, s := newSteers(t)
	expectSteers(t, s, steerSet{})
	zone := desired.Steer{Zone: 17601}
	ok(t, s.Upsert(t.Context(), tunnel, zone))
	expectSteers(t, s, steerSet{tunnel: zone})
	ok(t, s.Delete(t.Context(), tunnel, zone))
	want := steerSet{onePod: first, anyPod: second, pods6: first}
	ok(t, s.UpsertBatch(t.Context(), steerItems(want))...)
	expectSteers(t, s, want)
	foreign := pods6
	foreign.Netns = "foreign"
	ok(t, s.Upsert(t.Context(), foreign, first))
	expectSteers(t, s, want)

	want[onePod] = second
	ok(t, s.Upsert(t.Context(), onePod, second))
	expectSteers(t, s, want)
	ok(t, s.DeleteBatch(t.Context(), steerItems(steerSet{onePod: second, pods6: first}))...)
	expectSteers(t, s, steerSet{anyPod: second})
	ok(t, s.Delete(t.Context(), onePod, second)) // absent

	ok(t, m.DeleteNamespace(t.Context(), "vpx-a"), s.Delete(t.Context(), pods6, first))
	if err := s.Upsert(t.Context(), pods6, first); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "vpx-a") {
		t.Fatalf("writing to an absent namespace: %v", err)
	}
	ok(t, s.Delete(t.Context(), anyPod, second))
	if out := m.NFT(t, "", "list tables"); out != "" {
		t.Fatalf("left behind: %s", out)
	}
}

func TestInvalidSteerFailsAlone(t *testing.T) {
	_, s := newSteers(t)
	items := []steerItem{
		{Key: onePod, Value: first},
		{Key: desired.SteerKey{Src: prefix("10.244.1.5/24"), Dst: onePod.Dst}, Value: first},
		{Key: anyPod, Value: desired.Steer{Mark: 0x1ff, Mask: 0xff}},
	}
	if errs := s.UpsertBatch(t.Context(), items); errs[0] != nil || errs[1] == nil || errs[2] == nil {
		t.Fatalf("errors %v", errs)
	}
	expectSteers(t, s, steerSet{onePod: first})
}

func TestTamperedSteersAreMissing(t *testing.T) {
	m, s := newSteers(t)
	want := steerSet{onePod: first, anyPod: second}
	for name, repair := range map[string]func() error{
		"wanted":   func() error { return errors.Join(s.UpsertBatch(t.Context(), steerItems(want))...) },
		"unwanted": func() error { return s.Delete(t.Context(), desired.SteerKey{}, desired.Steer{}) },
	} {
		ok(t, s.UpsertBatch(t.Context(), steerItems(want))...)
		m.NFT(t, "", "flush chain inet vpcproxy prerouting")
		expectSteers(t, s, steerSet{{}: {}})
		if err := repair(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		expectSteers(t, s, want)
	}
}

func TestSteerDiff(t *testing.T) {
	s := route.NewSteers(brokenTable{}, brokenTable{})
	if d := s.Diff(first, first); d != "" {
		t.Errorf("equal steers differ: %s", d)
	}
	if d := s.Diff(first, second); !strings.Contains(d, "0x100/0xff00") || !strings.Contains(d, "0x200/0xff00") {
		t.Errorf("the reason %q does not tell both marks", d)
	}
}

// brokenTable fails.
type brokenTable struct{ err error }

func (b brokenTable) Load(context.Context, string) (nft.Contents, error) {
	return nft.Contents{}, b.err
}
func (b brokenTable) Apply(context.Context, string, nft.Change) error { return b.err }
func (b brokenTable) Exchange(context.Context, map[nft.Match]nft.Mark, map[nft.Match]nft.Mark) (bool, error) {
	return false, b.err
}
func (b brokenTable) Namespaces(context.Context) ([]string, error) { return []string{"vpx-a"}, nil }

func TestSteersUnderFailure(t *testing.T) {
	b := brokenTable{errors.New("no buffer space available")}
	s := route.NewSteers(b, b)
	if steers, err := s.List(t.Context()); !errors.Is(err, b.err) || steers != nil {
		t.Errorf("List returned %v, %v: unknown is not none", steers, err)
	}
	items := steerItems(steerSet{onePod: first, anyPod: second})
	for op, errs := range map[string][]error{
		"UpsertBatch": s.UpsertBatch(t.Context(), items),
		"DeleteBatch": s.DeleteBatch(t.Context(), items),
	} {
		for i, err := range errs {
			if !errors.Is(err, b.err) {
				t.Errorf("%s: item %d: %v", op, i, err)
			}
		}
	}
}
