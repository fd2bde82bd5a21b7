package diagnose

import (
	"net/netip"
	"time"
)

// Traffic is what passes through a node now, counted since its devices were made.
type Traffic struct {
	Node        string              `json:"node"`
	Time        time.Time           `json:"time"`
	Attachments []AttachmentTraffic `json:"attachments"`
}

// AttachmentTraffic is one attachment's. In and Out are as the tunnel device sees
// them.
type AttachmentTraffic struct {
	Attachment  string    `json:"attachment"`
	InBytes     uint64    `json:"inBytes"`
	OutBytes    uint64    `json:"outBytes"`
	InPackets   uint64    `json:"inPackets"`
	OutPackets  uint64    `json:"outPackets"`
	Connections int       `json:"connections"`
	Busiest     []PortUse `json:"busiest"` // most ports first
}

// PortUse is the ports of one source address toward one destination.
type PortUse struct {
	Source      netip.Addr     `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Ports       int            `json:"ports"`
	Limit       int            `json:"limit"`
	// Exhausted is when none is left if their number goes on growing as now; 0 if
	// it does not grow.
	Exhausted time.Duration `json:"exhaustedNanoseconds,omitempty"`
}
