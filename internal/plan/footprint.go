package plan

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Footprint says which objects of a node serve an attachment.
type Footprint struct {
	Attachment string
	Role       intent.Role // what the node is to the attachment: function or proxy
	Netns      string
	Link       string // the tunnel device
	ENI        string // of a proxy, once it is found
	CIDRs      []netip.Prefix
	HostWide   bool // all of a function host's traffic to CIDRs takes it, not Steers alone
	Keyed      bool
	Key        uint32
	Table      uint32 // routing table of a function host
	Steers     []desired.SteerKey
	Nexthops   []uint32
	// InUse is false on a function host that has nothing but what refuses
	// the attachment's traffic: no pod is bound to it.
	InUse bool
}

// Owns tells whether the attachment depends on an object, given by its key of
// package desired. Objects that all attachments of the node share are each
// one's.
func (f Footprint) Owns(key any) bool {
	switch k := key.(type) {
	case string: // a namespace
		return k == f.Netns
	case desired.NATKey:
		return k.Netns == f.Netns
	case desired.PeerKey:
		return !k.Addr.IsValid() || k.Keyed == f.Keyed && k.Key == f.Key
	case desired.LinkKey:
		return k.Netns == f.Netns && k.Name == f.Link
	case desired.ENIKey:
		return k.Netns == f.Netns
	case desired.EgressKey:
		return k.Netns == f.Netns
	case desired.AddressKey:
		return f.onLink(k.Netns, k.Link)
	case desired.NeighborKey:
		return f.onLink(k.Netns, k.Link)
	case desired.SysctlKey:
		return k.Netns == f.Netns && (f.Netns != "" || !strings.Contains(k.Name, "/"+desired.LinkPrefix) || strings.Contains(k.Name, "/"+f.Link+"/"))
	case desired.RouteKey:
		return k.Netns == f.Netns && (f.Netns != "" || k.Table == f.Table)
	case desired.NexthopKey:
		return k.Netns == f.Netns && slices.Contains(f.Nexthops, k.ID)
	case desired.PathKey:
		return k.Netns == f.Netns && (f.Netns == "" || k.RD.Number == f.Key)
	case desired.RuleKey:
		return k.Netns == f.Netns && k.Table == f.Table
	case desired.SteerKey:
		return slices.Contains(f.Steers, k)
	}
	return false
}

func (f Footprint) onLink(netns, link string) bool {
	return netns == f.Netns && (netns != "" || link == f.Link)
}
