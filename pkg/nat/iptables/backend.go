package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/nft"
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
	seen  nft.Memory[stamp, finding] // what was last found

	mu     sync.Mutex
	busyAt time.Time // when the lock was last waited for in vain

	unreadable sync.Once // told that other cannot be read
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

// Write brings the tables of a namespace to what want says; an empty want
// removes all of ours. IPv4 and IPv6 are written independently of each other.
func (b *Backend) Write(ctx context.Context, netns string, want nat.RuleSet) error {
	if err := want.Check(); err != nil {
		return fmt.Errorf("iptables: rules for namespace %q are refused: %w", netns, err)
	}
	err := b.in(ctx, netns, "write rules", func() error {
		fresh := b.knowsNothingOf(netns)
		var errs []error
		for _, f := range families {
			err := b.writeFamily(ctx, netns, f, want, fresh)
			errs = append(errs, err)
			if errors.Is(err, ErrBusy) || ctx.Err() != nil {
				break // the other family would fail likewise
			}
		}
		return errors.Join(errs...)
	})
	if err == nil && want.Empty() {
		b.pace.forget(netns)
	}
	return err
}

// writeFamily writes one family's tables. fresh says that they hold nothing of
// ours, so that nothing has to be read.
func (b *Backend) writeFamily(ctx context.Context, netns string, f nat.Family, want nat.RuleSet, fresh bool) error {
	chains := wanted{}
	for k, rules := range want.Rules {
		if k.Family == f {
			chains[k.Chain] = rules
		}
	}
	if f == nat.IPv6 && !hasIPv6() {
		if len(chains[nat.Postrouting])+len(chains[nat.Masq]) > 0 {
			return errors.New("IPv6 source NAT is wanted, but the kernel has no IPv6 here; enable it or use IPv4 addresses")
		}
		return nil
	}
	var v view
	if !fresh {
		var err error
		if v, err = b.look(ctx, f); err != nil {
			return err
		}
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
	if err := b.commit(ctx, &b.inUse, f, text); err != nil {
		return err
	}
	for k, shadow := range moved {
		b.noteMove(seat{netns, k}, shadow)
	}
	if b.other == nil {
		return nil
	}
	// Last, so that there are never no rules at all.
	return b.commit(ctx, b.other, f, script(v.other, nil, nil))
}

// commit runs transactions, if there are any.
func (b *Backend) commit(ctx context.Context, v *variant, f nat.Family, script string) error {
	if script == "" {
		return nil
	}
	if v.mode == Legacy && b.lockWasBusy() {
		return ErrBusy
	}
	err := v.commit(ctx, f, script)
	if errors.Is(err, ErrBusy) {
		b.mu.Lock()
		b.busyAt = b.now()
		b.mu.Unlock()
	}
	return err
}

func (b *Backend) lockWasBusy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now().Sub(b.busyAt) < lockPause
}

func (b *Backend) noteMove(s seat, shadow string) {
	if pause := b.pace.moved(s, b.now()); pause == fightPause {
		b.log.Warn("another program keeps putting a rule before ours; it may decide about our packets until we move again",
			"netns", s.netns, "family", s.Family, "chain", string(s.Chain), "rule", shadow)
	}
}

// Counters returns what the Drop rules of a namespace have dropped. Counts
// start over when a chain is written. It starts two programs.
func (b *Backend) Counters(ctx context.Context, netns string) ([]nat.Counter, error) {
	sums := map[nat.Counter]uint64{}
	err := b.in(ctx, netns, "read counters", func() error {
		for _, f := range families {
			if f == nat.IPv6 && !hasIPv6() {
				continue
			}
			tables, err := b.inUse.dump(ctx, f, true)
			if err == nil {
				err = checkVisible(tables)
			}
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
	for c, n := range sums {
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
			if p := nat.ParseRule(r.spec); p.Reason != "" {
				sums[nat.Counter{Key: nat.Key{Family: f, Chain: c}, Reason: p.Reason, In: p.In, Out: p.Out}] += r.packets
			}
		}
	}
}
