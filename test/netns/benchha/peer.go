package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// The same pair by hand: keepalived moves the addresses, conntrackd replicates
// in its mode FTFW, both as their manuals and conntrackd's own example for
// keepalived have them. There are none of the product's filters.
var byHand = map[string][]string{
	"host1": {
		"ip link add mgre0 type gre local 192.168.80.8 key 101 ttl 64",
		"ip address add 100.64.0.80/32 dev mgre0",
		"ip link set mgre0 up",
		"ip neigh add 100.64.0.4 lladdr " + outerVip + " nud permanent dev mgre0",
		"ip route add 172.16.101.0/24 via 100.64.0.4 dev mgre0 onlink table 100",
		"ip rule add from 10.244.1.5 to 172.16.101.0/24 lookup 100",
		"iptables -t nat -I POSTROUTING -o mgre0 -j SNAT --to-source 100.64.0.80 --random-fully",
		"sysctl -q -w net.ipv4.conf.mgre0.rp_filter=0",
	},
	"proxy1": onProxy,
	"proxy2": onProxy,
}

var onProxy = []string{
	"ip link add mgre0 type gre local " + outerVip + " key 101 ttl 64",
	"ip address add 100.64.0.4/32 dev mgre0",
	"ip link set mgre0 up",
	"ip neigh add 100.64.0.80 lladdr 192.168.80.8 nud permanent dev mgre0",
	"ip route add 100.64.0.0/16 dev mgre0",
	"sysctl -q -w net.ipv4.ip_forward=1",
	"sysctl -q -w net.ipv4.conf.mgre0.rp_filter=0",
	"sysctl -q -w net.ipv4.conf.all.rp_filter=0",
	"iptables -t nat -A POSTROUTING -o eth1 -j SNAT --to-source " + innerVip + " --random-fully",
}

const keepalivedConf = `global_defs {
	vrrp_version 3
	script_user root
	enable_script_security
}
vrrp_instance g1 {
	state BACKUP
	nopreempt
	interface eth0
	virtual_router_id 51
	priority 100
	advert_int %.2f
	unicast_src_ip %s
	unicast_peer {
		%s
	}
	virtual_ipaddress {
		` + outerVip + `/32 dev eth0
		` + innerVip + `/32 dev eth1
	}
	%s
}
`

const notify = `notify_master "%[1]s primary"
	notify_backup "%[1]s backup"
	notify_fault "%[1]s fault"
`

// conntrackdConf is Debian's example, with the link of this lab, UDP, and room
// for 100,000 entries.
const conntrackdConf = `Sync {
	Mode FTFW {
	}
	UDP {
		IPv4_address %[1]s
		IPv4_Destination_Address %[2]s
		Port 3780
		Interface eth0
		SndSocketBuffer 1249280
		RcvSocketBuffer 1249280
		Checksum on
	}
}
General {
	HashSize 65536
	HashLimit 524288
	LogFile off
	LockFile /run/lock/conntrack.lock
	UNIX {
		Path /run/conntrackd.ctl
	}
	NetlinkBufferSize 2097152
	NetlinkBufferSizeMaxGrowth 8388608
	Filter From Userspace {
		Protocol Accept {
			TCP
			UDP
		}
		Address Ignore {
			IPv4_address 127.0.0.1
			IPv4_address %[1]s
			IPv4_address %[2]s
		}
	}
}
`

// primaryBackup does what conntrackd's example script for keepalived of that
// name does, without its messages.
const primaryBackup = `#!/bin/sh
c="conntrackd -C %s"
case "$1" in
primary) $c -c; $c -f; $c -R; $c -B ;;
backup) $c -t; $c -n ;;
fault) $c -t ;;
esac
exit 0
`

// peer is a pair made by hand with keepalived and conntrackd.
func peer(ctx context.Context, files string) (*stack, error) {
	s, err := newStack(ctx, "keepalived", files)
	if err != nil {
		return nil, err
	}
	s.run = runKeepalived
	for _, m := range s.lab.Machines() {
		if err := m.Type(ctx, byHand[m.Name]...); err != nil {
			return nil, errors.Join(err, s.lab.Close())
		}
	}
	return s, nil
}

func runKeepalived(s *stack, i int, replicate bool) ([]*topo.Process, error) {
	self, other := s.lab.Proxies[i], s.lab.Proxies[1-i]
	hooks := ""
	var daemons []*topo.Process
	if replicate {
		conf, err := s.write(self.Name+"-conntrackd.conf", fmt.Sprintf(conntrackdConf, self.Underlay, other.Underlay))
		if err != nil {
			return nil, err
		}
		script, err := s.writeScript(self.Name+"-notify", fmt.Sprintf(primaryBackup, conf))
		if err != nil {
			return nil, err
		}
		hooks = fmt.Sprintf(notify, script)
		// A killed one leaves these behind.
		if err := s.lab.Proxies[i].Type(context.Background(), "rm -f /run/lock/conntrack.lock /run/conntrackd.ctl"); err != nil {
			return nil, err
		}
		d, err := self.StartNice(foremost, nil, "conntrackd", "-C", conf)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
		err = until(context.Background(), "conntrackd", func(ctx context.Context) error {
			_, err := self.Run(ctx, "conntrackd", "-C", conf, "-s")
			return err
		})
		if err != nil {
			return daemons, err
		}
	}
	conf, err := s.write(self.Name+"-keepalived.conf", fmt.Sprintf(keepalivedConf, s.interval.Seconds(), self.Underlay, other.Underlay, hooks))
	if err != nil {
		return daemons, err
	}
	// A killed one leaves its addresses; the operator of this pair clears
	// them away before it starts again.
	if err := self.Type(context.Background(), "ip address flush to "+outerVip+"/32", "ip address flush to "+innerVip+"/32"); err != nil {
		return daemons, err
	}
	k, err := self.StartNice(foremost, nil, "keepalived", "--dont-fork", "--log-console", "--no-syslog", "--vrrp", "-f", conf,
		"-p", "/run/keepalived.pid", "-r", "/run/keepalived_vrrp.pid")
	if err != nil {
		return daemons, err
	}
	// First, as it is what is killed.
	return append([]*topo.Process{k}, daemons...), nil
}
