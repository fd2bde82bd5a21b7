package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// faults is the table.
func faults() []fault {
	var all []fault
	for _, part := range [][]fault{
		agentFaults(), deviceFaults(), routeFaults(), filterFaults(), sysctlFaults(), eniFaults(),
		underlayFaults(), electionFaults(), bgpFaults(), controlFaults(), limitFaults(), hostileFaults(),
	} {
		all = append(all, part...)
	}
	return all
}

func agentFaults() []fault {
	return []fault{
		{area: "agent", name: "killed on a function host", do: send(syscall.SIGKILL, "host1"), undo: revive("host1")},
		{area: "agent", name: "stopped on a function host", do: send(syscall.SIGTERM, "host1"), undo: revive("host1")},
		{area: "agent", name: "frozen on a function host", do: send(syscall.SIGSTOP, "host1"), undo: send(syscall.SIGCONT, "host1"), lasts: 3 * time.Second},
		{area: "agent", name: "killed on the active proxy", do: send(syscall.SIGKILL, "proxy1"), undo: revive("proxy1"),
			// A dead agent lets go of nothing.
			holds: promise{stall: failover, split: true}},
		{area: "agent", name: "stopped on the active proxy", do: send(syscall.SIGTERM, "proxy1"), undo: revive("proxy1"), holds: promise{stall: failover}},
		{area: "agent", name: "frozen on the active proxy", do: send(syscall.SIGSTOP, "proxy1"), undo: send(syscall.SIGCONT, "proxy1"), lasts: 3 * time.Second,
			holds: promise{stall: failover, split: true}},
		{area: "agent", name: "killed on the standby proxy", do: send(syscall.SIGKILL, "proxy2"), undo: revive("proxy2")},
		{area: "agent", name: "all killed at once", do: send(syscall.SIGKILL, "host1", "host2", "proxy1", "proxy2", "control"),
			undo: revive("control", "host1", "host2", "proxy1", "proxy2"), lasts: 3 * time.Second, holds: promise{stall: cold, split: true, within: coldLimit}},
		{area: "agent", name: "started twice", do: startTwice},
		{area: "agent", name: "its state directory is full", on: "host1",
			typed: []string{"mount -t tmpfs -o size=64k full /var/lib/vpcproxy", "head -c 60k /dev/zero > /var/lib/vpcproxy/ballast || true"},
			undo: func(ctx context.Context, p *platform) error {
				return errors.Join(send(syscall.SIGKILL, "host1")(ctx, p), p.typeOn(ctx, "host1", []string{"umount /var/lib/vpcproxy"}), revive("host1")(ctx, p))
			}, holds: promise{logged: []string{"no space left on device"}}},
		{area: "agent", name: "its saved intent is truncated", do: func(ctx context.Context, p *platform) error {
			return errors.Join(send(syscall.SIGKILL, "host1")(ctx, p), p.typeOn(ctx, "host1", []string{"truncate -s 100 /var/lib/vpcproxy/intent.json"}))
		}, undo: revive("host1")},
	}
}

// startTwice starts a second agent beside the first: it must end at once.
func startTwice(ctx context.Context, p *platform) error {
	a := p.agents["host1"]
	second, err := a.Start(nil, program("vpcproxyd"), "--config", a.config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, soundLimit)
	defer cancel()
	select {
	case <-second.Ended():
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("a second agent runs on %s", a.Name), second.Kill())
	}
}

const inRed = "ip netns exec vpx-red "

func deviceFaults() []fault {
	const wrongPeer = "ip neigh replace %s lladdr 192.168.4.99 nud permanent dev vpx-red"
	group := "$(ip route show table all proto 176 | sed -n 's/.* via \\([0-9.]*\\) dev vpx-red.*/\\1/p' | head -1)"
	red := promise{stall: repair, spared: []string{"blue"}}
	return []fault{
		{area: "device", name: "tunnel deleted", on: "host1", typed: []string{"ip link del vpx-red"}, holds: red},
		{area: "device", name: "tunnel down", on: "host1", typed: []string{"ip link set vpx-red down"}, holds: red},
		{area: "device", name: "tunnel down and up", on: "host1", typed: []string{"ip link set vpx-red down; ip link set vpx-red up"}, holds: red},
		{area: "device", name: "tunnel renamed", on: "host1", typed: []string{"until chrt --fifo 1 sh -c 'ip link set vpx-red down && ip link set vpx-red name other0' 2>/dev/null; do :; done"}, holds: red},
		{area: "device", name: "tunnel's MTU changed", on: "host1", typed: []string{"ip link set vpx-red mtu 1000"}, holds: red},
		{area: "device", name: "tunnel's key changed", on: "host1", typed: []string{"ip link change vpx-red type gre local 192.168.80.8 key 999 ttl 64"}, holds: red},
		{area: "device", name: "tunnel address flushed", on: "host1", typed: []string{"ip address flush dev vpx-red"}, holds: red},
		{area: "device", name: "neighbor deleted", on: "host1", typed: []string{"ip neigh del " + group + " dev vpx-red"}, holds: red},
		{area: "device", name: "neighbor at a wrong address", on: "host1", typed: []string{fmt.Sprintf(wrongPeer, group)}, holds: red},
		{area: "device", name: "tunnel deleted on the active proxy", on: "proxy1", typed: []string{"ip -n vpx-red link del vpx-red"}, holds: promise{stall: repair}},
		{area: "device", name: "tunnel down on the active proxy", on: "proxy1", typed: []string{"ip -n vpx-red link set vpx-red down"}, holds: promise{stall: repair}},
		{area: "device", name: "neighbors flushed on the active proxy", on: "proxy1", typed: []string{"ip -n vpx-red neigh flush dev vpx-red nud all || true"}, holds: red},
		{area: "device", name: "tunnel deleted on the standby proxy", on: "proxy2", typed: []string{"ip -n vpx-red link del vpx-red"}},
	}
}

func routeFaults() []fault {
	// Those that are there: they come back faster than a shell can delete them
	// one by one.
	const rules = "n=$(ip rule | grep -c '^17600:'); yes 'rule del priority 17600' | head -n $n | ip -force -batch -"
	red := promise{stall: repair, spared: []string{"blue"}}
	both := promise{stall: repair}
	return []fault{
		{area: "route", name: "a rule deleted", on: "host1", typed: []string{"ip rule del priority 17600"}, holds: both},
		{area: "route", name: "all rules of ours deleted", on: "host1", typed: []string{rules}, holds: both},
		{area: "route", name: "routes of an attachment deleted", on: "host1", typed: []string{"ip route show table all proto 176 | grep 'dev vpx-red' | sed 's/onlink//' | while read -r r; do ip route del $r; done"}, holds: red},
		{area: "route", name: "all routes of ours flushed", on: "host1", typed: []string{"ip route flush table all proto 176"}, holds: both},
		{area: "route", name: "a route replaced by another program's", on: "host1",
			typed: []string{"t=$(ip route show table all proto 176 | sed -n 's/.*vpx-red table \\([0-9]*\\).*/\\1/p' | head -1); ip route replace 172.16.101.0/24 via 192.168.80.1 dev eth0 table $t"}, holds: red},
		{area: "route", name: "rules and routes gone, as networkd does it", on: "host1",
			typed: []string{rules, "ip route flush table all proto 176"}, holds: both},
		{area: "route", name: "routes flushed on the active proxy", on: "proxy1", typed: []string{"ip -n vpx-red route flush proto 176"}, holds: both},
		{area: "route", name: "3,000 routes of others come and go", on: "host1",
			typed: []string{
				"seq 3000 | awk '{printf \"route add 198.18.%d.%d/32 dev eth0 table 999\\n\", $1/250, $1%250}' | ip -batch -",
				"test $(ip route show table 999 | wc -l) = 3000", "ip route flush table 999",
			}},
	}
}
