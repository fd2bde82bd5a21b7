package nft_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

type steers = map[nft.Match]nft.Mark

func TestExchange(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	t.Cleanup(func() {
		if err := ts.Close(); err != nil {
			t.Error(err)
		}
	})
	pod, another, third := match("10.244.1.5/32", "172.16.101.0/24"), match("10.244.1.6/32", "172.16.101.0/24"), match("10.244.1.7/32", "172.16.101.0/24")
	refused := nft.Mark{Refuse: true}
	start := steers{pod: red, another: blue}
	for name, c := range map[string]struct {
		remove, add steers
		want        steers // nil: not done
	}{
		"added":               {nil, steers{third: red}, steers{pod: red, another: blue, third: red}},
		"removed":             {steers{pod: red}, nil, steers{another: blue}},
		"moved":               {steers{pod: red}, steers{pod: blue}, steers{pod: blue, another: blue}},
		"exchanged":           {steers{pod: red}, steers{third: red}, steers{another: blue, third: red}},
		"nothing":             {nil, nil, start},
		"there already":       {nil, steers{pod: red}, start},
		"absent":              {steers{third: red}, nil, nil},
		"with another mark":   {nil, steers{pod: blue}, nil},
		"no such chain":       {nil, steers{third: refused}, nil},
		"no such map":         {nil, steers{match("10.244.1.7/32", "172.16.0.0/16"): red}, nil},
		"half of it possible": {steers{pod: red}, steers{third: refused}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.apply(ts, "", nft.Change{AddSteers: start, DeleteSteers: []nft.Match{third}})
			done, err := ts.Exchange(t.Context(), c.remove, c.add)
			if err != nil || done != (c.want != nil) {
				t.Fatalf("done %v, %v", done, err)
			}
			want := c.want
			if want == nil {
				want = start
			}
			if got := m.load(ts, "").Steers; !maps.Equal(got, want) {
				t.Errorf("holds %v, want %v", got, want)
			}
		})
	}
	if _, err := ts.Exchange(t.Context(), nil, steers{pod: {}}); err == nil {
		t.Error("an invalid mark was taken")
	}
}

// A sender is known for as long as it sends.
func TestExchangeNamesItsSocket(t *testing.T) {
	m := newMachine(t, "own")
	var senders nft.Senders
	ts := m.tablesWith("own", &senders)
	m.apply(ts, "", nft.Change{AddSteers: steers{match("10.244.1.5/32", "172.16.101.0/24"): red}})
	fd := m.socket("own", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		t.Fatal(err)
	}
	heard := func() (own, foreign bool) {
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err != nil {
				return own, foreign
			}
			msgs, err := syscall.ParseNetlinkMessage(b[:n])
			if err != nil {
				t.Fatal(err)
			}
			for _, msg := range msgs {
				own, foreign = own || senders.Own(msg.Header.Pid), foreign || !senders.Own(msg.Header.Pid)
			}
		}
	}
	if done, err := ts.Exchange(t.Context(), nil, steers{match("10.244.1.6/32", "172.16.101.0/24"): red}); !done || err != nil {
		t.Fatal(done, err)
	}
	if own, foreign := heard(); !own || foreign {
		t.Errorf("after an exchange: own news %v, others' %v", own, foreign)
	}
	m.nft("own", "add table inet other")
	if own, foreign := heard(); own || !foreign {
		t.Errorf("after another program's change: own news %v, others' %v", own, foreign)
	}
	if err := ts.Close(); err != nil {
		t.Fatal(err)
	}
}

// What comes from a link is tracked in its zone, and what is steered in its
// mark's: the same five-tuple twice is two connections.
func TestZones(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	inRed, inBlue := red, blue
	inRed.Zone, inBlue.Zone = 17601, 17602
	s := match("10.244.1.5/32", "172.16.101.0/24")
	m.nft("own", `add table inet watch
		add chain inet watch post { type filter hook postrouting priority 300; }
		add counter inet watch red
		add counter inet watch blue
		add counter inet watch back
		add rule inet watch post ct zone 17601 ip saddr 10.244.1.5 counter name red
		add rule inet watch post ct zone 17602 ip saddr 10.244.1.5 counter name blue
		add rule inet watch post ct zone 17609 ip daddr 10.244.1.5 counter name back`)
	for _, mark := range []nft.Mark{inRed, inBlue} {
		m.apply(ts, "", nft.Change{AddSteers: steers{s: mark}, AddZones: map[string]uint16{"red": 17609}})
		m.arrives("10.244.1.5", "172.16.101.5")
	}
	m.ip("red", "route add 10.244.1.0/24 via 192.0.2.0")
	back := m.udp("red", "172.16.101.5:4000")
	if err := unix.Sendto(back, []byte("x"), 0, sockaddr(netip.MustParseAddrPort("10.244.1.5:4000"))); err != nil {
		t.Fatal(err)
	}
	m.eventually("one packet in each zone", func() bool {
		out := m.nft("own", "list counters table inet watch")
		counts := packetsCounted.FindAllStringSubmatch(out, -1)
		return !slices.ContainsFunc(counts, func(c []string) bool { return c[1] == "0" })
	})
}

func TestRefused(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddSteers: steers{match("10.244.1.5/32", "172.16.101.0/24"): {Refuse: true}}})
	fd := m.udp("pod", "10.244.1.5:0")
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, sockaddr(netip.MustParseAddrPort("172.16.101.5:5000"))); err != nil {
		t.Fatal(err)
	}
	m.eventually("host unreachable", func() bool {
		_, err := unix.Write(fd, []byte("x"))
		return errors.Is(err, unix.EHOSTUNREACH)
	})
}
