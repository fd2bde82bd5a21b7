package controller

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// FuzzMirror feeds values of the store: each is taken over whole, or known as one
// that cannot be read, and is gone with its key.
func FuzzMirror(f *testing.F) {
	for key, value := range map[string]string{
		"node/p1":           `{"apiVersion":"vpcproxy.io/v1alpha1","kind":"Node","metadata":{"name":"p1"},"spec":{"roles":["proxy"],"underlayAddress":"192.168.4.4"}}`,
		"group/g1":          `{"apiVersion":"vpcproxy.io/v1alpha1","kind":"ProxyGroup","metadata":{"name":"g1"},"spec":{"members":[{"node":"p1"}]}}`,
		"attachment/a1":     `{"apiVersion":"vpcproxy.io/v1alpha1","kind":"Attachment"}`,
		removedDir + "gone": `{"key":7}`,
		indexKey:            `{"attachments":3}`,
	} {
		f.Add(key, []byte(value))
	}
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		m := newMirror(netip.MustParsePrefix("100.64.0.0/16"))
		m.load([]store.Entry{{Key: key, Value: value, Revision: 2}}, 2, log)
		_, unreadable := m.unreadable[key]
		if kind, name, ok := parseKey(key); ok {
			o, found := m.set.Get(kind, name)
			if found == unreadable {
				t.Fatalf("%s: taken over %t, unreadable %t", key, found, unreadable)
			}
			if found && (o.Meta().Revision != 2 || o.Validate() != nil) {
				t.Errorf("%s is taken over as %+v", key, o)
			}
			if unreadable && len(m.set.Unreadable) == 0 {
				t.Errorf("%s cannot be read, and nodes are not told", intent.Reference(kind, name))
			}
		}
		if unreadable == (m.problem() == "") {
			t.Errorf("unreadable %t, problem %q", unreadable, m.problem())
		}
		m.apply([]store.Event{{Entry: store.Entry{Key: key, Revision: 3}, Deleted: true}}, log)
		if m.problem() != "" || m.attachments() > 0 || len(m.tombstones) > 0 || m.indexRev != 0 {
			t.Errorf("%s is deleted, and not forgotten: %+v", key, m)
		}
	})
}
