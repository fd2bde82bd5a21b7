package controller

import (
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

const (
	nodeP3 = `{"kind":"Node","metadata":{"name":"p3"},"spec":{"roles":["proxy"],"underlayAddress":"192.168.4.102"}}`
	pairG  = `{"kind":"ProxyGroup","metadata":{"name":"pair"},"spec":{"members":[{"node":"p1","priority":200},{"node":"p2"},{"node":"p3"}],"haVip":"192.168.4.200","vrid":7}}`
)

// says has a node report what it is in the election of the pair.
func (r *rig) says(t *testing.T, node, state string, priority uint32) {
	t.Helper()
	_, err := r.agent.Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: &apiv1.NodeReport{
		Node: node, Groups: []*apiv1.GroupReport{{Name: "pair", State: state, Priority: priority}},
	}}))
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) failover(t *testing.T, group, to string) (*apiv1.FailoverResponse, error) {
	t.Helper()
	resp, err := r.control.Failover(t.Context(), connect.NewRequest(&apiv1.FailoverRequest{Group: group, To: to}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (r *rig) cordon(t *testing.T, node string, on, force bool) (*apiv1.CordonResponse, error) {
	t.Helper()
	resp, err := r.control.Cordon(t.Context(), connect.NewRequest(&apiv1.CordonRequest{Node: node, Cordoned: on, Force: force}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestFailover(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, nodeP3, pairG)
	_, err := r.failover(t, "pair", "")
	wantCode(t, err, connect.CodeFailedPrecondition, "no connected proxy says that it is active")
	p1, p2, p3 := r.watch(t, nodeP1), r.watch(t, nodeP2), r.watch(t, nodeP3)
	p1.next()
	p2.next()
	p3.next()
	r.says(t, "p1", "Active", 200)
	_, err = r.failover(t, "pair", "")
	wantCode(t, err, connect.CodeFailedPrecondition, "no other proxy is fit")
	r.says(t, "p2", "Backup", 100)
	r.says(t, "p3", "Backup", 100)
	for _, tc := range []struct {
		group, to string
		code      connect.Code
		says      string
	}{
		{"nope", "", connect.CodeNotFound, "no such object"},
		{"g", "", connect.CodeFailedPrecondition, "elects nobody"},
		{"pair", "f1", connect.CodeNotFound, `"f1" is not a member`},
		{"pair", "p1", connect.CodeFailedPrecondition, "p1 is active already"},
		{"pair", "p2", connect.CodeFailedPrecondition, "p3 would take over, not p2"}, // by its address
	} {
		_, err := r.failover(t, tc.group, tc.to)
		wantCode(t, err, tc.code, tc.says)
	}
	resp, err := r.failover(t, "pair", "p3")
	if err != nil || resp.GetFrom() != "p1" || resp.GetTo() != "p3" {
		t.Fatalf("%v, %v", resp, err)
	}
	for p1.stream.Receive() {
		if group := p1.stream.Msg().GetYield(); group == "pair" {
			return
		}
	}
	t.Errorf("p1 was not told: %v", p1.stream.Err())
}

func TestCordon(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, nodeP3, pairG)
	_, err := r.cordon(t, "nope", true, false)
	wantCode(t, err, connect.CodeNotFound, "no such object")
	_, err = r.cordon(t, "p1", true, false)
	wantCode(t, err, connect.CodeFailedPrecondition, "no other proxy of group pair is known to be fit")
	p2 := r.watch(t, nodeP2)
	p2.next()
	r.says(t, "p2", "Backup", 100)
	resp, err := r.cordon(t, "p1", true, false)
	if err != nil || !resp.GetChanged() || len(resp.GetGroups()) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	// The agent comes back, and what an operator has decided stays.
	p1 := r.watch(t, nodeP1)
	if set := p1.next(); !set.Node("p1").Spec.Cordoned {
		t.Error("registering has uncordoned the node")
	}
	if resp, err := r.cordon(t, "p1", true, false); err != nil || resp.GetChanged() {
		t.Errorf("again: %v, %v", resp, err)
	}
	_, err = r.cordon(t, "p2", true, false)
	wantCode(t, err, connect.CodeFailedPrecondition, "no other proxy")
	if resp, err := r.cordon(t, "p2", true, true); err != nil || !resp.GetChanged() {
		t.Errorf("forced: %v, %v", resp, err)
	}
	if resp, err := r.cordon(t, "p1", false, false); err != nil || !resp.GetChanged() {
		t.Errorf("uncordon: %v, %v", resp, err)
	}
	for p1.next().Node("p1").Spec.Cordoned { // snapshots of before come first
	}
}
