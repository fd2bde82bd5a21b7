package agent

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
)

func TestHandOver(t *testing.T) {
	peers := []desired.Elector{{}}
	group := func(s ha.State) []election.Group { return []election.Group{{Name: "g1", State: s, Peers: peers}} }
	for _, c := range []struct {
		name    string
		then    []election.Group
		drained []string
		now     []string // announced at once
		later   []string // when the time is over
	}{
		{"another takes over", group(ha.Backup), nil, []string{"g1"}, nil},
		{"it is drained", group(ha.Fault), []string{"proxy1"}, []string{"g1"}, nil},
		{"it is not fit any more", group(ha.Fault), nil, nil, nil},
		{"the agent stops", group(ha.Initialize), nil, nil, nil},
		{"all members are drained", group(ha.Fault), []string{"proxy1", "proxy2"}, nil, nil},
		{"there is no other", []election.Group{{Name: "g1", State: ha.Backup}}, nil, nil, nil},
		{"the group is gone", nil, nil, nil, nil},
		{"it stays active", group(ha.Active), nil, []string{"g1"}, []string{"g1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h handOver
				var got []string
				announce := func(m map[string]bool) { got = slices.Sorted(maps.Keys(m)) }
				taken := func(g election.Group) bool { return handed(g, pair(c.drained), "proxy1") }
				h.follow(group(ha.Active), taken, announce)
				h.follow(c.then, taken, announce)
				if !slices.Equal(got, c.now) {
					t.Errorf("announced %v, want %v", got, c.now)
				}
				time.Sleep(handOverTime / 2)
				h.follow(c.then, taken, announce) // no news prolongs it
				time.Sleep(2 * handOverTime)
				synctest.Wait()
				if !slices.Equal(got, c.later) {
					t.Errorf("announced %v in the end, want %v", got, c.later)
				}
			})
		})
	}
}

// pair is an intent of two proxies, of which some are drained.
func pair(drained []string) *intent.Set {
	g := &intent.ProxyGroup{Metadata: intent.Metadata{Name: "g1"}}
	set := &intent.Set{Groups: []*intent.ProxyGroup{g}}
	for _, name := range []string{"proxy1", "proxy2"} {
		n := &intent.Node{Metadata: intent.Metadata{Name: name}}
		n.Spec.Cordoned = slices.Contains(drained, name)
		set.Nodes = append(set.Nodes, n)
		g.Spec.Members = append(g.Spec.Members, intent.Member{Node: name})
	}
	return set
}
