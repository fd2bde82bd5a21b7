// Package nft programs the nftables table `inet vpcproxy` of a network
// namespace over netlink: the list of peers that may speak GRE to this machine,
// and the map that gives pods' packets the mark of their attachment. It is the
// only importer of github.com/google/nftables.
//
// The table:
//
//	set endpoints4, peers4, peers4_nokey   who may speak GRE to which address of ours
//	set remotes4                           the peers' addresses, derived from the above
//	map steer4_<s>_<d>, steer6_<s>_<d>     source/s . destination/d : go to a mark chain, or to refuse
//	map zones                              input interface : go to a zone chain
//	counter unknown_peer, forged_gre
//	chain prerouting       prerouting, raw:    GRE is judged by chain gre; zones; then one lookup per pair
//	                                           of prefix lengths
//	chain gre_output       output, raw:        GRE from an endpoint is not tracked
//	chain gre_forward      forward, filter:    nobody behind us speaks GRE to our peers
//	chain gre, mark_<mark>_<mask>[_<zone>], zone_<zone>, refuse
//
// Steering comes before connection tracking (raw, not mangle), because it says
// in which conntrack zone a connection is: what comes from one attachment's
// tunnel is never taken for an answer in another's.
//
// Steering uses one hash map per pair of prefix lengths, and not one map of
// intervals, for two reasons. The kernel's set type for concatenated intervals
// (nft_set_pipapo) refuses an element that lies within another one, so that a
// pod inside a steered range could be added or not depending on the order. And
// before Linux 6.17 a lookup that meets a commit which replaces an element can
// miss both the old and the new one: the packet would leave unmarked. A hash
// element is replaced in one step, and the number of pairs in use is small.
//
// Every change is one transaction: packets meet the table as it was or as it
// will be. Chains stay attached to their hooks while their rules are exchanged.
// Only a set of another type, a chain of another hook or policy, or a dormant
// table are made anew, with the whole table, in one transaction too; but a packet that is just
// between the two tables' hooks at that instant may meet neither. The table
// belongs to nobody's socket (no flag owner): it outlives the agent.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"syscall"

	"github.com/google/nftables"
)

// TableName is the name of the table, in family inet.
const TableName = "vpcproxy"

// The names under which [Tables.Counters] reports dropped packets.
const (
	CounterUnknownPeer = "unknown_peer" // GRE to an endpoint from no peer of it, or malformed
	CounterForged      = "forged_gre"   // GRE of others, on its way through this machine to a peer of ours
)

// Peer is one outer source that may speak GRE to a local endpoint. Outer
// addresses are IPv4.
//
// A Peer without Addr declares the endpoint alone: GRE to Local is judged even
// if nobody may speak yet, or no longer. Every other Peer implies it.
type Peer struct {
	Local netip.Addr
	Addr  netip.Addr
	Keyed bool
	Key   uint32 // 0 unless Keyed
}

// Match selects packets by source and destination, which are masked and of
// one family. If several match, the longest source prefix wins, and among
// those the longest destination prefix.
type Match struct {
	Src netip.Prefix
	Dst netip.Prefix
}

// Mark is what is done to matching packets. They are marked; bits outside Mask
// are kept. Their connections are tracked in a zone, 0 being the common one.
// Or they are refused with an ICMP error (host unreachable).
type Mark struct {
	Mark   uint32
	Mask   uint32
	Zone   uint16
	Refuse bool // instead of all the above
}

// Contents is what a table holds.
type Contents struct {
	// Damage says what is wrong with the table; "" is sound, or absent. Any
	// [Tables.Apply] repairs rules, chains and sets; one that does not only
	// add, such as one of an empty Change, repairs all damage.
	Damage string
	Peers  map[Peer]struct{}
	Steers map[Match]Mark
	Zones  map[string]uint16 // by input interface
}

func (c Contents) empty() bool { return len(c.Peers) == 0 && len(c.Steers) == 0 && len(c.Zones) == 0 }

func (c Contents) clone() Contents {
	c.Peers, c.Steers, c.Zones = maps.Clone(c.Peers), maps.Clone(c.Steers), maps.Clone(c.Zones)
	return c
}

// Change is a difference to a table's contents. Deleting what is absent and
// adding what is there change nothing; a Match that is there gets its new Mark
// with no moment unmarked.
type Change struct {
	AddPeers     []Peer
	DeletePeers  []Peer
	AddSteers    map[Match]Mark
	DeleteSteers []Match
	AddZones     map[string]uint16
	DeleteZones  []string
}

func (ch Change) addsOnly() bool {
	return len(ch.DeletePeers)+len(ch.DeleteSteers)+len(ch.DeleteZones) == 0 &&
		len(ch.AddPeers)+len(ch.AddSteers)+len(ch.AddZones) > 0
}

// Validate returns why the peer cannot be programmed, or nil.
func (p Peer) Validate() error {
	switch {
	case !p.Local.Is4() || p.Local.IsUnspecified():
		return fmt.Errorf("endpoint %v: not an IPv4 address; outer addresses of GRE are IPv4", p.Local)
	case p.Addr.IsValid() && (!p.Addr.Is4() || p.Addr.IsUnspecified()):
		return fmt.Errorf("peer %v of endpoint %v: not an IPv4 address; outer addresses of GRE are IPv4", p.Addr, p.Local)
	case !p.Keyed && p.Key != 0:
		return fmt.Errorf("peer %v of endpoint %v: key %d, but not keyed", p.Addr, p.Local, p.Key)
	case !p.Addr.IsValid() && p.Keyed:
		return fmt.Errorf("endpoint %v: has a key, but no peer", p.Local)
	}
	return nil
}

// Validate returns why the match cannot be programmed, or nil.
func (m Match) Validate() error {
	switch {
	case !m.Src.IsValid() || m.Src != m.Src.Masked():
		return fmt.Errorf("steering %v to %v: the source is not a prefix without host bits", m.Src, m.Dst)
	case !m.Dst.IsValid() || m.Dst != m.Dst.Masked():
		return fmt.Errorf("steering %v to %v: the destination is not a prefix without host bits", m.Src, m.Dst)
	case m.Src.Addr().BitLen() != m.Dst.Addr().BitLen():
		return fmt.Errorf("steering %v to %v: source and destination are of different families", m.Src, m.Dst)
	}
	return nil
}

// Validate returns why the mark cannot be programmed, or nil.
func (m Mark) Validate() error {
	if m.Refuse {
		if m != (Mark{Refuse: true}) {
			return fmt.Errorf("mark %#x/%#x, zone %d: what is refused has neither", m.Mark, m.Mask, m.Zone)
		}
		return nil
	}
	if m.Mark == 0 || m.Mark&^m.Mask != 0 {
		return fmt.Errorf("mark %#x/%#x: must not be zero, nor have bits outside its mask", m.Mark, m.Mask)
	}
	return nil
}

func (ch Change) validate() error {
	var errs []error
	for _, p := range ch.AddPeers {
		errs = append(errs, p.Validate())
	}
	for match, mark := range ch.AddSteers {
		errs = append(errs, match.Validate(), mark.Validate())
	}
	for link, zone := range ch.AddZones {
		errs = append(errs, ValidateZone(link, zone))
	}
	return errors.Join(errs...)
}

// Tables reads and writes the tables of all namespaces. It keeps nothing
// between calls but the connection of [Tables.Exchange] and what Load has read, opens a
// namespace for the time of a call only, and is safe for concurrent use; but of two calls that
// write to one namespace at a time, one may fail and change nothing.
//
// Namespaces go by their names; "" is the agent's own. Errors wrap
// [io/fs.ErrNotExist] if there is no such namespace.
type Tables struct {
	log     *slog.Logger
	options Options

	laneMu sync.Mutex
	lane   *lane // of Exchange; nil before the first use, and after a failure

	loaded Memory[Version, Contents]
}

// Options sets up Tables. The zero value is right for a program.
type Options struct {
	// NetnsDir holds the names of namespaces; "" is /run/netns.
	NetnsDir string
	// Own is the path of the namespace that "" means; "" is the calling
	// thread's.
	Own string
	// FlowEvents has AssuredEventsOnly let flows tell of their beginning and
	// their end, too.
	FlowEvents bool
	// Run, if not nil, calls a function on a thread that is in a namespace, as
	// kernel.Host does. With it Load reads only what has changed.
	Run func(ctx context.Context, netns string, f func() error) error
	// Senders, if not nil, learns the sockets whose changes are no news.
	Senders *Senders
}

// New returns Tables that log the repairs they make.
func New(log *slog.Logger, options Options) *Tables {
	if options.NetnsDir == "" {
		options.NetnsDir = "/run/netns" // ip-netns(8)
	}
	return &Tables{log: log, options: options}
}

// Load returns what the table in a namespace holds, read from the kernel now, or
// before if the kernel says that nothing has changed since. It is the caller's. A
// table that is absent is empty.
func (ts *Tables) Load(ctx context.Context, netns string) (Contents, error) {
	version, known := ts.version(ctx, netns)
	if c, ok := ts.loaded.Get(netns, version); ok && known {
		return c.clone(), nil
	}
	c, err := ts.open(ctx, netns)
	if err != nil {
		ts.loaded.Forget(netns)
		return Contents{}, err
	}
	defer c.close()
	t, err := c.read(ctx, true)
	if err != nil {
		return Contents{}, c.wrap("reading", err)
	}
	ts.loaded.Put(netns, version, known, t.contents.clone())
	return t.contents, nil
}

// attempts bounds how often a change is tried against a table that somebody
// else is changing at the same time.
const attempts = 3

// Apply makes a change in one transaction, and with it repairs a table that is
// damaged or absent. A table that would hold nothing is removed.
func (ts *Tables) Apply(ctx context.Context, netns string, ch Change) error {
	if err := ch.validate(); err != nil {
		return err
	}
	c, err := ts.open(ctx, netns)
	if err != nil {
		return err
	}
	defer c.close()
	if ch.addsOnly() {
		// Without the elements, whose list is the long one. What only a list
		// can answer (the match is there with another mark) fails here, as
		// a whole, and is done below.
		if done, err := c.extend(ctx, ch); done && err == nil {
			return nil
		}
	}
	for i := range attempts {
		var damage string
		if damage, err = c.change(ctx, ch, i == attempts-1); err == nil && damage != "" {
			ts.log.Info("repaired the nftables table", "netns", netns, "reason", damage)
		}
		if err == nil || !outdated(err) {
			break
		}
	}
	return c.wrap("writing", err)
}

// outdated reports whether an error can be due to a change between our read
// and our write.
func outdated(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.EBUSY)
}

// extend adds to a table that is known to be sound but for its elements.
func (c *conn) extend(ctx context.Context, ch Change) (done bool, err error) {
	t, err := c.read(ctx, false)
	if err != nil || !t.exists || t.contents.Damage != "" {
		return false, err
	}
	want := newContents()
	ch.applyTo(want)
	return true, c.commit(transaction{have: t, want: want, addOnly: true})
}

// change makes a change against the whole table, and returns the damage that it
// found. The last resort against damage is to make the table anew.
func (c *conn) change(ctx context.Context, ch Change, last bool) (damage string, err error) {
	t, err := c.read(ctx, true)
	if err != nil {
		return "", err
	}
	t.broken = t.broken || last && t.contents.Damage != ""
	want := Contents{Peers: maps.Clone(t.contents.Peers), Steers: maps.Clone(t.contents.Steers), Zones: maps.Clone(t.contents.Zones)}
	ch.applyTo(want)
	return t.contents.Damage, c.commit(transaction{have: t, want: want})
}

func newContents() Contents {
	return Contents{Peers: map[Peer]struct{}{}, Steers: map[Match]Mark{}, Zones: map[string]uint16{}}
}

func (ch Change) applyTo(c Contents) {
	for _, p := range ch.DeletePeers {
		delete(c.Peers, p)
	}
	for _, m := range ch.DeleteSteers {
		delete(c.Steers, m)
	}
	for _, link := range ch.DeleteZones {
		delete(c.Zones, link)
	}
	for _, p := range ch.AddPeers {
		c.Peers[p] = struct{}{}
	}
	maps.Copy(c.Steers, ch.AddSteers)
	maps.Copy(c.Zones, ch.AddZones)
}

// Counters returns the packets that the table's named counters have counted,
// by name; nil if there is no table. A repair keeps their values, a removal
// does not.
func (ts *Tables) Counters(ctx context.Context, netns string) (map[string]uint64, error) {
	c, err := ts.open(ctx, netns)
	if err != nil {
		return nil, err
	}
	defer c.close()
	objects, err := c.readObjects()
	if err != nil {
		return nil, c.wrap("reading the counters of", err)
	}
	var packets map[string]uint64
	for o, v := range objects {
		if o.ours() {
			if packets == nil {
				packets = map[string]uint64{}
			}
			packets[o.name] = v.Packets
		}
	}
	return packets, nil
}

// Remove deletes the table with all that is in it. One that is absent is
// success.
func (ts *Tables) Remove(ctx context.Context, netns string) error {
	c, err := ts.open(ctx, netns)
	if err != nil {
		return err
	}
	defer c.close()
	c.DelTable(table())
	if err := c.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return c.wrap("removing", err)
	}
	return nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}
