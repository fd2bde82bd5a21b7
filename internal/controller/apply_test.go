package controller

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const (
	created   = apiv1.Outcome_OUTCOME_CREATED
	updated   = apiv1.Outcome_OUTCOME_UPDATED
	unchanged = apiv1.Outcome_OUTCOME_UNCHANGED
)

func outcomes(r *apiv1.ApplyResponse) (list []apiv1.Outcome) {
	for _, res := range r.GetResults() {
		list = append(list, res.GetOutcome())
	}
	return list
}

func TestApply(t *testing.T) {
	r := start(t)
	// In any order: what is referred to may come later.
	first := r.apply(t, orders, groupG, nodeP1, nodeF1)
	if diff := cmp.Diff([]apiv1.Outcome{created, created, created, created}, outcomes(first)); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	a := attachmentOf(t, first.GetResults()[0].GetObject())
	if a.Status.GREKey == nil || *a.Status.GREKey == 0 {
		t.Error("no GRE key was allocated")
	}
	if a.Metadata.Revision != first.GetRevision() {
		t.Errorf("object's revision is %d; want the response's, %d", a.Metadata.Revision, first.GetRevision())
	}
	if got := get[*intent.Node](t, r, intent.KindNode, "f1").Tunnel().String(); got != "100.64.0.1" {
		t.Errorf("tunnel address of f1 is %s; want the lowest of the pool", got)
	}
	if got := get[*intent.ProxyGroup](t, r, intent.KindProxyGroup, "g").Tunnel().String(); got != "100.64.0.2" {
		t.Errorf("tunnel address of g is %s; want the next of the pool", got)
	}
	if get[*intent.Node](t, r, intent.KindNode, "p1").Tunnel().IsValid() {
		t.Error("a proxy got a tunnel address; only its group has one")
	}

	again := r.apply(t, orders, groupG, nodeP1, nodeF1)
	if diff := cmp.Diff([]apiv1.Outcome{unchanged, unchanged, unchanged, unchanged}, outcomes(again)); diff != "" {
		t.Errorf("outcomes of the same again (-want +got):\n%s", diff)
	}
	if got := outcomes(r.apply(t, strings.Replace(orders, `"group"`, `"scope":"pods","group"`, 1))); got[0] != unchanged {
		t.Errorf("the default written out is %v; want unchanged", got[0])
	}
	if again.GetRevision() != first.GetRevision() {
		t.Errorf("the same again went from revision %d to %d", first.GetRevision(), again.GetRevision())
	}

	wider := r.apply(t, strings.Replace(orders, `"172.16.101.0/24"`, `"172.16.100.0/23"`, 1), groupG)
	if diff := cmp.Diff([]apiv1.Outcome{updated, unchanged}, outcomes(wider)); diff != "" {
		t.Errorf("outcomes of a change (-want +got):\n%s", diff)
	}
	if b := attachmentOf(t, wider.GetResults()[0].GetObject()); *b.Status.GREKey != *a.Status.GREKey {
		t.Error("a change of the CIDRs drew another key")
	}
	if wider.GetRevision() <= first.GetRevision() {
		t.Error("a change did not raise the revision")
	}
	if log := r.log.String(); !strings.Contains(log, "intent created") || !strings.Contains(log, "object=Attachment/orders by=uid/") {
		t.Errorf("no audit line in\n%s", log)
	}
}

func TestApplyRoundTrip(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, orders)
	for _, kind := range intent.Kinds {
		list, err := r.control.List(t.Context(), connect.NewRequest(&apiv1.ListRequest{Kind: string(kind)}))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.control.Apply(t.Context(), connect.NewRequest(&apiv1.ApplyRequest{Objects: list.Msg.GetObjects()}))
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range resp.Msg.GetResults() {
			if res.GetOutcome() != unchanged {
				t.Errorf("what was listed is %v when applied: %v", res.GetOutcome(), res.GetObject())
			}
		}
	}
}

func TestApplyDryRun(t *testing.T) {
	r := start(t)
	r.platform(t)
	before := r.status(t).GetRevision()
	req := request(t, orders)
	req.DryRun = true
	resp, err := r.control.Apply(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	if got := outcomes(resp.Msg); len(got) != 1 || got[0] != created {
		t.Errorf("outcomes %v; want one created", got)
	}
	if _, err := r.control.Get(t.Context(), connect.NewRequest(&apiv1.GetRequest{Kind: "Attachment", Name: "orders"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("after a dry run, Get: %v; want NotFound", err)
	}
	if after := r.status(t).GetRevision(); after != before {
		t.Errorf("a dry run went from revision %d to %d", before, after)
	}
	del := &apiv1.DeleteRequest{Kind: "ProxyGroup", Name: "g", DryRun: true}
	if _, err := r.control.Delete(t.Context(), connect.NewRequest(del)); err != nil {
		t.Fatal(err)
	}
	get[*intent.ProxyGroup](t, r, intent.KindProxyGroup, "g")
}

// Two attachments may swap their subnets in one request.
func TestApplyIsCheckedAsAWhole(t *testing.T) {
	r := start(t)
	r.platform(t)
	left := `{"kind":"Attachment","metadata":{"name":"left"},"spec":{"vpc":"v","cidrs":["172.16.1.0/24"],"group":"g","pods":["10.244.1.5"],"enis":[{"name":"eth1"}]}}`
	right := strings.NewReplacer("left", "right", "172.16.1.", "172.16.2.", "eth1", "eth2").Replace(left)
	r.apply(t, left, right)
	r.apply(t, strings.Replace(left, "172.16.1.", "172.16.2.", 1), strings.Replace(right, "172.16.2.", "172.16.1.", 1))
	// All or nothing: the good one is not stored.
	before := r.status(t).GetRevision()
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, orders, strings.Replace(left, "172.16.1.0/24", "172.16.1.1/24", 1))))
	wantCode(t, err, connect.CodeInvalidArgument, "Attachment/left: spec.cidrs[0]: 172.16.1.1/24 has host bits set")
	if after := r.status(t).GetRevision(); after != before {
		t.Errorf("a refused request went from revision %d to %d", before, after)
	}
}

func TestApplyCreateOnlyAndRevision(t *testing.T) {
	r := start(t)
	r.platform(t)
	rev := r.apply(t, orders).GetRevision()
	other := strings.Replace(orders, "172.16.101.0/24", "172.16.102.0/24", 1)

	req := request(t, other)
	req.CreateOnly = true
	_, err := r.control.Apply(t.Context(), connect.NewRequest(req))
	wantCode(t, err, connect.CodeAlreadyExists, "Attachment/orders: metadata.name: is taken by another spec")
	req = request(t, orders)
	req.CreateOnly = true
	resp, err := r.control.Apply(t.Context(), connect.NewRequest(req))
	if err != nil || outcomes(resp.Msg)[0] != unchanged {
		t.Errorf("the same spec: %v, %v; want unchanged", resp, err)
	}

	withRevision := func(o string, rev int64) string {
		return strings.Replace(o, `{"name":"orders"}`, fmt.Sprintf(`{"name":"orders","revision":%d}`, rev), 1)
	}
	_, err = r.control.Apply(t.Context(), connect.NewRequest(request(t, withRevision(other, rev-1))))
	wantCode(t, err, connect.CodeAborted, "metadata.revision", "get it again")
	r.apply(t, withRevision(other, rev))
	r.delete(t, intent.KindAttachment, "orders")
	_, err = r.control.Apply(t.Context(), connect.NewRequest(request(t, withRevision(other, rev))))
	wantCode(t, err, connect.CodeAborted, "there is no such object any more")
}

func TestApplyTooManyObjects(t *testing.T) {
	r := start(t)
	r.platform(t)
	var list []string
	for n := range 128 {
		list = append(list, numberedAttachment(n+1))
	}
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, list...)))
	wantCode(t, err, connect.CodeInvalidArgument, "too many objects", "split it")
	if got := len(r.apply(t, list[:127]...).GetResults()); got != 127 {
		t.Errorf("%d results; want 127", got)
	}
}

func TestDelete(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, strings.Replace(orders, `"pods"`, `"nodes":["f1"],"pods"`, 1))
	for _, c := range []struct{ kind, name, by string }{
		{"ProxyGroup", "g", "Attachment/orders refers to it"},
		{"Node", "p1", "ProxyGroup/g refers to it"},
		{"Node", "f1", "Attachment/orders refers to it"},
	} {
		_, err := r.control.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: c.kind, Name: c.name}))
		wantCode(t, err, connect.CodeFailedPrecondition, c.kind+"/"+c.name, c.by)
	}
	r.delete(t, intent.KindAttachment, "orders")
	_, err := r.control.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: "Attachment", Name: "orders"}))
	wantCode(t, err, connect.CodeNotFound, "Attachment/orders")
	r.delete(t, intent.KindProxyGroup, "g")
	r.delete(t, intent.KindNode, "p1")
	r.delete(t, intent.KindNode, "f1")
	_, err = r.control.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: "Pod", Name: "x"}))
	wantCode(t, err, connect.CodeInvalidArgument, "kind", `"Pod"`)
}

// A change of what others refer to may not break them.
func TestDependents(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, orders)
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, strings.Replace(nodeP1, `"proxy"`, `"function"`, 1))))
	wantCode(t, err, connect.CodeFailedPrecondition, "Node/p1: spec", "would break ProxyGroup/g", "has not the role proxy")

	named := strings.Replace(orders, `"mac"`, `"node":"p1","mac"`, 1)
	r.apply(t, named)
	moved := strings.Replace(groupG, "p1", "p2", 1)
	_, err = r.control.Apply(t.Context(), connect.NewRequest(request(t, strings.Replace(moved, "p2", "p3", 1))))
	wantCode(t, err, connect.CodeFailedPrecondition, "ProxyGroup/g: spec", "would break Attachment/orders")
	// That the dependent is in the request, unchanged, does not mend it.
	_, err = r.control.Apply(t.Context(), connect.NewRequest(request(t, moved, named)))
	wantCode(t, err, connect.CodeFailedPrecondition, "would break Attachment/orders")
	// Both changed together are fine.
	r.apply(t, moved, strings.Replace(named, `"p1"`, `"p2"`, 1))
}

func TestAllocation(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	r := startOn(t, prefix, withPool("10.9.0.0/29"))
	group := func(n int, addr string) string {
		s := fmt.Sprintf(`{"kind":"ProxyGroup","metadata":{"name":"g%d"},"spec":{"members":[{"node":"p1"}]}}`, n)
		if addr != "" {
			s = strings.Replace(s, `]}}`, fmt.Sprintf(`],"tunnelAddress":%q}}`, addr), 1)
		}
		return s
	}
	tunnel := func(name string) string {
		return get[*intent.ProxyGroup](t, r, intent.KindProxyGroup, name).Tunnel().String()
	}
	// A fixed address of the same request is not given to another.
	r.apply(t, group(1, ""), group(2, "10.9.0.1"), group(3, ""))
	if a, b, c := tunnel("g1"), tunnel("g2"), tunnel("g3"); a != "10.9.0.2" || b != "10.9.0.1" || c != "10.9.0.3" {
		t.Errorf("tunnel addresses %s, %s, %s; want .2, .1, .3", a, b, c)
	}
	r.apply(t, group(4, ""), group(5, ""), group(6, ""))
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, group(7, ""))))
	wantCode(t, err, connect.CodeAlreadyExists, "ProxyGroup/g7: spec.tunnelAddress: the pool 10.9.0.0/29 has no free address")
	_, err = r.control.Apply(t.Context(), connect.NewRequest(request(t, group(7, "10.9.0.4"))))
	wantCode(t, err, connect.CodeAlreadyExists, "is the tunnel address of ProxyGroup g4")
	r.delete(t, intent.KindProxyGroup, "g4")
	r.apply(t, nodeP1, attach("early", "group", `"g1"`, "cidrs", `["10.8.0.0/30"]`))
	r.apply(t, group(7, ""))
	if got := tunnel("g7"); got != "10.9.0.4" {
		t.Errorf("tunnel address %s; want the one that became free", got)
	}
	r.stop()

	// Another pool: what is allocated stays.
	r = startOn(t, prefix, withPool("10.8.0.0/24"))
	r.apply(t, group(8, ""), strings.Replace(group(2, "10.9.0.1"), "p1", "p2", 1))
	if a, b := tunnel("g8"), tunnel("g1"); a != "10.8.0.4" || b != "10.9.0.2" {
		t.Errorf("tunnel addresses %s and %s; want one of the new pool that no attachment leads to, and the old one", a, b)
	}
}

func TestKeysAreUnique(t *testing.T) {
	draws := []uint32{0, 7, 7, 8, 9}
	r := start(t, func(c *Controller) {
		c.key = func() uint32 {
			k := draws[0]
			draws = draws[1:]
			return k
		}
	})
	r.platform(t)
	fixed := strings.Replace(numberedAttachment(1), `"group"`, `"greKey":8,"group"`, 1)
	resp := r.apply(t, fixed, numberedAttachment(2), numberedAttachment(3))
	var keys []uint32
	for _, res := range resp.GetResults() {
		k, _ := attachmentOf(t, res.GetObject()).Key()
		keys = append(keys, k)
	}
	if diff := cmp.Diff([]uint32{8, 7, 9}, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	host := r.apply(t, `{"kind":"Attachment","metadata":{"name":"host"},"spec":{"vpc":"v","scope":"host","cidrs":["172.20.0.0/16"],"group":"h","enis":[{"name":"eth1"}]}}`)
	if _, keyed := attachmentOf(t, host.GetResults()[0].GetObject()).Key(); keyed {
		t.Error("scope host got a key; the plain recipe has none")
	}
}
