package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Host runs functions in network namespaces.
type Host interface {
	// Run calls f on a thread that is in the namespace, so that programs
	// which f starts run there.
	Run(ctx context.Context, netns string, f func() error) error
}

// Backend programs iptables. It is safe for concurrent use.
type Backend struct {
	host  Host
	log   *slog.Logger
	inUse variant
	other *variant // nil if it is not installed
	now   func() time.Time
	pace  pace
}

var _ nat.Backend = (*Backend)(nil)

// New finds out which variant of iptables the host uses (see Mode), with the
// programs that it has in PATH, /usr/sbin and /sbin.
func New(ctx context.Context, host Host, mode Mode, log *slog.Logger) (*Backend, error) {
	b := &Backend{host: host, log: log, now: time.Now}
	err := host.Run(ctx, "", func() error {
		var err error
		b.inUse, b.other, err = detect(ctx, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Mode returns the variant in use: NFT or Legacy.
func (b *Backend) Mode() Mode { return b.inUse.mode }

// view is what one family's tables hold, in both variants.
type view struct {
	absent bool // the kernel has no such family here
	inUse  []table
	other  []table
}

// look reads one family on the calling thread's namespace.
func (b *Backend) look(ctx context.Context, f nat.Family, counters bool) (view, error) {
	if f == nat.IPv6 && !hasIPv6() {
		return view{absent: true}, nil
	}
	var v view
	var err error
	if v.inUse, err = b.inUse.dump(ctx, f, counters); err != nil {
		return v, err
	}
	if b.other != nil {
		v.other, err = b.other.dump(ctx, f, counters)
	}
	return v, err
}

// in runs f in a namespace and names it in its error.
func (b *Backend) in(ctx context.Context, netns, what string, f func() error) error {
	if err := b.host.Run(ctx, netns, f); err != nil {
		if netns == "" {
			return fmt.Errorf("iptables (%s): %s: %w", b.inUse.mode, what, err)
		}
		return fmt.Errorf("iptables (%s): %s in namespace %s: %w", b.inUse.mode, what, netns, err)
	}
	return nil
}

var families = []nat.Family{nat.IPv4, nat.IPv6}

// Read returns what chains of ours hold in a namespace, in both variants. A
// jump that others have shadowed is a fault only when it may be moved again.
func (b *Backend) Read(ctx context.Context, netns string) (nat.RuleSet, error) {
	s := nat.RuleSet{Rules: map[nat.Key][]nat.Rule{}, Faults: map[nat.Key]string{}}
	err := b.in(ctx, netns, "read rules", func() error {
		for _, f := range families {
			v, err := b.look(ctx, f, false)
			if err != nil {
				return err
			}
			s.NoIPv6 = s.NoIPv6 || v.absent
			b.describe(&s, netns, f, v)
		}
		return nil
	})
	if err != nil {
		return nat.RuleSet{}, err
	}
	return s, nil
}

func (b *Backend) describe(s *nat.RuleSet, netns string, f nat.Family, v view) {
	for i := range v.inUse {
		t := &v.inUse[i]
		for _, name := range t.chains {
			c := nat.Chain(name)
			switch {
			case !ours(name):
				continue
			case c.Place().Table != t.name:
				s.Strays = append(s.Strays, fmt.Sprintf("%s chain %s of table %s", f, name, t.name))
				continue
			}
			k := nat.Key{Family: f, Chain: c}
			s.Rules[k] = chainRules(t, c)
			if fault := findFault(t, c); fault.text != "" && (fault.shadow == "" || b.pace.due(seat{netns, k}, b.now())) {
				s.Faults[k] = fault.text
			}
		}
	}
	for i := range v.other {
		for _, name := range v.other[i].chains {
			if ours(name) {
				s.Strays = append(s.Strays, fmt.Sprintf("%s chain %s of table %s in iptables-%s", f, name, v.other[i].name, b.other.mode))
			}
		}
	}
}

// Write brings the tables of a namespace to what want says; an empty want
// removes all of ours. IPv4 and IPv6 are written independently of each other.
func (b *Backend) Write(ctx context.Context, netns string, want nat.RuleSet) error {
	if err := want.Check(); err != nil {
		return fmt.Errorf("iptables: rules for namespace %q are refused: %w", netns, err)
	}
	err := b.in(ctx, netns, "write rules", func() error {
		var errs []error
		for _, f := range families {
			errs = append(errs, b.writeFamily(ctx, netns, f, want))
		}
		return errors.Join(errs...)
	})
	if err == nil && want.Empty() {
		b.pace.forget(netns)
	}
	return err
}

func (b *Backend) writeFamily(ctx context.Context, netns string, f nat.Family, want nat.RuleSet) error {
	v, err := b.look(ctx, f, false)
	if err != nil {
		return err
	}
	chains := wanted{}
	for k, rules := range want.Rules {
		if k.Family == f {
			chains[k.Chain] = rules
		}
	}
	if v.absent {
		if _, ok := chains[nat.Postrouting]; ok {
			return errors.New("IPv6 source NAT is wanted, but the kernel has no IPv6 here; enable it or use IPv4 addresses")
		}
		return nil
	}
	moved := map[nat.Key]string{}
	text := script(v.inUse, chains, func(c nat.Chain, shadow string) bool {
		k := nat.Key{Family: f, Chain: c}
		if !b.pace.due(seat{netns, k}, b.now()) {
			return false
		}
		moved[k] = shadow
		return true
	})
	if err := b.inUse.commit(ctx, f, text); err != nil {
		return err
	}
	for k, shadow := range moved {
		b.noteMove(seat{netns, k}, shadow)
	}
	if b.other == nil {
		return nil
	}
	// Last, so that there are never no rules at all.
	return b.other.commit(ctx, f, script(v.other, nil, nil))
}

func (b *Backend) noteMove(s seat, shadow string) {
	if pause := b.pace.moved(s, b.now()); pause == fightPause {
		b.log.Warn("another program keeps putting a rule before ours; it may decide about our packets until we move again",
			"netns", s.netns, "family", s.Family, "chain", string(s.Chain), "rule", shadow)
	}
}

// Counters returns what the Drop rules of a namespace have dropped. Counts
// start over when a chain is written.
func (b *Backend) Counters(ctx context.Context, netns string) ([]nat.Counter, error) {
	sums := map[nat.Counter]uint64{}
	err := b.in(ctx, netns, "read counters", func() error {
		for _, f := range families {
			if f == nat.IPv6 && !hasIPv6() {
				continue
			}
			tables, err := b.inUse.dump(ctx, f, true)
			if err != nil {
				return err
			}
			for i := range tables {
				addCounts(sums, f, &tables[i])
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []nat.Counter
	for c := range maps.Keys(sums) {
		n := sums[c]
		c.Packets = n
		out = append(out, c)
	}
	nat.SortCounters(out)
	return out, nil
}

// addCounts adds the packets of one table's Drop rules.
func addCounts(sums map[nat.Counter]uint64, f nat.Family, t *table) {
	for _, c := range nat.Chains() {
		if c.Place().Table != t.name {
			continue
		}
		for _, r := range t.rules[string(c)] {
			if p := parseRule(r.spec); p.Reason != "" {
				sums[nat.Counter{Key: nat.Key{Family: f, Chain: c}, Reason: p.Reason, In: p.In, Out: p.Out}] += r.packets
			}
		}
	}
}
