package intent

import (
	"net/netip"
	"slices"
	"strings"
)

// DefaultPool is where tunnel addresses come from unless configured: the
// shared address space of RFC 6598, which user VPCs rarely use.
var DefaultPool = netip.MustParsePrefix("100.64.0.0/16")

// Set is all objects of a platform, or those that one node may know. The zero
// value is empty and usable for reading. It is not safe for concurrent writes.
type Set struct {
	// Revision grows with every change of the set.
	Revision int64 `json:"revision"`
	// Pool is the range of tunnel addresses.
	Pool        netip.Prefix  `json:"pool"`
	Nodes       []*Node       `json:"nodes"`
	Groups      []*ProxyGroup `json:"groups"`
	Attachments []*Attachment `json:"attachments"`
	// Removed is attachments that operators have deleted lately. One that
	// vanishes without being here may have been lost.
	Removed []*Attachment `json:"removed,omitempty"`
	// Unreadable names objects, in the form Kind/name, that exist though the
	// store cannot read them now. They are not deleted: see Retain.
	Unreadable []string `json:"unreadable,omitempty"`
}

// Clone returns a set that can be changed without changing s. The objects are
// shared.
func (s *Set) Clone() *Set {
	c := *s
	c.Nodes, c.Groups, c.Attachments = slices.Clone(s.Nodes), slices.Clone(s.Groups), slices.Clone(s.Attachments)
	c.Removed, c.Unreadable = slices.Clone(s.Removed), slices.Clone(s.Unreadable)
	return &c
}

// Get returns an object by kind and name; ok is false if there is none.
func (s *Set) Get(kind Kind, name string) (o Object, ok bool) {
	switch kind {
	case KindNode:
		n := s.Node(name)
		return n, n != nil
	case KindProxyGroup:
		g := s.Group(name)
		return g, g != nil
	case KindAttachment:
		a := s.Attachment(name)
		return a, a != nil
	}
	return nil, false
}

// List returns all objects of a kind, sorted by name.
func (s *Set) List(kind Kind) []Object {
	switch kind {
	case KindNode:
		return objects(s.Nodes)
	case KindProxyGroup:
		return objects(s.Groups)
	case KindAttachment:
		return objects(s.Attachments)
	}
	return nil
}

func objects[O Object](list []O) []Object {
	out := make([]Object, len(list))
	for i, o := range list {
		out[i] = o
	}
	return out
}

// Delete removes an object; one that is absent is left so.
func (s *Set) Delete(kind Kind, name string) {
	switch kind {
	case KindNode:
		s.Nodes = without(s.Nodes, name)
	case KindProxyGroup:
		s.Groups = without(s.Groups, name)
	case KindAttachment:
		s.Attachments = without(s.Attachments, name)
	}
}

func without[O Object](list []O, name string) []O {
	out := make([]O, 0, len(list))
	for _, o := range list {
		if o.ObjectName() != name {
			out = append(out, o)
		}
	}
	return out
}

// Node returns a node by name, or nil.
func (s *Set) Node(name string) *Node { return find(s.Nodes, name) }

// Group returns a proxy group by name, or nil.
func (s *Set) Group(name string) *ProxyGroup { return find(s.Groups, name) }

// Attachment returns an attachment by name, or nil.
func (s *Set) Attachment(name string) *Attachment { return find(s.Attachments, name) }

// find looks where a sorted list has the name, and then everywhere: a set that
// was not made by Put may not be sorted.
func find[O Object](list []O, name string) O {
	if i, found := search(list, name); found {
		return list[i]
	}
	for _, o := range list {
		if o.ObjectName() == name {
			return o
		}
	}
	var none O
	return none
}

func search[O Object](list []O, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(o O, name string) int { return strings.Compare(o.ObjectName(), name) })
}

// Put adds an object or replaces the one of its kind and name. Lists stay
// sorted by name.
func (s *Set) Put(o Object) {
	switch o := o.(type) {
	case *Node:
		s.Nodes = put(s.Nodes, o)
	case *ProxyGroup:
		s.Groups = put(s.Groups, o)
	case *Attachment:
		s.Attachments = put(s.Attachments, o)
	}
}

func put[O Object](list []O, o O) []O {
	i, found := search(list, o.ObjectName())
	if found {
		list = slices.Clone(list)
		list[i] = o
		return list
	}
	return slices.Insert(slices.Clone(list), i, o)
}
