package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/pkg/nat/iptables"
	"github.com/vpcproxy/vpcproxy/pkg/nat/nftables"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

// KindsOptions describes the machine that NewKinds is for.
type KindsOptions struct {
	Host           kernel.Host
	StateDirectory string        // for what must survive a crash between two steps
	Backend        string        // of address translation: auto, iptables or nftables
	IPTables       string        // auto, nft or legacy
	NeighborAge    time.Duration // see tunnel.ResponderOptions
	Senders        *nft.Senders  // may be nil
	Log            *slog.Logger
}

// NewKinds returns the kinds for a machine's real kernel.
func NewKinds(ctx context.Context, o KindsOptions) (Kinds, error) {
	own := func(ctx context.Context) ([]string, error) {
		names, err := ownNamespaces(ctx, o.Host)
		return append([]string{""}, names...), err
	}
	rules, used, installed, err := natBackend(ctx, o)
	if err != nil {
		return Kinds{}, err
	}
	tables := nft.New(o.Log, nft.Options{Senders: o.Senders, Run: o.Host.Run})
	steers, sysctls := route.NewSteers(tables, o.Host), route.NewSysctls(o.Host)
	table := &tunnel.Table{}
	k := Kinds{
		Namespaces: tunnel.NewNamespaces(o.Host),
		NAT:        nat.NewKind(rules, own),
		Peers:      tunnel.NewPeers(tables, o.Host),
		Links:      tunnel.NewLinks(o.Host),
		ENIs:       tunnel.NewENIs(o.Host, filepath.Join(o.StateDirectory, "eni"), o.Log),
		Egress:     nat.NewEgressGuards(o.Host),
		Addresses:  tunnel.NewAddresses(o.Host),
		Neighbors:  tunnel.NewNeighbors(o.Host, table),
		Sysctls:    sysctls,
		Nexthops:   route.NewNexthops(o.Host),
		Routes:     route.NewRoutes(o.Host),
		Rules:      route.NewRules(o.Host),
		Steers:     steers,
		Exchange:   steers.Exchange,
		Close:      tables.Close,

		SysctlsDrifted: sysctls.Drifted,

		hosts:     table,
		responder: tunnel.NewResponder(tunnel.ResponderOptions{Host: o.Host, Resolver: table, Age: o.NeighborAge, Log: o.Log}),
	}
	k.NATSurvey = func() nat.Survey { return rules.Survey("") }
	k.Drops = (&dropCounts{rules: rules, tables: tables}).count
	if used != nil {
		k.IPTables = string(used.Mode())
	}
	if installed != nil && installed.HasLegacy() && k.IPTables != string(iptables.Legacy) {
		k.LegacyBeside = installed.LegacyChains
	}
	if k.IPTables == string(iptables.Legacy) {
		k.NATDrifted = (&legacyWatch{rules: used, namespaces: own}).drifted
	}
	return k, nil
}

// dropCounts reads the counters of packet filters.
type dropCounts struct {
	rules  nat.Backend
	tables *nft.Tables
}

func (d *dropCounts) count(ctx context.Context, netns string) (map[string]uint64, error) {
	drops := map[string]uint64{}
	counters, err := d.rules.Counters(ctx, netns)
	for _, c := range counters {
		drops[string(c.Reason)] += c.Packets
	}
	guarded, tableErr := d.tables.Counters(ctx, netns)
	maps.Copy(drops, guarded)
	return drops, errors.Join(err, tableErr)
}

// natBackend returns the backend that the options ask for, which also removes
// what is ours in the other; used is iptables if that is in use, installed if it is
// there. auto is iptables if the host has it: only that can accept what another
// program's FORWARD chain drops by default.
func natBackend(ctx context.Context, o KindsOptions) (rules *nat.Exclusive, used, installed *iptables.Backend, err error) {
	tables := nftables.New(o.Host, nft.Options{})
	old, err := iptables.New(ctx, o.Host, iptables.Mode(o.IPTables), o.Log)
	switch {
	case o.Backend == "iptables" && err != nil:
		return nil, nil, nil, err
	case o.Backend == "nftables" && err != nil: // no iptables, and nothing of ours in it
		return nat.NewExclusive(tables), nil, nil, nil //nolint:nilerr // it is not needed
	case o.Backend == "nftables":
		return nat.NewExclusive(tables, nat.Other{Name: "iptables", Backend: old}), nil, old, nil
	case err != nil:
		if nftErr := tables.Usable(ctx); nftErr != nil {
			return nil, nil, nil, errors.Join(err, nftErr)
		}
		o.Log.Info("address translation by nftables", "reason", err)
		return nat.NewExclusive(tables), nil, nil, nil
	}
	return nat.NewExclusive(old, nat.Other{Name: "nftables", Backend: tables}), old, old, nil
}

// legacyWatch finds changes of iptables-legacy tables, for which the kernel
// has no event.
type legacyWatch struct {
	rules      *iptables.Backend
	namespaces func(context.Context) ([]string, error)

	mu   sync.Mutex
	last map[string]uint64
}

func (w *legacyWatch) drifted(ctx context.Context) bool {
	names, err := w.namespaces(ctx)
	if err != nil {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := make(map[string]uint64, len(names))
	drifted := len(names) != len(w.last)
	for _, n := range names {
		f, err := w.rules.Fingerprint(ctx, n)
		if err != nil {
			drifted = true
			continue
		}
		now[n] = f
		drifted = drifted || w.last[n] != f
	}
	w.last = now
	return drifted
}

// Cleanup removes everything of ours from a machine's kernel, gives ENIs back,
// and reports on out. It may run any number of times, but not beside an agent,
// which would put everything back: then it returns ErrLocked.
func Cleanup(ctx context.Context, o KindsOptions, out io.Writer) (err error) {
	unlock, err := Lock(o.StateDirectory)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, unlock()) }()
	case !errors.Is(err, fs.ErrNotExist): // without a directory no agent runs with it
		return err
	}
	kinds, err := NewKinds(ctx, o)
	if err != nil {
		return err
	}
	loop, err := reconcile.New(reconcile.Config[desired.State]{Stages: kinds.stages(func(s desired.State) map[desired.SteerKey]desired.Steer { return s.Steers }), Log: o.Log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = loop.Run(ctx) })
	loop.SetDesired(desired.New())
	removed, err := release(ctx, o.Host, out)
	if err != nil {
		return err
	}
	for range cleanupPasses {
		pass, err := loop.Resync(ctx)
		if err != nil {
			return err
		}
		for _, k := range pass.Kinds {
			if k.Deleted > 0 {
				removed += k.Deleted
				if _, err := fmt.Fprintf(out, "removed %d %s\n", k.Deleted, k.Name); err != nil {
					return err
				}
			}
		}
		if pass.Converged {
			if removed == 0 {
				_, err = fmt.Fprintln(out, "nothing of vpcproxy is left in this machine's kernel")
			}
			return err
		}
		if pass.Err != nil && pass.Writes() == 0 {
			return fmt.Errorf("not everything could be removed: %w", pass.Err)
		}
	}
	return errors.New("not everything could be removed: run it again, and see `vpcproxyctl status` for what comes back")
}

// Release removes the HaVips that an agent which was killed has left on a
// machine, and reports on out. It may run any number of times, but not beside an
// agent, which may hold them rightly: then it returns ErrLocked.
func Release(ctx context.Context, o KindsOptions, out io.Writer) (err error) {
	unlock, err := Lock(o.StateDirectory)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, unlock()) }()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	_, err = release(ctx, o.Host, out)
	return err
}

func release(ctx context.Context, host kernel.Host, out io.Writer) (int, error) {
	n, err := vip.Sweep(ctx, host, func(string, kernel.Address) bool { return false })
	if n > 0 {
		_, failed := fmt.Fprintf(out, "removed %d HaVips\n", n)
		err = errors.Join(err, failed)
	}
	return n, err
}

// cleanupPasses bounds the attempts: a namespace's links go only some time
// after it.
const cleanupPasses = 20
