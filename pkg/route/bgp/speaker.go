package bgp

import (
	"context"
	"net/netip"
	"time"
)

// Port is BGP's TCP port (RFC 4271 section 8.2.1).
const Port = 179

// Peer is a neighbor by address.
type Peer struct {
	Address netip.Addr
	Passive bool // wait for it to connect
	Client  bool // reflect routes to it (RFC 4456)
}

// Range accepts neighbors that nobody has named.
type Range struct {
	Prefix netip.Prefix
	Client bool
}

// Neighbors is everyone a Speaker speaks with.
type Neighbors struct {
	Peers  []Peer
	Ranges []Range
}

// Interest is the routes that a Speaker asks its peers for, by their targets
// (RFC 4684). A peer that knows no route target constraint sends everything.
type Interest struct {
	All     bool
	Targets []Target
}

// Options describes a Speaker.
type Options struct {
	ASN      uint32
	RouterID netip.Addr // an IPv4 address that no other speaker has
	// Local is the address of every session; zero is any.
	Local netip.Addr
	// Port is where it listens and where peers do; 0 is Port.
	Port uint16
	// Listen is false for a speaker that only connects.
	Listen bool
	// Families are what is negotiated; none is all. A speaker that restarts
	// sends the end of each, which some neighbors take for an error in one
	// that they do not have.
	Families []Family
	// HoldTime is how long a silent peer is waited for.
	HoldTime time.Duration
	// GracefulRestart is how long peers keep our routes after the session
	// broke without a goodbye, and we theirs (RFC 4724); 0: not at all.
	GracefulRestart time.Duration
	// Restarted says that the kernel still forwards what an earlier Speaker
	// of this node has announced: peers keep that until they hear the end
	// of what is announced now.
	Restarted bool
	// Password is the TCP MD5 key of every session (RFC 2385); "": none.
	Password string
	// Hops is how many routers may be on the way from a peer, plus one; a
	// packet that comes from farther is dropped (RFC 5082). 0: no such check.
	Hops uint8
	// MaxPrefixes is how many routes of a family a peer may send before its
	// session is ended; 0: any number.
	MaxPrefixes uint32
	// Reflector keeps to itself what its neighbors ask for (RFC 4684): told to
	// every other, a thousand of them would be a million messages. It must ask
	// for everything itself.
	Reflector bool
	// Relay says that nobody goes by Received: routes are passed on, and listed
	// for people. They make no Changes, and are Received as they come.
	Relay bool
	// Announcers, if not empty, are the only neighbors of which routes with
	// a target specific to the AS are accepted.
	Announcers []netip.Prefix
}

// Speaker speaks BGP. Methods may be called from any goroutine, and, but for
// Run, Received and Status, after Ready only. All are idempotent: what is as
// asked for causes no message.
type Speaker interface {
	// Run starts speaking and returns when the context ends. It says no
	// goodbye: for peers the node restarts, when the process ends and the
	// kernel closes its connections. Call Leave before to say one.
	Run(ctx context.Context) error
	// Ready is closed when Announce may be called.
	Ready() <-chan struct{}

	// Announce announces paths or changes what was announced, and Withdraw
	// takes them back. Both return one error per item.
	Announce(ctx context.Context, paths []Path) []error
	Withdraw(ctx context.Context, routes []NLRI) []error
	// Announced lists what is announced.
	Announced() []Path
	// SetInterest replaces what peers are asked for.
	SetInterest(ctx context.Context, want Interest) error
	// SetNeighbors replaces the neighbors. Those that stay keep their
	// sessions. The first call must come when all paths are announced, so
	// that the end of the first update (End-of-RIB) is the end of all; until
	// then nobody is listened to.
	SetNeighbors(ctx context.Context, want Neighbors) error

	// Received lists the routes that peers have sent and not withdrawn,
	// unchecked, without an order. What is new in a peer's first update is
	// among them when that has ended: half of it would be judged, planned for
	// and made again and again while the rest comes.
	Received() []Route
	// Changes holds a value when Received, or the state of a peer, may have
	// changed since it was last received from. What a peer says in its first
	// update makes one at the end of that.
	Changes() <-chan struct{}
	// Sessions tells what Received depends on, without an order. It is cheap.
	Sessions() []Session
	// Status describes the peers, by address. With many it takes a while: some
	// 50 µs each.
	Status(ctx context.Context) ([]PeerStatus, error)

	// Leave withdraws everything and ends all sessions for good.
	Leave(ctx context.Context) error
}

// Session is how well a neighbor can be heard.
type Session struct {
	Address     netip.Addr
	Established bool
	// Synced is set when the end of the neighbor's first update has come.
	Synced bool
}

// PeerStatus describes a neighbor.
type PeerStatus struct {
	Address     netip.Addr
	RouterID    netip.Addr // zero before it has said so
	State       string     // as in RFC 4271 section 8.2.2: idle, connect, active, opensent, openconfirm, established
	Dynamic     bool       // accepted by range
	Client      bool
	Established bool
	Synced      bool // as of Session
	// Since is when the session came up, or went down; zero: never was.
	Since    time.Time
	Flaps    uint32 // sessions that ended soon after they came up
	Families []FamilyStatus
}

// FamilyStatus counts a peer's routes of one family.
type FamilyStatus struct {
	Family   Family
	Received uint64
}
