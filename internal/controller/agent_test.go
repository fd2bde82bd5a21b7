package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func attachmentNames(list []*intent.Attachment) (names []string) {
	for _, a := range list {
		names = append(names, a.ObjectName())
	}
	return names
}

func TestWatchStreamsWhatConcernsTheNode(t *testing.T) {
	r := start(t)
	r.platform(t)
	f1 := r.watch(t, nodeF1)
	f2 := r.watch(t, nodeF2)
	p1 := r.watch(t, nodeP1)
	if s := f1.next(); len(s.Attachments) != 0 || s.Node("f1") == nil || s.Node("f2") != nil {
		t.Errorf("first snapshot of f1 has nodes %v", s.Nodes)
	}
	f2.next()
	p1.next()

	rev := r.apply(t, orders).GetRevision()
	s := f1.next()
	if s.Revision != rev || s.Attachment("orders") == nil || s.Group("g") == nil || s.Node("p1") == nil {
		t.Errorf("f1 learned %+v at %d; want orders, its group and proxy at %d", s.Attachments, s.Revision, rev)
	}
	if s := p1.next(); s.Attachment("orders") == nil || s.Node("f1") == nil || s.Node("f2") != nil {
		t.Errorf("p1 learned nodes %v; want f1, which uses the attachment, and not f2", s.Nodes)
	}
	// The next that f2 hears is about its own attachment: not of orders.
	rev = r.apply(t, attach("two", "pods", `["10.244.2.5"]`, "group", `"h"`, "greKey", "5")).GetRevision()
	if s := f2.next(); s.Revision != rev || s.Attachment("orders") != nil || s.Attachment("two") == nil {
		t.Errorf("f2 got revision %d with %v; want %d with two alone", s.Revision, attachmentNames(s.Attachments), rev)
	}

	r.delete(t, intent.KindAttachment, "orders")
	if s := f1.next(); s.Attachment("orders") != nil || !slices.Equal(attachmentNames(s.Removed), []string{"orders"}) || s.Removed[0].Status.GREKey != nil {
		t.Errorf("after the deletion f1 has %v, removed %+v; want nothing, and orders by name alone", s.Attachments, s.Removed)
	}
}

// An attachment that moves away from a node is no loss for it.
func TestWatchTellsWhatMovedAway(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, orders)
	p1 := r.watch(t, nodeP1)
	p1.next()
	r.apply(t, strings.Replace(orders, `"group":"g"`, `"group":"h"`, 1))
	if s := p1.next(); !slices.Equal(attachmentNames(s.Removed), []string{"orders"}) {
		t.Errorf("the former proxy is told of removals %v; want orders", attachmentNames(s.Removed))
	}
	// A node that was away says what it knows. "lost" was never heard of here.
	again := r.watch(t, nodeP1, "orders", "lost")
	if s := again.next(); !slices.Equal(attachmentNames(s.Removed), []string{"orders"}) {
		t.Errorf("after an absence the proxy is told of removals %v; want orders alone", attachmentNames(s.Removed))
	}
}

func TestRegistration(t *testing.T) {
	r := start(t)
	f1 := r.watch(t, nodeF1)
	if s := f1.next(); s.Node("f1") == nil || s.Node("f1").Tunnel().String() != "100.64.0.1" || s.Node("f1").Metadata.ManagedBy != "agent" {
		t.Fatalf("registered as %+v; want an agent's node with a tunnel address", s.Node("f1"))
	}
	rev := r.status(t).GetRevision()
	f1.cancel()
	r.watch(t, nodeF1).next()
	if got := r.status(t).GetRevision(); got != rev {
		t.Errorf("registering the same again went from revision %d to %d", rev, got)
	}
	// The agent may change its own.
	moved := strings.Replace(nodeF1, "192.168.80.8", "192.168.80.18", 1)
	if s := r.watch(t, moved).next(); s.Node("f1").Spec.UnderlayAddress.String() != "192.168.80.18" || s.Node("f1").Tunnel().String() != "100.64.0.1" {
		t.Errorf("after a move: %+v; want the new underlay address and the old tunnel address", s.Node("f1"))
	}
	// What an operator applies takes precedence from then on.
	if got := outcomes(r.apply(t, moved)); got[0] != updated {
		t.Errorf("an operator's apply of the same spec is %v; want updated: the operator owns it now", got)
	}
	if s := r.watch(t, nodeF1).next(); s.Node("f1").Spec.UnderlayAddress.String() != "192.168.80.18" || s.Node("f1").Metadata.ManagedBy != "" {
		t.Errorf("an agent changed an operator's node to %+v", s.Node("f1"))
	}
}

func TestRegistrationIsRefused(t *testing.T) {
	r := start(t)
	r.platform(t)
	for name, c := range map[string]struct {
		node string
		code connect.Code
		text string
	}{
		"malformed":     {`{"kind":"Node","metadata":{"name":"x"},"spec":{"roles":["proxy"],"underlay":"1"}}`, connect.CodeInvalidArgument, "spec.underlay"},
		"incomplete":    {`{"kind":"Node","metadata":{"name":"x"},"spec":{"roles":["proxy"]}}`, connect.CodeInvalidArgument, "spec.underlayAddress"},
		"taken address": {node("x", `"roles":["proxy"],"underlayAddress":"192.168.80.8"`), connect.CodeAlreadyExists, "is the address of node f1"},
		"not a node":    {groupG, connect.CodeInvalidArgument, "is not Node"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := r.agent.Watch(t.Context(), connect.NewRequest(&apiv1.WatchRequest{Node: object(t, c.node)}))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stream.Close() }()
			if stream.Receive() {
				t.Fatal("got a message")
			}
			wantCode(t, stream.Err(), c.code, c.text)
		})
	}
	if r.agents.connected("x") {
		t.Error("a node that was refused counts as connected")
	}
}

func TestConnectedNodes(t *testing.T) {
	r := start(t)
	r.platform(t)
	statusOf := func(node string) *apiv1.NodeReport {
		for _, n := range r.status(t).GetNodes() {
			if n.GetNode() == node {
				return n
			}
		}
		t.Fatalf("no node %s in the status", node)
		return nil
	}
	if n := statusOf("f2"); n.GetConnected() || n.GetUnderlayAddress() != "192.168.80.9" || n.GetTunnelAddress() != "100.64.0.2" || !slices.Equal(n.GetRoles(), []string{"function"}) {
		t.Errorf("status of a node that never connected: %v", n)
	}
	first := r.watch(t, nodeF2)
	first.next()
	if !statusOf("f2").GetConnected() {
		t.Error("a node with a stream is not connected")
	}
	_, err := r.control.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: "Node", Name: "f2"}))
	wantCode(t, err, connect.CodeFailedPrecondition, "stop the agent first")

	// A second stream ends the first, and its end does not end the second.
	r.watch(t, nodeF2).next()
	if first.stream.Receive(); connect.CodeOf(first.stream.Err()) != connect.CodeAborted {
		t.Errorf("the former stream ended with %v; want Aborted", first.stream.Err())
	}
	if !statusOf("f2").GetConnected() {
		t.Error("the end of the former stream disconnected the node")
	}

	report := &apiv1.NodeReport{Node: "f2", Version: "1", InSync: true, Connected: false, Problems: []string{"p"}}
	if _, err := r.agent.Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: report})); err != nil {
		t.Fatal(err)
	}
	if n := statusOf("f2"); !n.GetConnected() || n.GetVersion() != "1" || !n.GetInSync() || n.GetLastSeen() == nil {
		t.Errorf("status after a report: %v", n)
	}
	_, err = r.agent.Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: &apiv1.NodeReport{Node: "nobody"}}))
	wantCode(t, err, connect.CodeFailedPrecondition, `"nobody" is not registered`)
}

// A node that is deleted while its agent connects learns it.
func TestStreamOfDeletedNode(t *testing.T) {
	r := start(t)
	r.platform(t)
	errs := make(chan error, 1)
	sent := make(chan struct{}, 10)
	go func() {
		errs <- r.stream(t.Context(), "f2", nil, &stream{}, func(*apiv1.WatchResponse) error {
			sent <- struct{}{}
			return nil
		})
	}()
	<-sent
	r.delete(t, intent.KindNode, "f2")
	select {
	case err := <-errs:
		wantCode(t, err, connect.CodeAborted, "was deleted")
	case <-time.After(patience):
		t.Fatal("the stream goes on")
	}
}

// published makes a controller without a store that has one view.
func published(t *testing.T, set *intent.Set) *Controller {
	t.Helper()
	c := &Controller{log: slog.New(slog.DiscardHandler), beat: heartbeat, agents: newRegistry(), first: make(chan struct{})}
	c.mirror = newMirror(intent.DefaultPool)
	c.mirror.set = set
	c.publish(&guard{})
	return c
}

func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := &intent.Set{Revision: 1}
		set.Put(decoded[*intent.Node](t, object(t, nodeF1)))
		set.Node("f1").Metadata.Revision = 1
		c := published(t, set)
		ctx, cancel := context.WithCancel(t.Context())
		var beats, snapshots int
		done := make(chan error, 1)
		go func() {
			done <- c.stream(ctx, "f1", nil, &stream{}, func(m *apiv1.WatchResponse) error {
				if len(m.GetSnapshot()) > 0 {
					snapshots++
				} else {
					beats++
				}
				return nil
			})
		}()
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if snapshots != 1 || beats != 6 {
			t.Errorf("%d snapshots and %d heartbeats in a minute; want 1 and 6", snapshots, beats)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("stream: %v", err)
		}
	})
}

// A reader that is slow gets the latest, not all that was between.
func TestSlowReader(t *testing.T) {
	r := start(t)
	r.platform(t)
	gate := make(chan struct{})
	got := make(chan *apiv1.WatchResponse)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = r.stream(ctx, "p1", nil, &stream{}, func(m *apiv1.WatchResponse) error {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			got <- m
			return nil
		})
	}()
	var rev int64
	for n := range 20 { // all while the first message is being sent
		rev = r.apply(t, numberedAttachment(n+1)).GetRevision()
	}
	close(gate)
	<-got
	m := <-got
	if want := fmt.Sprintf(`{"revision":%d,`, rev); !strings.HasPrefix(string(m.GetSnapshot()), want) {
		t.Errorf("the second message begins %.40s; want the latest, %s", m.GetSnapshot(), want)
	}
}

func TestENIsAreCheckedAgainstTheProxy(t *testing.T) {
	r := start(t)
	r.platform(t)
	warned := r.apply(t, attach("early", "enis", `[{"name":"eth9"}]`, "pods", `["10.244.1.90"]`)).GetResults()[0].GetWarnings()
	if len(warned) != 1 || !strings.Contains(warned[0], "proxy p1 is not connected") {
		t.Errorf("warnings %q; want one that the proxy is not connected", warned)
	}
	r.delete(t, intent.KindAttachment, "early")
	r.watch(t, nodeP1).next()
	report := &apiv1.NodeReport{Node: "p1", Interfaces: []*apiv1.Interface{
		{Name: "eth0", Mac: "02:00:00:00:00:00", Addresses: []string{"192.168.4.100/24"}},
		{Name: "eth1", Mac: "02:42:AC:10:65:04", Pci: "0000:00:05.0"},
		{Name: "eth2", Mac: "02:00:00:00:00:02", Attachment: "other"},
	}}
	if _, err := r.agent.Report(t.Context(), connect.NewRequest(&apiv1.ReportRequest{Report: report})); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		eni  string
		code connect.Code
		text string
	}{
		"unknown":  {`[{"name":"eth7"}]`, connect.CodeNotFound, "proxy p1 has no interface name=eth7; it has eth0 (mac 02:00:00:00:00:00), eth1 (mac 02:42:AC:10:65:04, pci 0000:00:05.0), eth2 (mac 02:00:00:00:00:02, of attachment other)"},
		"underlay": {`[{"mac":"02:00:00:00:00:00"}]`, connect.CodeInvalidArgument, "is the interface by which proxy p1 is reached"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, attach("x", "enis", c.eni))))
			wantCode(t, err, c.code, "Attachment/x: spec.enis[0]: ", c.text)
		})
	}
	if w := r.apply(t, orders).GetResults()[0].GetWarnings(); len(w) > 0 {
		t.Errorf("warnings %q about an interface that is there", w)
	}
	// The same one by another of its names.
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, attach("x", "enis", `[{"pci":"0000:00:05.0"}]`, "pods", `["10.244.1.6"]`))))
	wantCode(t, err, connect.CodeAlreadyExists, "serves attachment orders already, as mac=02:42:ac:10:65:04")
}
