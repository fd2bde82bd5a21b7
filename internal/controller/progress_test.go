package controller

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func (r *rig) report(t *testing.T, node string, revision int64, attachments ...*apiv1.AttachmentReport) {
	t.Helper()
	_, err := r.agent.Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: &apiv1.NodeReport{
		Node: node, PlannedRevision: revision, Attachments: attachments,
	}}))
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatchAttachment(t *testing.T) {
	r := start(t)
	r.platform(t)
	rev := r.apply(t, orders).GetRevision()
	stream, err := r.control.WatchAttachment(t.Context(), connect.NewRequest(&apiv1.WatchAttachmentRequest{Name: "orders"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	// next receives until a message meets the expectation.
	next := func(what string, ok func(m *apiv1.WatchAttachmentResponse) bool) {
		t.Helper()
		timer := time.AfterFunc(patience, func() { _ = stream.Close() })
		defer timer.Stop()
		var last *apiv1.WatchAttachmentResponse
		for stream.Receive() {
			if last = stream.Msg(); ok(last) {
				return
			}
		}
		t.Fatalf("%s: stream ended with %v after %v", what, stream.Err(), last)
	}
	of := func(m *apiv1.WatchAttachmentResponse, node string) *apiv1.NodeProgress {
		for _, n := range m.GetNodes() {
			if n.GetNode() == node {
				return n
			}
		}
		return nil
	}
	next("nobody is connected", func(m *apiv1.WatchAttachmentResponse) bool {
		return m.GetExists() && !m.GetConverged() && m.GetRevision() == rev && len(m.GetNodes()) == 2 &&
			strings.Contains(of(m, "p1").GetMessage(), "has not connected") && of(m, "p1").GetRole() == "proxy" && of(m, "f1").GetRole() == "function"
	})
	f1, p1 := r.watch(t, nodeF1), r.watch(t, nodeP1)
	f1.next()
	p1.next()
	next("connected", func(m *apiv1.WatchAttachmentResponse) bool {
		return of(m, "f1").GetConnected() && of(m, "p1").GetConnected() && !m.GetConverged()
	})
	r.report(t, "p1", rev-1, &apiv1.AttachmentReport{Name: "orders", Role: "proxy", Ready: true})
	next("a report on an older intent", func(m *apiv1.WatchAttachmentResponse) bool {
		return !of(m, "p1").GetReady() && strings.Contains(of(m, "p1").GetMessage(), "has not taken revision")
	})
	r.report(t, "p1", rev, &apiv1.AttachmentReport{Name: "orders", Role: "proxy", Message: "no ENI"})
	next("not ready", func(m *apiv1.WatchAttachmentResponse) bool { return of(m, "p1").GetMessage() == "no ENI" })
	r.report(t, "p1", rev, &apiv1.AttachmentReport{Name: "orders", Role: "proxy", Ready: true})
	next("one ready", func(m *apiv1.WatchAttachmentResponse) bool { return of(m, "p1").GetReady() && !m.GetConverged() })
	r.report(t, "f1", rev, &apiv1.AttachmentReport{Name: "orders", Role: "function", Ready: true})
	next("both ready", func(m *apiv1.WatchAttachmentResponse) bool { return m.GetConverged() })

	// Another function host changes nothing for f1; the proxy must know it.
	rev2 := r.apply(t, strings.NewReplacer("f2", "f3", "80.9", "80.10", "10.244.2", "10.244.1").Replace(nodeF2)).GetRevision()
	next("a new host", func(m *apiv1.WatchAttachmentResponse) bool {
		return of(m, "f1").GetReady() && !of(m, "p1").GetReady() && !m.GetConverged() && m.GetRevision() == rev2
	})
	r.delete(t, intent.KindNode, "f3")
	next("without it", func(m *apiv1.WatchAttachmentResponse) bool { return m.GetConverged() })
	// A function host that went away does not hold things up, a proxy does.
	f1.cancel()
	next("f1 away", func(m *apiv1.WatchAttachmentResponse) bool {
		return m.GetConverged() && !of(m, "f1").GetReady() && strings.Contains(of(m, "f1").GetMessage(), "not connected, last seen")
	})
	p1.cancel()
	next("p1 away", func(m *apiv1.WatchAttachmentResponse) bool { return !m.GetConverged() })
	p1 = r.watch(t, nodeP1)
	p1.next()
	next("p1 back", func(m *apiv1.WatchAttachmentResponse) bool { return m.GetConverged() })

	// Deletion: the proxy has to report without it.
	r.delete(t, intent.KindAttachment, "orders")
	var gone int64
	next("deleted", func(m *apiv1.WatchAttachmentResponse) bool {
		gone = m.GetRevision()
		return !m.GetExists() && !m.GetConverged() && len(m.GetNodes()) == 2
	})
	r.report(t, "p1", gone, &apiv1.AttachmentReport{Name: "orders", Role: "proxy", Message: "namespace busy"})
	next("still removing", func(m *apiv1.WatchAttachmentResponse) bool { return of(m, "p1").GetMessage() == "namespace busy" })
	r.report(t, "p1", gone)
	next("removed", func(m *apiv1.WatchAttachmentResponse) bool { return m.GetConverged() })
}

func TestWatchAttachmentThatNeverWas(t *testing.T) {
	r := start(t)
	stream, err := r.control.WatchAttachment(t.Context(), connect.NewRequest(&apiv1.WatchAttachmentRequest{Name: "nope"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if stream.Receive() {
		t.Fatal("got a message")
	}
	wantCode(t, stream.Err(), connect.CodeNotFound, "Attachment/nope")
}
