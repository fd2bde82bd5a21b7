// Package nftables is the nat.Backend that programs nftables over netlink, with
// no program to start. Each address family has a table vpcproxy_nat of its own,
// with a base chain for each nat.Chain.
//
// # Differences from iptables
//
// Nobody can insert a rule before ours: chains hang at the hooks with priorities
// just before iptables' own. But what one table accepts another may still drop:
// where FORWARD drops by default, as Docker leaves it, an iptables backend can let
// attachments' packets through and this one cannot; Survey names such chains.
//
// # Ownership
//
// The tables vpcproxy_nat are ours with all that is in them, and nothing else.
// Every rule carries its own text, as iptables would print it, as its comment:
// that tells which rule a kernel's rule means to be, and its expressions are
// compared with those of that rule to see whether it is.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"

	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// TableName is the name of our table in the families ip and ip6.
const TableName = "vpcproxy_nat"

// Host runs functions in network namespaces.
type Host interface {
	Run(ctx context.Context, netns string, f func() error) error
}

// Backend programs nftables. It is safe for concurrent use.
type Backend struct {
	host    Host
	options nft.Options

	seen nft.Memory[nft.Version, nat.RuleSet]

	mu      sync.Mutex
	refused map[string][]string // by namespace: chains of others that drop by default
}

var (
	_ nat.Backend  = (*Backend)(nil)
	_ nat.Surveyor = (*Backend)(nil)
)

// New returns a Backend.
func New(host Host, o nft.Options) *Backend {
	return &Backend{host: host, options: o, refused: map[string][]string{}}
}

var families = []nat.Family{nat.IPv4, nat.IPv6}

// Usable reports whether this kernel can hold our tables.
func (b *Backend) Usable(ctx context.Context) error {
	s, err := nft.Open(ctx, "", b.options)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Conn().ListTables(); err != nil {
		return fmt.Errorf("the kernel has no nftables: %w", err)
	}
	return nil
}

// space is what a namespace is like.
type space struct {
	ipv6    bool
	version nft.Version
	known   bool // the version is
}

// look visits a namespace.
func (b *Backend) look(ctx context.Context, netns string) (s space, err error) {
	if err := ctx.Err(); err != nil {
		return s, err
	}
	err = b.host.Run(ctx, netns, func() error {
		// A kernel started with ipv6.disable=1 has no such file.
		_, err := os.Stat("/proc/thread-self/net/if_inet6")
		s.ipv6 = err == nil
		s.version, err = nft.VersionHere()
		s.known = err == nil
		return nil
	})
	return s, err
}

// open connects to a namespace and says whether it has IPv6.
func (b *Backend) open(ctx context.Context, netns string) (s *nft.Session, ipv6 bool, err error) {
	at, err := b.look(ctx, netns)
	if err != nil {
		return nil, false, err
	}
	s, err = nft.Open(ctx, netns, b.options)
	return s, at.ipv6, err
}

func where(netns string) string {
	if netns == "" {
		return "the agent's namespace"
	}
	return "namespace " + netns
}

// Read implements nat.Backend. It reads only what has changed.
func (b *Backend) Read(ctx context.Context, netns string) (nat.RuleSet, error) {
	out, err := b.readOnce(ctx, netns)
	if err != nil {
		b.seen.Forget(netns)
		return out, fmt.Errorf("nftables: read rules in %s: %w", where(netns), err)
	}
	return out, nil
}

func (b *Backend) readOnce(ctx context.Context, netns string) (nat.RuleSet, error) {
	out := nat.RuleSet{Rules: map[nat.Key][]nat.Rule{}, Faults: map[nat.Key]string{}}
	at, err := b.look(ctx, netns)
	if err != nil {
		return out, err
	}
	if last, ok := b.seen.Get(netns, at.version); ok && at.known {
		last.NoIPv6 = !at.ipv6 // no transaction tells of that
		return clone(last), nil
	}
	s, err := nft.Open(ctx, netns, b.options)
	if err != nil {
		return out, err
	}
	defer s.Close()
	out.NoIPv6 = !at.ipv6
	found, err := b.read(ctx, s, netns)
	if err != nil {
		return out, err
	}
	for _, f := range families {
		found[f].report(f, &out)
	}
	b.seen.Put(netns, at.version, at.known, clone(out))
	return out, nil
}

// clone has the lists of rules in common, which nobody changes in place.
func clone(s nat.RuleSet) nat.RuleSet {
	s.Rules, s.Faults, s.Strays = maps.Clone(s.Rules), maps.Clone(s.Faults), slices.Clone(s.Strays)
	return s
}

// read reads both families' tables.
func (b *Backend) read(ctx context.Context, s *nft.Session, netns string) (map[nat.Family]*table, error) {
	var found map[nat.Family]*table
	err := s.Stable(ctx, func() error {
		var refused []string
		found = map[nat.Family]*table{nat.IPv4: {}, nat.IPv6: {}}
		tables, err := s.Conn().ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			if f, ours := ourFamily(t); ours {
				found[f].exists, found[f].flags = true, t.Flags
			}
		}
		chains, err := s.Conn().ListChains()
		if err != nil {
			return err
		}
		for _, c := range chains {
			if f, ours := ourFamily(c.Table); ours {
				found[f].chains = append(found[f].chains, c)
			} else if drops(c) {
				refused = append(refused, fmt.Sprintf("chain %s of table %s", c.Name, c.Table.Name))
			}
		}
		b.mu.Lock()
		b.refused[netns] = refused
		b.mu.Unlock()
		return errors.Join(found[nat.IPv4].fill(s, nat.IPv4), found[nat.IPv6].fill(s, nat.IPv6))
	})
	return found, err
}

func ourFamily(t *nftables.Table) (nat.Family, bool) {
	switch {
	case t.Name != TableName:
	case t.Family == nftables.TableFamilyIPv4:
		return nat.IPv4, true
	case t.Family == nftables.TableFamilyIPv6:
		return nat.IPv6, true
	}
	return 0, false
}

// drops says whether a chain refuses what it does not know on its way through
// this machine.
func drops(c *nftables.Chain) bool {
	return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

// Survey implements nat.Surveyor.
func (b *Backend) Survey(netns string) nat.Survey {
	b.mu.Lock()
	defer b.mu.Unlock()
	return nat.Survey{Refusing: slices.Clone(b.refused[netns])}
}

// attempts bounds how often a change is tried against a table that somebody
// else is changing.
const attempts = 3

// Write implements nat.Backend. Both families change in one transaction.
func (b *Backend) Write(ctx context.Context, netns string, want nat.RuleSet) error {
	if err := want.Check(); err != nil {
		return fmt.Errorf("nftables: rules for %s are refused: %w", where(netns), err)
	}
	s, ipv6, err := b.open(ctx, netns)
	if err != nil {
		return fmt.Errorf("nftables: write rules in %s: %w", where(netns), err)
	}
	defer s.Close()
	chains := maps.Clone(want.Rules)
	if !ipv6 {
		for _, c := range []nat.Chain{nat.Postrouting, nat.Masq} {
			if len(chains[nat.Key{Family: nat.IPv6, Chain: c}]) > 0 {
				return errors.New("nftables: IPv6 source NAT is wanted, but the kernel has no IPv6 here; enable it or use IPv4 addresses")
			}
		}
		maps.DeleteFunc(chains, func(k nat.Key, _ []nat.Rule) bool { return k.Family == nat.IPv6 })
	}
	for range attempts {
		var found map[nat.Family]*table
		if found, err = b.read(ctx, s, netns); err != nil {
			break
		}
		changed := false
		for _, f := range families {
			changed = found[f].change(s.Conn(), f, chains) || changed
		}
		if !changed {
			return nil
		}
		if err = s.Commit(); err == nil || !nft.Outdated(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("nftables: write rules in %s: %w", where(netns), err)
	}
	return nil
}

// Counters implements nat.Backend.
func (b *Backend) Counters(ctx context.Context, netns string) ([]nat.Counter, error) {
	s, _, err := b.open(ctx, netns)
	if err != nil {
		return nil, fmt.Errorf("nftables: read counters in %s: %w", where(netns), err)
	}
	defer s.Close()
	found, err := b.read(ctx, s, netns)
	if err != nil {
		return nil, fmt.Errorf("nftables: read counters in %s: %w", where(netns), err)
	}
	sums := map[nat.Counter]uint64{}
	for _, f := range families {
		for _, r := range found[f].rules {
			c, ok := chainNamed(r.Chain)
			if p := nat.ParseRule(r.Comment); ok && p.Reason != "" {
				sums[nat.Counter{Key: nat.Key{Family: f, Chain: c}, Reason: p.Reason, In: p.In, Out: p.Out}] += r.Packets()
			}
		}
	}
	var out []nat.Counter
	for c, n := range sums {
		c.Packets = n
		out = append(out, c)
	}
	nat.SortCounters(out)
	return out, nil
}
