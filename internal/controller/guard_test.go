package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// setOf makes a set of attachments named by letters; those in removed have a
// tombstone.
func setOf(names, removed string) *intent.Set {
	s := &intent.Set{}
	for _, n := range strings.Split(names, "") {
		s.Put(&intent.Attachment{Metadata: intent.Metadata{Name: n}})
	}
	for _, n := range strings.Split(removed, "") {
		s.Removed = append(s.Removed, &intent.Attachment{Metadata: intent.Metadata{Name: n}})
	}
	return s
}

func namesOf(s *intent.Set) string {
	if s == nil {
		return "nothing"
	}
	return strings.Join(attachmentNames(s.Attachments), "")
}

func TestGuard(t *testing.T) {
	type step struct {
		store, removed string // what the store holds
		indexed        int
		confirm        bool
		served         string // what nodes get
		reason         string // part of it; "" is none at all
	}
	for name, steps := range map[string][]step{
		"grows and shrinks by operators": {
			{store: "abcdef", indexed: 6, served: "abcdef"},
			{store: "a", removed: "bcdef", indexed: 1, served: "a"},
		},
		"a third is no more than a third": {
			{store: "abcdef", indexed: 6, served: "abcdef"},
			{store: "abcd", indexed: 6, served: "abcd"},
		},
		"more than a third": {
			{store: "abcdef", indexed: 6, served: "abcdef"},
			{store: "abc", indexed: 6, served: "abcdef", reason: "3 of 6 attachments vanished from the store without having been deleted (d, e, f)"},
			{store: "abcx", indexed: 7, served: "abcdef", reason: "3 of 7"},
			{store: "abcdx", indexed: 7, served: "abcdef", reason: "2 of 7"}, // not before all are back
			{store: "abcdefx", indexed: 7, served: "abcdefx"},
		},
		"one by one": {
			{store: "abcdef", indexed: 6, served: "abcdef"},
			{store: "abcde", indexed: 6, served: "abcde"},
			{store: "abcd", indexed: 6, served: "abcd"},
			{store: "abc", indexed: 6, served: "abcd", reason: "3 of 6"},
		},
		"the only one": {
			{store: "a", indexed: 1, served: "a"},
			{store: "", indexed: 1, served: "a", reason: "1 of 1"},
		},
		"confirmed": {
			{store: "abc", indexed: 3, served: "abc"},
			{store: "", indexed: 3, served: "abc", reason: "3 of 3"},
			{confirm: true, served: ""},
			{store: "xyz", indexed: 3, served: "xyz"},
			{store: "xy", indexed: 3, served: "xy"}, // counted anew
		},
		"a lost one is deleted": {
			{store: "abc", indexed: 3, served: "abc"},
			{store: "a", indexed: 3, served: "abc", reason: "2 of 3"},
			{store: "a", removed: "bc", indexed: 1, served: "a"},
		},
		"lost before the start": {
			{store: "ab", indexed: 6, served: "nothing", reason: "4 of 6 attachments vanished from the store without having been deleted; nodes"},
			{store: "abc", indexed: 6, served: "nothing", reason: "3 of 6"},
			{store: "ab", removed: "c", indexed: 5, served: "nothing", reason: "3 of 5"},
			{store: "abdef", removed: "c", indexed: 5, served: "abdef"},
		},
		"lost before the start and confirmed": {
			{store: "", indexed: 6, served: "nothing", reason: "6 of 6"},
			{confirm: true, served: ""},
		},
		"little lost before the start": {
			{store: "abcd", indexed: 6, served: "abcd"},
		},
		"a new store": {
			{store: "", indexed: 0, served: ""},
			{store: "a", indexed: 1, served: "a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var g guard
			var set *intent.Set
			for i, s := range steps {
				if s.confirm {
					g.confirm(set)
				} else {
					set = setOf(s.store, s.removed)
					g.offer(set, len(set.Attachments), s.indexed)
				}
				if got := namesOf(g.served); got != s.served {
					t.Errorf("step %d: served %q; want %q", i, got, s.served)
				}
				if got := g.reason(len(set.Attachments)); !strings.Contains(got, s.reason) || (got == "") != (s.reason == "") {
					t.Errorf("step %d: reason %q; want %q", i, got, s.reason)
				}
			}
		})
	}
}

// raw changes the store as nobody should.
func (r *rig) raw(t *testing.T, ops ...store.Op) {
	t.Helper()
	revision, err := r.store.Txn(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.reach(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
}

func TestLossIsHeldUntilConfirmed(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	r := startOn(t, prefix)
	r.platform(t)
	r.apply(t, numberedAttachment(1), numberedAttachment(2), numberedAttachment(3))
	p1 := r.watch(t, nodeP1)
	p1.next()
	_, err := r.control.ConfirmRemoval(t.Context(), connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
	wantCode(t, err, connect.CodeFailedPrecondition, "no loss")

	r.raw(t, store.Op{Key: "attachment/a001", Delete: true}, store.Op{Key: "attachment/a002", Delete: true})
	if held := r.status(t).GetHeld(); !strings.Contains(held, "2 of 3 attachments vanished") || !strings.Contains(held, "(a001, a002)") {
		t.Errorf("held: %q", held)
	}
	if !strings.Contains(r.log.String(), "intent held back") {
		t.Error("nothing is logged")
	}
	// Changes are stored, and said to be held too.
	warned := r.apply(t, orders).GetResults()[0].GetWarnings()
	if len(warned) != 2 || !strings.Contains(warned[1], "nodes do not learn of this yet") {
		t.Errorf("warnings %q; want one that nodes do not learn of it", warned)
	}
	r.stop()

	// A controller that starts knows it by the index, without names, and
	// leaves the nodes what they have.
	r = startOn(t, prefix)
	if held := r.status(t).GetHeld(); !strings.Contains(held, "2 of 4 attachments vanished") {
		t.Errorf("held after a restart: %q", held)
	}
	p1 = r.watch(t, nodeP1, "a001", "a002", "a003")
	resp, err := r.control.ConfirmRemoval(t.Context(), connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Msg.GetRemoved()) != 0 {
		t.Errorf("confirmed %v; want no names, which are not known", resp.Msg.GetRemoved())
	}
	if s := p1.next(); !slices.Equal(attachmentNames(s.Attachments), []string{"a003", "orders"}) {
		t.Errorf("the first snapshot has %v; want what is left, after the confirmation", attachmentNames(s.Attachments))
	}
	r.stop()

	r = startOn(t, prefix)
	if held := r.status(t).GetHeld(); held != "" {
		t.Errorf("held after a confirmation and a restart: %q", held)
	}
}

func TestLossIsMendedByApplyingAgain(t *testing.T) {
	r := start(t)
	r.platform(t)
	list := []string{numberedAttachment(1), numberedAttachment(2), numberedAttachment(3)}
	key, _ := attachmentOf(t, r.apply(t, list...).GetResults()[1].GetObject()).Key()
	p1 := r.watch(t, nodeP1)
	p1.next()
	r.raw(t, store.Op{Key: "attachment/a001", Delete: true}, store.Op{Key: "attachment/a002", Delete: true})
	r.apply(t, list...)
	if held := r.status(t).GetHeld(); held != "" {
		t.Errorf("held though all are back: %q", held)
	}
	if s := p1.next(); len(s.Attachments) != 3 || len(s.Removed) > 0 {
		t.Errorf("the snapshot after has %v, removed %v; want all three", attachmentNames(s.Attachments), attachmentNames(s.Removed))
	}
	if again, _ := get[*intent.Attachment](t, r, intent.KindAttachment, "a002").Key(); again != key {
		t.Errorf("the key of a002 was %d and is %d; nodes use the old one", key, again)
	}
}

func TestConfirmNamesTheLost(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, orders)
	r.raw(t, store.Op{Key: "attachment/orders", Delete: true})
	resp, err := r.control.ConfirmRemoval(t.Context(), connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
	if err != nil || !slices.Equal(resp.Msg.GetRemoved(), []string{"orders"}) {
		t.Errorf("confirmed %v, %v; want orders", resp, err)
	}
}

func TestUnreadableValues(t *testing.T) {
	for name, value := range map[string]string{
		"no JSON":       `{"kind":`,
		"unknown field": strings.Replace(orders, `"vpc"`, `"apiVersion":1,"vpc"`, 1),
		"another name":  strings.Replace(strings.Replace(orders, `"name":"orders"`, `"name":"other"`, 1), `{"kind"`, `{"apiVersion":"vpcproxy.io/v1alpha1","kind"`, 1),
		"not valid":     strings.Replace(strings.Replace(orders, "/24", "/0", 1), `{"kind"`, `{"apiVersion":"vpcproxy.io/v1alpha1","kind"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			prefix := fmt.Sprintf("/%s/", strings.ReplaceAll(t.Name(), "/", "-"))
			r := startOn(t, prefix)
			r.platform(t)
			r.apply(t, orders, numberedAttachment(1))
			p1 := r.watch(t, nodeP1)
			p1.next()
			r.raw(t, store.Op{Key: "attachment/orders", Value: []byte(value)})
			if held := r.status(t).GetHeld(); !strings.Contains(held, "1 stored values cannot be read") || !strings.Contains(held, "attachment/orders") {
				t.Errorf("held: %q; want the key", held)
			}
			// The controller knows what it was, so it is as if it still was,
			// even when it has to read everything again.
			m := r.copyOfMirror()
			entries, rev, err := r.store.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m.load(entries, rev, r.Controller.log)
			if m.set.Attachment("orders") == nil || len(m.set.Unreadable) > 0 {
				t.Errorf("read again: attachments %v, unreadable %v", attachmentNames(m.set.Attachments), m.set.Unreadable)
			}
			if a := get[*intent.Attachment](t, r, intent.KindAttachment, "orders"); a.Spec.VPC != "acme" {
				t.Errorf("orders is %+v", a)
			}
			r.stop()

			// A new one does not; the others are served, and nodes are told
			// to keep what they have.
			r = startOn(t, prefix)
			_, err = r.control.Get(t.Context(), connect.NewRequest(&apiv1.GetRequest{Kind: "Attachment", Name: "orders"}))
			wantCode(t, err, connect.CodeDataLoss, "Attachment/orders cannot be read", "apply it again, or delete it")
			s := r.watch(t, nodeP1, "orders", "a001").next()
			if s.Attachment("a001") == nil || len(s.Removed) > 0 || !slices.Equal(s.Unreadable, []string{"Attachment/orders"}) {
				t.Errorf("snapshot: attachments %v, removed %v, unreadable %v", attachmentNames(s.Attachments), attachmentNames(s.Removed), s.Unreadable)
			}
			if got := outcomes(r.apply(t, orders)); got[0] != updated {
				t.Errorf("applying it again: %v; want updated", got)
			}
			if held := r.status(t).GetHeld(); held != "" {
				t.Errorf("held after it was applied again: %q", held)
			}
		})
	}
}

// copyOfMirror makes a mirror of what the controller shows: its own belongs to a
// goroutine.
func (r *rig) copyOfMirror() *mirror {
	v := r.view.Load()
	m := newMirror(v.set.Pool)
	m.set, m.unreadable = v.set, v.unreadable
	return m
}

func TestUnreadableGroupAndNode(t *testing.T) {
	prefix := "/" + t.Name() + "/"
	r := startOn(t, prefix)
	r.platform(t)
	r.apply(t, orders)
	r.raw(t, store.Op{Key: "group/g", Value: []byte("x")}, store.Op{Key: "node/f2", Value: []byte("x")})
	r.stop()
	r = startOn(t, prefix)
	if s := r.watch(t, nodeF1).next(); !slices.Equal(s.Unreadable, []string{"ProxyGroup/g", "Node/f2", "Attachment/orders"}) {
		t.Errorf("unreadable: %v; want the group, the node, and the attachment that needs the group", s.Unreadable)
	}
	// The node's own agent does not overwrite what an operator may have
	// applied.
	f2 := r.watch(t, nodeF2)
	eventually(t, "f2 connected", func() bool { return r.agents.connected("f2") })
	if _, ok := r.view.Load().unreadable["node/f2"]; !ok {
		t.Error("the agent replaced the node's value")
	}
	r.apply(t, nodeF2)
	if s := f2.next(); s.Node("f2") == nil {
		t.Error("f2 is not told of itself once it is readable")
	}
	r.delete(t, intent.KindAttachment, "orders")
	r.delete(t, intent.KindProxyGroup, "g")
}
