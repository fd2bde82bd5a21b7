package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

func controlFaults() []fault {
	const lose = "nft add table ip cut; nft 'add chain ip cut in { type filter hook input priority -300; }'; nft add rule ip cut in tcp dport 9443 drop"
	return []fault{
		{area: "control", name: "controller killed", do: send(syscall.SIGKILL, "control"), undo: revive("control"), lasts: 3 * time.Second},
		{area: "control", name: "controller stopped", do: send(syscall.SIGTERM, "control"), undo: revive("control"), lasts: 3 * time.Second},
		{area: "control", name: "controller frozen", do: send(syscall.SIGSTOP, "control"), undo: send(syscall.SIGCONT, "control"), lasts: 5 * time.Second},
		{area: "control", name: "controller's packets vanish", on: "control", typed: []string{lose}, mend: []string{"nft delete table ip cut"}, lasts: 5 * time.Second},
		{area: "control", name: "the store is empty", do: emptyStore, undo: restoreStore, lasts: 4 * time.Second},
		{area: "control", name: "the store is old: it knows one attachment of two", do: agedStore, undo: restoreStore, lasts: 4 * time.Second},
		{area: "control", name: "the store is damaged", do: damagedStore, undo: restoreStore, lasts: 3 * time.Second},
		{area: "control", name: "controller down while an agent restarts", do: func(ctx context.Context, p *platform) error {
			return errors.Join(send(syscall.SIGKILL, "control", "host1")(ctx, p), revive("host1")(ctx, p))
		}, undo: revive("control"), lasts: 3 * time.Second},
	}
}

const store = "/var/lib/vpcproxy/etcd"

// emptyStore starts the controller on a store that has lost everything.
func emptyStore(ctx context.Context, p *platform) error {
	return errors.Join(
		send(syscall.SIGKILL, "control")(ctx, p),
		p.typeOn(ctx, "control", []string{"mv " + store + " " + store + ".kept"}),
		revive("control")(ctx, p))
}

// keepStore keeps what the store is now, as a backup would, for agedStore.
func (p *platform) keepStore(ctx context.Context) error {
	return errors.Join(
		send(syscall.SIGTERM, "control")(ctx, p),
		p.agents["control"].process.Wait(ctx),
		p.typeOn(ctx, "control", []string{"cp -a " + store + " " + store + ".old"}),
		revive("control")(ctx, p))
}

// agedStore starts the controller on what keepStore has kept.
func agedStore(ctx context.Context, p *platform) error {
	return errors.Join(
		send(syscall.SIGKILL, "control")(ctx, p),
		p.typeOn(ctx, "control", []string{"mv " + store + " " + store + ".kept", "cp -a " + store + ".old " + store}),
		revive("control")(ctx, p))
}

// damagedStore starts the controller on a store whose files are cut short: it
// must end, or serve nothing.
func damagedStore(ctx context.Context, p *platform) error {
	return errors.Join(
		send(syscall.SIGKILL, "control")(ctx, p),
		p.typeOn(ctx, "control", []string{"cp -a " + store + " " + store + ".kept", "find " + store + " -type f -exec truncate -s 100 {} +"}),
		revive("control")(ctx, p))
}

// restoreStore brings back what the store was.
func restoreStore(ctx context.Context, p *platform) error {
	if a := p.agents["control"]; a.process.Running() {
		if err := a.process.Kill(); err != nil {
			return err
		}
	}
	return errors.Join(
		p.typeOn(ctx, "control", []string{"rm -rf " + store, "mv " + store + ".kept " + store}),
		revive("control")(ctx, p))
}

// limit sets a limit of the whole kernel, which no namespace of a machine may,
// until it is set back.
type limit struct{ path, before string }

func (l *limit) set(value string) func(context.Context, *platform) error {
	return func(context.Context, *platform) error {
		before, err := os.ReadFile(l.path)
		if err != nil {
			return err
		}
		l.before = strings.TrimSpace(string(before))
		return os.WriteFile(l.path, []byte(value), 0o644)
	}
}

func (l *limit) restore(context.Context, *platform) error {
	if l.before == "" {
		return fmt.Errorf("%s was not set", l.path)
	}
	return os.WriteFile(l.path, []byte(l.before), 0o644)
}

func limitFaults() []fault {
	conntrack := &limit{path: "/proc/sys/net/netfilter/nf_conntrack_max"}
	neighbors := &limit{path: "/proc/sys/net/ipv4/neigh/default/gc_thresh3"}
	return []fault{
		{area: "limit", name: "conntrack table full", do: conntrack.set("4"), undo: conntrack.restore, holds: promise{refused: true}},
		{area: "limit", name: "neighbor table full", do: neighbors.set("1"), undo: neighbors.restore, holds: promise{refused: true}},
	}
}
