// Package intent holds what operators ask for: the objects Attachment,
// ProxyGroup and Node, their strict decoding and validation, and the Snapshot
// of them that one node may know. It is a leaf: it imports the standard
// library only and touches nothing outside memory.
package intent

import (
	"net/netip"
	"slices"
)

// APIVersion is the only version of the objects that this release speaks.
const APIVersion = "vpcproxy.io/v1alpha1"

// Kind names a sort of object, as in the field "kind".
type Kind string

// The kinds of objects.
const (
	KindAttachment Kind = "Attachment"
	KindProxyGroup Kind = "ProxyGroup"
	KindNode       Kind = "Node"
)

// Kinds lists every Kind in the order in which objects must be applied: what
// is referred to comes first.
var Kinds = []Kind{KindNode, KindProxyGroup, KindAttachment}

// Object is an Attachment, a ProxyGroup or a Node.
type Object interface {
	// ObjectKind returns the object's kind.
	ObjectKind() Kind
	// ObjectName returns metadata.name, unique within the kind.
	ObjectName() string
	// Meta returns the object's metadata, which the caller may change.
	Meta() *Metadata
	// Validate checks the object alone and returns every problem found, as
	// joined *FieldError values.
	Validate() error
}

// TypeMeta is how an object says what it is.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       Kind   `json:"kind"`
}

// Metadata names an object.
type Metadata struct {
	// Name is a DNS label (RFC 1123): at most 63 characters of a-z, 0-9, "-".
	Name string `json:"name"`
	// Revision is set by the controller at every change; an apply that
	// carries one is refused if the object has changed since.
	Revision int64 `json:"revision,omitempty"`
	// ManagedBy is "agent" if the object was registered by its node's agent
	// and no operator has applied it since. It is set by the controller.
	ManagedBy string `json:"managedBy,omitempty"`
}

// ManagedByAgent is the Metadata.ManagedBy of a Node that registered itself.
const ManagedByAgent = "agent"

// Scope says whose traffic an attachment takes.
type Scope string

// The scopes.
const (
	// ScopePods takes traffic of the pod sources that the attachment lists.
	ScopePods Scope = "pods"
	// ScopeHost routes for the whole host, its own traffic too, as in the
	// plain recipe.
	ScopeHost Scope = "host"
)

// Attachment makes one user subnet reachable.
type Attachment struct {
	TypeMeta
	Metadata Metadata         `json:"metadata"`
	Spec     AttachmentSpec   `json:"spec"`
	Status   AttachmentStatus `json:"status,omitzero"`
}

// AttachmentSpec is the part that operators write.
type AttachmentSpec struct {
	// VPC is the user's VPC, a name of the platform's choosing. Subnets of
	// different VPCs may overlap.
	VPC string `json:"vpc"`
	// CIDRs are the destinations inside the VPC.
	CIDRs []netip.Prefix `json:"cidrs"`
	// Group names the ProxyGroup that serves the attachment.
	Group string `json:"group,omitempty"`
	// Groups names several, instead of Group: function hosts spread over
	// those that are alive, and prefer those in their own zone. That needs
	// BGP; without it they use the first.
	Groups []Service `json:"groups,omitempty"`
	// Scope defaults to pods.
	Scope Scope `json:"scope,omitempty"`
	// Pods are pod sources that use the attachment (scope pods). Others are
	// bound on their function host when they start.
	Pods []netip.Prefix `json:"pods,omitempty"`
	// Prewarm has function hosts prepare the path though no pod uses it
	// yet: the first that is bound does not wait for it (scope pods).
	Prewarm bool `json:"prewarm,omitempty"`
	// Nodes limits the attachment to these function hosts; empty means all
	// whose podCIDRs match (pods that are listed) or all.
	Nodes []string `json:"nodes,omitempty"`
	// ENIs says which interface of which proxy is in the user's subnet.
	ENIs []ENI `json:"enis"`
	// SNATAddress is the source that the user VPC sees. Without it the
	// proxy masquerades: the ENI's primary address.
	SNATAddress netip.Addr `json:"snatAddress,omitzero"`
	// HaVip is the source that the user VPC sees if the group has a haVip: an
	// address of the user's subnet, on the active proxy's ENI.
	HaVip netip.Addr `json:"haVip,omitzero"`
	// Probe is an address of the user's VPC that answers ICMP echo while the VPC
	// is reachable, such as a gateway: each proxy asks it through its own
	// interface, and one that gets no answer is less fit to be active.
	Probe netip.Addr `json:"probe,omitzero"`
	// GREKey fixes the key. Without it the controller draws a random one
	// (scope pods), or the tunnel has none (scope host).
	GREKey *uint32 `json:"greKey,omitempty"`
	// AllowOverlap accepts CIDRs that overlap the platform's own ranges.
	AllowOverlap bool `json:"allowOverlap,omitempty"`
}

// ENI names an elastic network interface by exactly one of its properties.
type ENI struct {
	// Node is the proxy that holds it; it may be left out if the group has
	// a single member.
	Node string `json:"node,omitempty"`
	Name string `json:"name,omitempty"`
	MAC  string `json:"mac,omitempty"`
	PCI  string `json:"pci,omitempty"`
	// Addresses are put on the interface in addition to those it brings.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateway is the user subnet's router, for CIDRs that are not on link.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// AttachmentStatus is the part that the controller allocates.
type AttachmentStatus struct {
	GREKey *uint32 `json:"greKey,omitempty"`
}

// ProxyGroup is the proxies that serve attachments together.
type ProxyGroup struct {
	TypeMeta
	Metadata Metadata         `json:"metadata"`
	Spec     ProxyGroupSpec   `json:"spec"`
	Status   ProxyGroupStatus `json:"status,omitzero"`
}

// ProxyGroupSpec is the part that operators write.
type ProxyGroupSpec struct {
	// Members are the group's proxy nodes.
	Members []Member `json:"members"`
	// TunnelAddress is the group's inner address; without it the controller
	// takes one from the pool.
	TunnelAddress netip.Addr `json:"tunnelAddress,omitzero"`
	// HaVip is the group's address on the underlay, where function hosts send
	// to: it is on the active proxy. A group of several members needs one; the
	// fields below need it.
	HaVip netip.Addr `json:"haVip,omitzero"`
	// VRID is the virtual router identifier, 1 to 255. Groups that share a
	// proxy need different ones.
	VRID uint32 `json:"vrid,omitempty"`
	// AdvertisementInterval is 10ms to 40.95s in steps of 10ms; default 100ms.
	// A proxy that is silent takes three intervals and a skew of less than
	// one to be replaced.
	AdvertisementInterval Duration `json:"advertisementInterval,omitzero"`
	// Sends is how many adverts are sent in each interval, 1 to 10; default 4.
	// An even number is sent in pairs, which wake both ends half as often.
	Sends uint32 `json:"sends,omitempty"`
	// Preempt has a proxy of higher priority take over from one that is
	// active. The default is true: who gives different priorities wants them
	// kept, and between equal ones nobody preempts.
	Preempt *bool `json:"preempt,omitempty"`
	// PreemptDelay is how long a proxy of lower priority is heard before it is
	// preempted; default 10s, in which a restarted proxy learns the
	// connections that it is going to carry.
	PreemptDelay *Duration `json:"preemptDelay,omitempty"`
	// Transport defaults to unicast.
	Transport Transport `json:"transport,omitempty"`
	// MinTTL is the lowest TTL of an advert that is accepted by unicast.
	// Default 255, for proxies on one link.
	MinTTL uint32 `json:"minTTL,omitempty"`
	// Checksum is the form that is sent; default rfc9568.
	Checksum Checksum `json:"checksum,omitempty"`
	// Tracks say what the failure of something does. Not listed, the underlay's
	// takes the proxy out of the election, and another's lowers the priority to 1.
	Tracks []Track `json:"tracks,omitempty"`
}

// Member is one proxy of a group.
type Member struct {
	Node string `json:"node"`
	// Priority is 1 to 254; default 100. The highest is preferred, then the
	// highest underlay address.
	Priority uint32 `json:"priority,omitempty"`
}

// ProxyGroupStatus is the part that the controller allocates.
type ProxyGroupStatus struct {
	TunnelAddress netip.Addr `json:"tunnelAddress,omitzero"`
}

// Role is what a node does.
type Role string

// The roles.
const (
	RoleFunction   Role = "function"
	RoleProxy      Role = "proxy"
	RoleController Role = "controller"
	// RoleReflector reflects BGP routes between the other nodes.
	RoleReflector Role = "reflector"
)

// Node is a machine that runs vpcproxyd.
type Node struct {
	TypeMeta
	Metadata Metadata   `json:"metadata"`
	Spec     NodeSpec   `json:"spec"`
	Status   NodeStatus `json:"status,omitzero"`
}

// NodeSpec is written by operators, or by the node's agent when it registers.
type NodeSpec struct {
	Roles []Role `json:"roles"`
	// UnderlayAddress is the node's address in the platform VPC: the outer
	// address of its GRE packets.
	UnderlayAddress netip.Addr `json:"underlayAddress"`
	// UnderlayCIDRs are the platform's ranges this node is connected to;
	// attachments that overlap them need allowOverlap.
	UnderlayCIDRs []netip.Prefix `json:"underlayCIDRs,omitempty"`
	// TunnelAddress is a function host's inner address; without it the
	// controller takes one from the pool.
	TunnelAddress netip.Addr `json:"tunnelAddress,omitzero"`
	// PodCIDRs are the ranges of the pods on this node; empty means that
	// any pod may be here.
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
	// Zone is where the node is, such as an availability zone: function
	// hosts prefer proxies of their own.
	Zone string `json:"zone,omitempty"`
	// Cordoned keeps a proxy from being active in any group, until it is
	// unset. An agent that registers leaves it as it is.
	Cordoned bool `json:"cordoned,omitempty"`
}

// NodeStatus is the part that the controller allocates.
type NodeStatus struct {
	TunnelAddress netip.Addr `json:"tunnelAddress,omitzero"`
}

// ObjectKind implements Object.
func (*Attachment) ObjectKind() Kind { return KindAttachment }

// ObjectName implements Object.
func (a *Attachment) ObjectName() string { return a.Metadata.Name }

// Meta implements Object.
func (a *Attachment) Meta() *Metadata { return &a.Metadata }

// ObjectKind implements Object.
func (*ProxyGroup) ObjectKind() Kind { return KindProxyGroup }

// ObjectName implements Object.
func (g *ProxyGroup) ObjectName() string { return g.Metadata.Name }

// Meta implements Object.
func (g *ProxyGroup) Meta() *Metadata { return &g.Metadata }

// ObjectKind implements Object.
func (*Node) ObjectKind() Kind { return KindNode }

// ObjectName implements Object.
func (n *Node) ObjectName() string { return n.Metadata.Name }

// Meta implements Object.
func (n *Node) Meta() *Metadata { return &n.Metadata }

var (
	_ Object = (*Attachment)(nil)
	_ Object = (*ProxyGroup)(nil)
	_ Object = (*Node)(nil)
)

// Key returns the GRE key in force and whether the tunnel has one. An
// attachment of scope pods is not usable while it has none.
func (a *Attachment) Key() (key uint32, keyed bool) {
	switch {
	case a.Spec.GREKey != nil:
		return *a.Spec.GREKey, true
	case a.Status.GREKey != nil:
		return *a.Status.GREKey, true
	}
	return 0, false
}

// EffectiveScope returns the scope with the default applied.
func (a *Attachment) EffectiveScope() Scope {
	if a.Spec.Scope == "" {
		return ScopePods
	}
	return a.Spec.Scope
}

// ENIOn returns the interface of one of the group's members.
func (a *Attachment) ENIOn(node string) (ENI, bool) {
	for _, e := range a.Spec.ENIs {
		if e.Node == node || e.Node == "" {
			return e, true
		}
	}
	return ENI{}, false
}

// Tunnel returns the group's tunnel address, or the zero Addr while none is
// allocated.
func (g *ProxyGroup) Tunnel() netip.Addr {
	if g.Spec.TunnelAddress.IsValid() {
		return g.Spec.TunnelAddress
	}
	return g.Status.TunnelAddress
}

// HasMember tells whether a node is a proxy of the group.
func (g *ProxyGroup) HasMember(node string) bool {
	return slices.ContainsFunc(g.Spec.Members, func(m Member) bool { return m.Node == node })
}

// Tunnel returns the node's tunnel address, or the zero Addr while none is
// allocated.
func (n *Node) Tunnel() netip.Addr {
	if n.Spec.TunnelAddress.IsValid() {
		return n.Spec.TunnelAddress
	}
	return n.Status.TunnelAddress
}

// HasRole tells whether the node has a role.
func (n *Node) HasRole(r Role) bool { return slices.Contains(n.Spec.Roles, r) }

// Uses tells whether function host n may carry traffic of the attachment.
func (a *Attachment) Uses(n *Node) bool {
	if !n.HasRole(RoleFunction) {
		return false
	}
	if len(a.Spec.Nodes) > 0 && !slices.Contains(a.Spec.Nodes, n.Metadata.Name) {
		return false
	}
	if len(a.Spec.Pods) == 0 || len(n.Spec.PodCIDRs) == 0 {
		return true
	}
	return slices.ContainsFunc(a.Spec.Pods, func(p netip.Prefix) bool {
		return slices.ContainsFunc(n.Spec.PodCIDRs, p.Overlaps)
	})
}
