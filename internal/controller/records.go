package controller

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Keys of the store, below its prefix:
//
//	node/NAME, group/NAME, attachment/NAME   JSON of an intent object
//	removed/NAME                             JSON of a tombstone
//	index                                    JSON of an index
const (
	removedDir = "removed/"
	indexKey   = "index"
)

var objectDirs = map[intent.Kind]string{
	intent.KindNode:       "node/",
	intent.KindProxyGroup: "group/",
	intent.KindAttachment: "attachment/",
}

func objectKey(kind intent.Kind, name string) string { return objectDirs[kind] + name }

func keyOf(o intent.Object) string { return objectKey(o.ObjectKind(), o.ObjectName()) }

// parseKey tells which object a key is of.
func parseKey(key string) (kind intent.Kind, name string, ok bool) {
	for kind, dir := range objectDirs {
		if name, ok := strings.CutPrefix(key, dir); ok {
			return kind, name, true
		}
	}
	return "", "", false
}

// tombstone tells that an operator deleted an attachment, and which nodes had
// a part in it.
type tombstone struct {
	RemovedAt time.Time `json:"removedAt"`
	Functions []string  `json:"functions,omitempty"`
	Proxies   []string  `json:"proxies,omitempty"`

	revision int64
}

// index is written with every change. Its revision orders the writes of all
// controllers, and its content outlives what it counts.
type index struct {
	// Attachments is how many there should be.
	Attachments int `json:"attachments"`
}

// encodeObject leaves out what the store knows itself.
func encodeObject(o intent.Object) ([]byte, error) {
	o = clone(o)
	o.Meta().Revision = 0
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", intent.Reference(o.ObjectKind(), o.ObjectName()), err)
	}
	return b, nil
}

// decodeObject reads what encodeObject wrote. Whatever would not be accepted
// from an operator is an error: nodes must be able to rely on it.
func decodeObject(kind intent.Kind, name string, b []byte, revision int64) (intent.Object, error) {
	o, err := intent.DecodeJSON(b)
	if err != nil {
		return nil, err
	}
	if o.ObjectKind() != kind || o.ObjectName() != name {
		return nil, fmt.Errorf("is of %s", intent.Reference(o.ObjectKind(), o.ObjectName()))
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Meta().Revision = revision
	return o, nil
}

// clone copies an object so far that its metadata and status can be changed.
func clone(o intent.Object) intent.Object {
	switch o := o.(type) {
	case *intent.Node:
		c := *o
		return &c
	case *intent.ProxyGroup:
		c := *o
		return &c
	case *intent.Attachment:
		c := *o
		return &c
	}
	return o
}
