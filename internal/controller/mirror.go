package controller

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// mirror is the store's content, decoded. It belongs to one goroutine.
type mirror struct {
	set        *intent.Set // never changed in place: views share it
	tombstones map[string]tombstone
	unreadable map[string]broken // by key
	index      index
	indexRev   int64 // 0 if there is none
	at         int64 // the store's revision that is reflected
}

// broken is a value that cannot be read.
type broken struct {
	revision int64
	why      string
}

func newMirror(pool netip.Prefix) *mirror {
	return &mirror{set: &intent.Set{Pool: pool}, tombstones: map[string]tombstone{}, unreadable: map[string]broken{}}
}

// load replaces the content. Objects that have not changed stay the same in
// memory, and those that cannot be read stay as they were.
func (m *mirror) load(entries []store.Entry, revision int64, log *slog.Logger) {
	next := newMirror(m.set.Pool)
	next.set.Revision = m.set.Revision
	next.unreadable = map[string]broken{}
	for _, e := range entries {
		next.put(e, m.set, m.unreadable, log)
		next.set.Revision = max(next.set.Revision, e.Revision)
	}
	next.at = revision
	next.seal()
	*m = *next
}

// apply takes over changes.
func (m *mirror) apply(events []store.Event, log *slog.Logger) {
	before := m.set
	m.set = m.set.Clone()
	m.tombstones, m.unreadable = maps.Clone(m.tombstones), maps.Clone(m.unreadable)
	for _, e := range events {
		if e.Deleted {
			m.delete(e.Key)
		} else {
			m.put(e.Entry, before, m.unreadable, log)
		}
		m.at = max(m.at, e.Revision)
		m.set.Revision = max(m.set.Revision, e.Revision)
	}
	m.seal()
}

func (m *mirror) delete(key string) {
	delete(m.unreadable, key)
	if kind, name, ok := parseKey(key); ok {
		m.set.Delete(kind, name)
	} else if name, ok := strings.CutPrefix(key, removedDir); ok {
		delete(m.tombstones, name)
	} else if key == indexKey {
		m.index, m.indexRev = index{}, 0
	}
}

func (m *mirror) put(e store.Entry, before *intent.Set, known map[string]broken, log *slog.Logger) {
	delete(m.unreadable, e.Key)
	var err error
	if kind, name, ok := parseKey(e.Key); ok {
		err = m.putObject(e, kind, name, before)
	} else if name, ok := strings.CutPrefix(e.Key, removedDir); ok {
		t := tombstone{revision: e.Revision}
		if err = json.Unmarshal(e.Value, &t); err == nil {
			m.tombstones[name] = t
		}
	} else if e.Key == indexKey {
		m.indexRev = e.Revision
		err = json.Unmarshal(e.Value, &m.index)
	}
	if err == nil {
		return
	}
	if known[e.Key].revision != e.Revision {
		log.Error("stored value cannot be read; what it was before stays in force", "key", e.Key, "revision", e.Revision, "err", err)
	}
	m.unreadable[e.Key] = broken{e.Revision, err.Error()}
}

func (m *mirror) putObject(e store.Entry, kind intent.Kind, name string, before *intent.Set) error {
	old, exists := before.Get(kind, name)
	if exists && old.Meta().Revision == e.Revision {
		m.set.Put(old)
		return nil
	}
	o, err := decodeObject(kind, name, e.Value, e.Revision)
	if err == nil {
		m.set.Put(o)
	} else if exists {
		m.set.Put(old)
	}
	return err
}

// seal completes the set with what follows from the rest.
func (m *mirror) seal() {
	m.set.Removed = nil
	for _, name := range slices.Sorted(maps.Keys(m.tombstones)) {
		m.set.Removed = append(m.set.Removed, &intent.Attachment{
			TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
			Metadata: intent.Metadata{Name: name, Revision: m.tombstones[name].revision},
		})
	}
	m.set.Unreadable = nil
	for _, key := range slices.Sorted(maps.Keys(m.unreadable)) {
		if kind, name, ok := parseKey(key); ok {
			if _, ok := m.set.Get(kind, name); !ok {
				m.set.Unreadable = append(m.set.Unreadable, intent.Reference(kind, name))
			}
		}
	}
	if len(m.set.Unreadable) == 0 {
		return
	}
	// Without its group, nobody can tell whose an attachment is.
	for _, a := range m.set.Attachments {
		if slices.ContainsFunc(a.Services(), func(s intent.Service) bool {
			return slices.Contains(m.set.Unreadable, intent.Reference(intent.KindProxyGroup, s.Name))
		}) {
			m.set.Unreadable = append(m.set.Unreadable, intent.Reference(intent.KindAttachment, a.ObjectName()))
		}
	}
}

// attachments counts those that exist, readable or not.
func (m *mirror) attachments() int {
	n := len(m.set.Attachments)
	for key := range m.unreadable {
		if kind, name, ok := parseKey(key); ok && kind == intent.KindAttachment && m.set.Attachment(name) == nil {
			n++
		}
	}
	return n
}

// problem sums up what cannot be read, or is "".
func (m *mirror) problem() string {
	keys := slices.Sorted(maps.Keys(m.unreadable))
	if len(keys) == 0 {
		return ""
	}
	return fmt.Sprintf("%d stored values cannot be read, and nodes keep what they had; first %s: %s; apply the object again, or delete it",
		len(keys), keys[0], m.unreadable[keys[0]].why)
}
