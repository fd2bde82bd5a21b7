package diagnose

import (
	"net/netip"
	"time"
)

// Evidence is what a node knows and observes of itself. It holds no secrets: no
// GRE keys, no private keys.
type Evidence struct {
	Node        string            `json:"node"`
	Roles       []string          `json:"roles"`
	Version     string            `json:"version"`
	Time        time.Time         `json:"time"`
	Agent       Agent             `json:"agent"`
	Underlay    Underlay          `json:"underlay"`
	Attachments []Attachment      `json:"attachments"`
	Differences []Difference      `json:"differences"`
	Missing     []MissingFeature  `json:"missingFeatures"`
	Sysctls     map[string]string `json:"sysctls"` // of the agent's own namespace
	Neighbors   NeighborTable     `json:"neighborTable"`
	Rooms       []Room            `json:"namespaces"`
	Chains      []Chain           `json:"foreignChains"`          // of all namespaces of interest
	LegacyToo   bool              `json:"legacyTables"`           // iptables-legacy has tables, and is not the variant in use
	Legacy      []LegacyChain     `json:"legacyChains,omitempty"` // of all namespaces of interest
	IPTables    string            `json:"iptables"`               // the variant in use: nft, legacy, or "" with nftables alone
	Managers    []Manager         `json:"managers"`
	Certificate *Certificate      `json:"certificate,omitempty"`
	Clock       Clock             `json:"clock"`
	Disk        Disk              `json:"disk"`
	Peers       []Peer            `json:"peers"`
	Tunnels     []Tunnel          `json:"tunnels,omitempty"` // and what goes through them to each peer
	Refused     map[string]uint64 `json:"refused"`           // packets by reason, as counted since the table was made
	Groups      []Group           `json:"groups,omitempty"`  // that this node is a proxy of
	Failed      []string          `json:"failed"`            // what could not be observed, and why
}

// Agent is how the agent does.
type Agent struct {
	IntentProblem string    `json:"intentProblem,omitempty"` // why intent is not followed
	Held          string    `json:"held,omitempty"`          // why an intent is held back
	PlanProblem   string    `json:"planProblem,omitempty"`   // why the plan is older than the intent
	Problems      []Problem `json:"problems"`
	InSync        bool      `json:"inSync"`
}

// Problem is what the planner says.
type Problem struct {
	Attachment string `json:"attachment,omitempty"`
	Message    string `json:"message"`
}

// Underlay is the node's place in the platform VPC.
type Underlay struct {
	Address netip.Addr `json:"address"`
	Link    string     `json:"link"` // "" if no interface has the address
	MTU     int        `json:"mtu"`
	Up      bool       `json:"up"` // with carrier
}

// Attachment is the node's part in one.
type Attachment struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Netns   string `json:"netns,omitempty"`
	Link    string `json:"link"`
	LinkMTU int    `json:"linkMTU"` // 0 if there is no device
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"`
	ENI     *ENI   `json:"eni,omitempty"` // proxies
}

// ENI is the interface in the user's subnet.
type ENI struct {
	Name      string         `json:"name"`
	Up        bool           `json:"up"`
	Carrier   bool           `json:"carrier"`
	Addresses []netip.Prefix `json:"addresses"`
	Gateway   netip.Addr     `json:"gateway,omitzero"`
	// Answers tells whether the gateway answers ARP; nil if nobody asked.
	Answers *bool      `json:"gatewayAnswers,omitempty"`
	SNAT    netip.Addr `json:"snatAddress,omitzero"`
	Drops   uint64     `json:"egressDrops"` // by the egress guard: not from an address of the ENI
}

// Difference is an object of ours that is not as it should be.
type Difference struct {
	Kind       string   `json:"kind"`
	Op         string   `json:"op"` // create, repair or delete
	Key        string   `json:"key"`
	Reason     string   `json:"reason,omitempty"`
	Commands   []string `json:"commands"`
	Attachment string   `json:"attachment,omitempty"` // "" if several, or none, need it
}

// MissingFeature is what the kernel lacks.
type MissingFeature struct {
	Name  string `json:"name"`
	Error string `json:"error"`
	Fix   string `json:"fix"`
}

// NeighborTable is the kernel's table of neighbors, which all namespaces share.
type NeighborTable struct {
	Entries int    `json:"entries"` // that count toward the limit
	Limit   int    `json:"limit"`   // gc_thresh3
	Full    uint64 `json:"full"`    // how often it was
}

// Room is one namespace's connection tracking and forwarding.
type Room struct {
	Netns        string  `json:"netns"`
	Attachment   string  `json:"attachment,omitempty"`
	Forwarding   bool    `json:"forwarding"`
	Connections  int     `json:"connections"`
	Limit        int     `json:"connectionLimit"`
	Dropped      uint64  `json:"dropped"`      // connections that found no room
	InsertFailed uint64  `json:"insertFailed"` // two connections that wanted the same tuple
	Busiest      []Ports `json:"busiest,omitempty"`
}

// Ports is the SNAT ports toward one destination.
type Ports struct {
	Source      netip.Addr `json:"source"`
	Destination string     `json:"destination"`
	Used        int        `json:"used"`
}

// PortLimit is how many connections one SNAT address carries to one destination:
// ports 1024 to 65535 (nf_nat_l4proto_unique_tuple in net/netfilter/nf_nat_core.c).
const PortLimit = 64512

// Chain is a base chain of somebody else that can drop packets.
type Chain struct {
	Netns    string `json:"netns,omitempty"`
	Family   string `json:"family"`
	Table    string `json:"table"`
	Name     string `json:"name"`
	Hook     string `json:"hook"`
	Priority int    `json:"priority"`
	Policy   string `json:"policy"` // accept or drop
	// Drops is how many of its rules, and of the chains that it calls, drop or
	// reject; GRE how many of these name protocol 47.
	Drops int `json:"drops"`
	GRE   int `json:"gre"`
	// Dropped counts the packets that these rules say they have dropped.
	Dropped uint64 `json:"dropped"`
}

// LegacyChain is a built-in chain of iptables-legacy that drops or translates
// packets, beside the variant that is in use.
type LegacyChain struct {
	Netns  string   `json:"netns,omitempty"`
	Family string   `json:"family"`
	Table  string   `json:"table"`
	Name   string   `json:"name"`
	Policy string   `json:"policy"` // ACCEPT or DROP
	Rules  []string `json:"rules"`  // the first that drop, or in table nat translate
	More   int      `json:"more"`   // that are not shown
	GRE    int      `json:"gre"`    // rules that drop protocol 47
}

// Manager is a program that manages networks.
type Manager struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	// Meddles says what it does to objects of others; "" if it was told not to.
	Meddles string `json:"meddles,omitempty"`
}

// Certificate is the agent's.
type Certificate struct {
	Directory string    `json:"directory"`
	Expires   time.Time `json:"expires"`
}

// Clock is the machine's.
type Clock struct {
	Synchronized bool `json:"synchronized"`
}

// Disk is where state is kept.
type Disk struct {
	Path     string `json:"path"`
	Free     uint64 `json:"freeBytes"`
	Inodes   uint64 `json:"freeInodes"`
	ReadOnly bool   `json:"readOnly"`
}

// Peer is another node that this one speaks GRE to, and what probes to it say.
type Peer struct {
	Node        string        `json:"node"`
	Address     netip.Addr    `json:"address"`
	Attachments []string      `json:"attachments,omitempty"`
	Sent        int           `json:"sent"`
	Received    int           `json:"received"`
	RTT         time.Duration `json:"rttNanoseconds"` // median
	MTU         int           `json:"mtu"`            // the largest packet that arrived unfragmented; 0 if not known
	Needed      int           `json:"neededMTU"`      // what a full packet through the tunnel takes
}

// Tunnel is the way through an attachment's tunnel to one peer, and back. Sizes are
// octets inside GRE.
type Tunnel struct {
	Attachment string     `json:"attachment"`
	Node       string     `json:"node"`
	Address    netip.Addr `json:"address"` // the peer's, on the underlay
	// Idle says why nothing was sent; "" if something was.
	Idle     string        `json:"idle,omitempty"`
	Sent     int           `json:"sent"`
	There    int           `json:"arrivedThere"` // as the peer counts; -1 if it does not answer
	Back     int           `json:"answered"`
	RTT      time.Duration `json:"rttNanoseconds"` // median
	MTUThere int           `json:"mtuThere"`       // the largest packet that arrived there
	MTUBack  int           `json:"mtuBack"`        // and here
	Needed   int           `json:"neededMTU"`      // the tunnel device's MTU
}

// Group is what a proxy is in the election of one group.
type Group struct {
	Name   string   `json:"name"`
	State  string   `json:"state"`            // as in RFC 9568
	Active string   `json:"active,omitempty"` // the node that is believed to be active
	Down   []string `json:"down,omitempty"`   // what keeps this one from being active
	// Discrepancies are HaVips that are not where they are elected to.
	Discrepancies []string `json:"discrepancies,omitempty"`
	Problem       string   `json:"problem,omitempty"` // why there is no election
}
