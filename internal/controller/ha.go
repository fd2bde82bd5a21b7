package controller

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// States of a GroupReport that matter here (RFC 9568 section 6.3).
const stateActive, stateBackup = "Active", "Backup"

// standing is what a group's members say of its election.
type standing struct {
	group  *intent.ProxyGroup
	active []string // members that say that they are active
	ready  []string // connected, in Backup, and not cordoned; who takes over first comes first
}

func (c *Controller) standing(set *intent.Set, g *intent.ProxyGroup, reports map[string]*apiv1.NodeReport) standing {
	s := standing{group: g}
	priority := map[string]uint32{}
	for _, m := range g.Spec.Members {
		r := reports[m.Node]
		i := slices.IndexFunc(r.GetGroups(), func(gr *apiv1.GroupReport) bool { return gr.GetName() == g.ObjectName() })
		if i < 0 || !r.GetConnected() {
			continue
		}
		priority[m.Node] = r.GetGroups()[i].GetPriority()
		switch state := r.GetGroups()[i].GetState(); {
		case state == stateActive:
			s.active = append(s.active, m.Node)
		case state == stateBackup && !set.Node(m.Node).Spec.Cordoned:
			s.ready = append(s.ready, m.Node)
		}
	}
	slices.SortStableFunc(s.ready, func(a, b string) int {
		if d := int(priority[b]) - int(priority[a]); d != 0 {
			return d
		}
		return set.Node(b).Spec.UnderlayAddress.Compare(set.Node(a).Spec.UnderlayAddress)
	})
	return s
}

// Cordon implements ControlServiceHandler.
func (s *control) Cordon(ctx context.Context, req *connect.Request[apiv1.CordonRequest]) (*connect.Response[apiv1.CordonResponse], error) {
	name, on := req.Msg.GetNode(), req.Msg.GetCordoned()
	resp := &apiv1.CordonResponse{}
	revision, _, err := s.c.commit(ctx, func(v *view) (transaction, error) {
		resp.Changed, resp.Groups = false, nil // a commit may be tried again
		var t transaction
		before := v.set.Node(name)
		if before == nil {
			return t, absent(intent.KindNode, name)
		}
		reports := s.c.agents.snapshot().reports
		for _, g := range v.set.Groups {
			if !g.Elects() || !g.HasMember(name) {
				continue
			}
			resp.Groups = append(resp.Groups, g.ObjectName())
			st := s.c.standing(v.set, g, reports)
			others := slices.DeleteFunc(slices.Concat(st.active, st.ready), func(n string) bool { return n == name })
			if on && !before.Spec.Cordoned && len(others) == 0 && !req.Msg.GetForce() {
				return t, refuse(connect.CodeFailedPrecondition, apiv1.FieldProblem_REASON_IN_USE, before, "spec.cordoned",
					"no other proxy of group %s is known to be fit to take over; mend one, or give --force", g.ObjectName())
			}
		}
		if before.Spec.Cordoned == on {
			return t, nil
		}
		after, ok := clone(before).(*intent.Node)
		if !ok {
			return t, fmt.Errorf("node %s is %T", name, before)
		}
		after.Spec.Cordoned, resp.Changed = on, true
		return t, t.put(v, after)
	})
	if err != nil {
		return nil, answer(err)
	}
	if resp.GetChanged() {
		s.c.audit(ctx, map[bool]string{true: "cordoned", false: "uncordoned"}[on], intent.KindNode, name, revision)
	}
	return connect.NewResponse(resp), nil
}

// Failover implements ControlServiceHandler.
func (s *control) Failover(ctx context.Context, req *connect.Request[apiv1.FailoverRequest]) (*connect.Response[apiv1.FailoverResponse], error) {
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	g := v.set.Group(req.Msg.GetGroup())
	if g == nil {
		return nil, answer(absent(intent.KindProxyGroup, req.Msg.GetGroup()))
	}
	st := s.c.standing(v.set, g, s.c.agents.snapshot().reports)
	from, to, err := st.handover(req.Msg.GetTo())
	if err != nil {
		return nil, answer(err)
	}
	if !s.c.agents.yield(from, g.ObjectName()) {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("the agent of node %s is not connected; on that machine, `vpcproxyctl failover --node-socket PATH` does it", from))
	}
	s.c.audit(ctx, "failover from "+from+" to "+to, intent.KindProxyGroup, g.ObjectName(), v.set.Revision)
	return connect.NewResponse(&apiv1.FailoverResponse{From: from, To: to}), nil
}

// handover says from whom to whom the role goes.
func (s standing) handover(wanted string) (from, to string, err error) {
	no := func(code connect.Code, reason apiv1.FieldProblem_Reason, format string, args ...any) error {
		return refuse(code, reason, s.group, "", format, args...)
	}
	const inUse, notFound = apiv1.FieldProblem_REASON_IN_USE, apiv1.FieldProblem_REASON_NOT_FOUND
	switch {
	case !s.group.Elects():
		return "", "", no(connect.CodeFailedPrecondition, inUse, "elects nobody: it has no haVip")
	case wanted != "" && !s.group.HasMember(wanted):
		return "", "", no(connect.CodeNotFound, notFound, "node %q is not a member", wanted)
	case len(s.active) == 0:
		return "", "", no(connect.CodeFailedPrecondition, inUse, "no connected proxy says that it is active; see `vpcproxyctl ha status`")
	case slices.Contains(s.active, wanted):
		return "", "", no(connect.CodeFailedPrecondition, inUse, "node %s is active already", wanted)
	case len(s.ready) == 0:
		return "", "", no(connect.CodeFailedPrecondition, inUse, "no other proxy is fit to take over; see `vpcproxyctl ha status`")
	case wanted != "" && s.ready[0] != wanted:
		return "", "", no(connect.CodeFailedPrecondition, inUse, "%s would take over, not %s, which is not fit or has a lower priority", s.ready[0], wanted)
	}
	return s.active[0], s.ready[0], nil
}
