package peering

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Table turns what is heard into what is believed to be alive. While no
// neighbor can be heard, and for a while after one can be again, it keeps what
// was believed last: a reflector that has just started does not know yet what
// it will. What is kept of a group that the intent has drained meanwhile is not
// believed. It is not safe for concurrent use.
type Table struct {
	node   string
	cfg    Config
	settle time.Duration

	set   *intent.Set
	judge *judge

	heard   bool // something has been heard since the start, or was kept from before
	deaf    bool // no neighbor is synced
	since   time.Time
	mark    uint64 // newest Seq when it became deaf
	newest  uint64
	kept    map[bgp.NLRI]bgp.Route // of before it became deaf, not heard again
	believe map[bgp.NLRI]belief    // as of the last Update
	version uint64
}

// belief is a route that is believed, and what it says.
type belief struct {
	bgp.Route
	Verdict
}

// NewTable returns a table for a node. settle is how long after the first
// neighbor has finished its first update what was believed before is kept.
func NewTable(node string, cfg Config, settle time.Duration) *Table {
	return &Table{
		node: node, cfg: cfg, settle: settle, judge: newJudge(node, nil, cfg), deaf: true,
		kept: map[bgp.NLRI]bgp.Route{}, believe: map[bgp.NLRI]belief{},
	}
}

// SetIntent replaces the intent that routes are judged by.
func (t *Table) SetIntent(set *intent.Set) {
	t.set, t.judge = set, newJudge(t.node, set, t.cfg)
}

// Restore takes over what an earlier process believed.
func (t *Table) Restore(routes []bgp.Route) {
	for _, r := range routes {
		t.kept[r.NLRI] = r
		t.believe[r.NLRI] = belief{Route: r}
	}
	t.heard = t.heard || len(routes) > 0
	t.version++
}

// Judged is a route and what is thought of it.
type Judged struct {
	bgp.Route
	Verdict
	// Kept tells that no neighbor has said so lately.
	Kept bool
}

// Update takes in what neighbors say now. It returns what is alive (nil if
// nothing was ever heard), what was thought of each route, and when to look
// again even if nothing changes (zero: never).
func (t *Table) Update(now time.Time, routes []bgp.Route, sessions []bgp.Session) (live *plan.Live, judged []Judged, again time.Time) {
	synced := slices.ContainsFunc(sessions, func(s bgp.Session) bool { return s.Synced })
	up := slices.ContainsFunc(sessions, func(s bgp.Session) bool { return s.Established })
	t.listen(now, up, synced)
	believed := make(map[bgp.NLRI]belief, len(routes))
	judged = make([]Judged, 0, len(routes))
	for _, r := range routes {
		t.newest = max(t.newest, r.Seq)
		v := t.judge.judge(r)
		old := r.Seq <= t.mark // of before nobody could be heard: a graceful restart
		judged = append(judged, Judged{Route: r, Verdict: v, Kept: old})
		if v.Reason != Accepted || old && t.drained(v) {
			continue
		}
		if have, ok := believed[r.NLRI]; !ok || better(r, have.Route) {
			believed[r.NLRI] = belief{r, v}
		}
		if !old {
			delete(t.kept, r.NLRI) // from now on, what neighbors say counts
		}
	}
	for n, r := range t.kept {
		if _, ok := believed[n]; ok {
			continue
		}
		v := t.judge.judge(r)
		judged = append(judged, Judged{Route: r, Verdict: v, Kept: true})
		if v.Reason == Accepted && !t.drained(v) {
			believed[n] = belief{r, v}
		}
	}
	t.believe = believed
	t.version++
	unsure := t.deaf || now.Sub(t.since) < t.settle
	if unsure && !t.deaf {
		again = t.since.Add(t.settle)
	}
	if !t.heard {
		return nil, judged, again
	}
	live = t.alive()
	live.Unsure = unsure
	return live, judged, again
}

// drained tells whether the intent has withdrawn what nobody is heard to.
func (t *Table) drained(v Verdict) bool {
	return v.Attachment != "" && t.set.Drained(t.set.Group(v.Group))
}

// listen notes whether anybody can be heard, and ends the keeping.
func (t *Table) listen(now time.Time, up, synced bool) {
	switch {
	case !up && !t.deaf:
		t.deaf, t.mark = true, t.newest
		for n, b := range t.believe {
			t.kept[n] = b.Route
		}
	case synced && t.deaf:
		t.deaf, t.heard, t.since = false, true, now
	}
	if !t.deaf && now.Sub(t.since) >= t.settle {
		clear(t.kept)
	}
}

// better chooses between two tellings of one route.
func better(r, s bgp.Route) bool {
	if r.LocalPref != s.LocalPref {
		return r.LocalPref > s.LocalPref
	}
	return r.Peer.Less(s.Peer)
}

// Version grows whenever what is believed may have changed.
func (t *Table) Version() uint64 { return t.version }

// Believed returns what to hand to Restore after a restart, sorted.
func (t *Table) Believed() []bgp.Route {
	out := make([]bgp.Route, 0, len(t.believe))
	for _, b := range t.believe {
		b.Seq = 0
		out = append(out, b.Route)
	}
	slices.SortFunc(out, func(a, b bgp.Route) int { return a.NLRI.Compare(b.NLRI) })
	return out
}

// Same tells whether two routes of Believed are equal.
func Same(a, b bgp.Route) bool {
	return a.Path.Equal(b.Path) && a.Peer == b.Peer && a.Originator == b.Originator && a.Reflected == b.Reflected && a.Seq == b.Seq
}

// alive sums up what is believed. A group that announces some of an
// attachment's subnets only is not complete yet, and counts when it is.
func (t *Table) alive() *plan.Live {
	live := &plan.Live{Gateways: make(map[string][]plan.Gateway, len(t.believe)), Moved: map[netip.Addr]netip.Addr{}}
	type service struct{ attachment, group string }
	type said struct {
		routes     int
		preference uint32 // the least
	}
	found := make(map[service]said, len(t.believe))
	for _, b := range t.believe {
		if b.Host != "" {
			if n := t.set.Node(b.Host); n.Spec.UnderlayAddress != b.NextHop {
				live.Moved[b.Prefix.Addr()] = b.NextHop
			}
			continue
		}
		s := service{b.Attachment, b.Group}
		have, again := found[s]
		if !again || b.Preference < have.preference {
			have.preference = b.Preference
		}
		have.routes++
		found[s] = have
	}
	for s, have := range found {
		if a := t.set.Attachment(s.attachment); have.routes == len(a.Spec.CIDRs) {
			live.Gateways[s.attachment] = append(live.Gateways[s.attachment], plan.Gateway{Group: s.group, Preference: have.preference})
		}
	}
	for _, list := range live.Gateways {
		slices.SortFunc(list, func(a, b plan.Gateway) int { return cmp.Compare(a.Group, b.Group) })
	}
	return live
}
