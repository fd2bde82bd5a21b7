package nft_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

// steered is a host whose pod reaches "red" and "blue" by mark only, and "main"
// otherwise. Bit 0 is set on all packets by somebody else, and must stay.
func steered(t testing.TB) *machine {
	m := newMachine(t, "own", "pod", "red", "blue", "main")
	m.connect("own", "10.244.1.1/24", "pod", "10.244.1.5/24")
	m.ip("own", "addr add fd00:1::1/64 dev pod nodad")
	m.ip("pod", "addr add fd00:1::5/64 dev own nodad")
	m.ip("pod", "addr add 10.244.1.6/24 dev own")
	m.ip("pod", "route add default via 10.244.1.1")
	m.ip("pod", "route add default via fd00:1::1")
	for i, name := range []string{"red", "blue", "main"} {
		m.connect("own", fmt.Sprintf("192.0.2.%d/31", 2*i), name, fmt.Sprintf("192.0.2.%d/31", 2*i+1))
		m.ip("own", fmt.Sprintf("addr add fd00:9:%d::1/64 dev %s nodad", i, name))
		m.ip(name, fmt.Sprintf("addr add fd00:9:%d::2/64 dev own nodad", i))
		m.ip(name, "addr add 172.16.101.5/32 dev lo")
		m.ip(name, "addr add 172.16.102.5/32 dev lo")
		m.ip(name, "addr add fd00:2::5/128 dev lo nodad")
		table := fmt.Sprintf("table %d", 100+i)
		if name == "main" {
			table = ""
		} else {
			for _, family := range []string{"-4", "-6"} {
				m.ip("own", fmt.Sprintf("%s rule add pref 100 fwmark %#x/0xff01 table %d", family, (i+1)<<8|1, 100+i))
			}
		}
		m.ip("own", fmt.Sprintf("route add 172.16.0.0/16 via 192.0.2.%d %s", 2*i+1, table))
		m.ip("own", fmt.Sprintf("route add fd00:2::/64 via fd00:9:%d::2 %s", i, table))
	}
	m.sysctl("own", "net/ipv4/ip_forward", "1")
	m.sysctl("own", "net/ipv6/conf/all/forwarding", "1")
	for _, dev := range []string{"all", "own"} {
		for _, name := range []string{"red", "blue", "main"} {
			m.sysctl(name, "net/ipv4/conf/"+dev+"/rp_filter", "0")
		}
	}
	m.nft("own", `add table inet probe
		add chain inet probe pre { type filter hook prerouting priority -350; }
		add rule inet probe pre meta mark set 1`)
	return m
}

// udp returns a UDP socket in a namespace: bound to an address, or only sending
// from it.
func (m *machine) udp(name, local string) int {
	m.t.Helper()
	a := netip.MustParseAddrPort(local)
	var fd int
	if a.Addr().Is4() {
		fd = m.socket(name, unix.AF_INET, unix.SOCK_DGRAM, 0)
	} else {
		fd = m.socket(name, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	}
	if err := unix.Bind(fd, sockaddr(a)); err != nil {
		m.t.Fatal(err)
	}
	return fd
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// arrives sends one packet from a pod's address and returns where it arrives.
func (m *machine) arrives(src, dst string) string {
	m.t.Helper()
	to := netip.MustParseAddrPort(net.JoinHostPort(dst, "5000"))
	sinks := m.sinks[to]
	if sinks == nil {
		sinks = map[string]int{}
		for _, name := range []string{"red", "blue", "main"} {
			sinks[name] = m.udp(name, to.String())
		}
		m.sinks[to] = sinks
	}
	from := m.udp("pod", net.JoinHostPort(src, "0"))
	if err := unix.Sendto(from, []byte("x"), 0, sockaddr(to)); err != nil {
		m.t.Fatal(err)
	}
	got := ""
	m.eventually("a packet from "+src+" to "+dst, func() bool {
		for name, fd := range sinks {
			if n, _, err := unix.Recvfrom(fd, make([]byte, 9), unix.MSG_DONTWAIT); err == nil && n == 1 {
				got = name
			}
		}
		return got != ""
	})
	return got
}

func TestSteering(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	for _, step := range []struct {
		name   string
		change nft.Change
		want   map[[2]string]string // source, destination: where it arrives
	}{
		{"nothing", nft.Change{}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "main", {"fd00:1::5", "fd00:2::5"}: "main"}},
		{"one pod", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("10.244.1.5/32", "172.16.101.0/24"): red}}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "red", {"10.244.1.5", "172.16.102.5"}: "main", {"10.244.1.6", "172.16.101.5"}: "main"}},
		{"every source", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("0.0.0.0/0", "172.16.101.0/24"): blue}}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "red", {"10.244.1.6", "172.16.101.5"}: "blue", {"10.244.1.6", "172.16.102.5"}: "main"}},
		{"a longer destination", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("10.244.1.5/32", "172.16.101.4/31"): blue}}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "blue"}},
		{"a longer source prevails", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("10.244.1.4/31", "172.16.101.5/32"): red},
			DeleteSteers: []nft.Match{match("10.244.1.5/32", "172.16.101.0/24")}}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "blue"}},
		{"another mark", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("10.244.1.5/32", "172.16.101.4/31"): red}}, map[[2]string]string{
			{"10.244.1.5", "172.16.101.5"}: "red"}},
		{"IPv6", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("fd00:1::/64", "fd00:2::/64"): red}}, map[[2]string]string{
			{"fd00:1::5", "fd00:2::5"}: "red"}},
		{"IPv6, one pod", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("fd00:1::5/128", "fd00:2::/65"): blue}}, map[[2]string]string{
			{"fd00:1::5", "fd00:2::5"}: "blue"}},
		{"IPv6, anyone else", nft.Change{AddSteers: map[nft.Match]nft.Mark{match("::/0", "::/0"): red},
			DeleteSteers: []nft.Match{match("fd00:1::5/128", "fd00:2::/65"), match("fd00:1::/64", "fd00:2::/64")}}, map[[2]string]string{
			{"fd00:1::5", "fd00:2::5"}: "red"}},
	} {
		m.apply(ts, "", step.change)
		for packet, want := range step.want {
			if got := m.arrives(packet[0], packet[1]); got != want {
				t.Errorf("%s: %s to %s arrives at %s, want %s", step.name, packet[0], packet[1], got, want)
			}
		}
	}
}

// flood calls send on two processors until the work is done, and returns the
// number of calls.
func flood(send func(), work func()) int {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	counts := make([]int, 2)
	for i := range counts {
		wg.Go(func() {
			for ; ; counts[i]++ {
				select {
				case <-stop:
					return
				default:
					send()
				}
			}
		})
	}
	work()
	close(stop)
	wg.Wait()
	return counts[0] + counts[1]
}

// repeat repeats work for long enough that a gap of microseconds is hit
// now and then; by how many packets depends on the machine.
func repeat(work func()) {
	for start := time.Now(); time.Since(start) < 3*time.Second; {
		work()
	}
}

// alternate makes a change and another one that undoes it, over and over.
func (m *machine) alternate(ts *nft.Tables, a, b nft.Change) {
	repeat(func() {
		m.apply(ts, "", a)
		m.apply(ts, "", b)
	})
}

// olderChains do in two chains what one does now.
const olderChains = `
	add chain inet vpcproxy gre_prerouting { type filter hook prerouting priority raw; }
	add rule inet vpcproxy gre_prerouting meta nfproto ipv4 meta l4proto gre ip daddr @endpoints4 goto gre
	add chain inet vpcproxy steer { type filter hook prerouting priority raw; }
	add rule inet vpcproxy steer meta nfproto ipv4 ip saddr . ip daddr & 255.255.255.0 vmap @steer4_32_24`

func TestNoPacketIsUnmarkedWhileOthersChange(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	constant := match("10.244.1.5/32", "172.16.101.0/24")
	m.apply(ts, "", nft.Change{AddSteers: map[nft.Match]nft.Mark{constant: red}})
	sibling, shorter := match("10.244.1.6/32", "172.16.101.0/24"), match("10.244.0.0/16", "172.16.101.0/24")
	edit := func() { m.nft("own", "add rule inet vpcproxy prerouting accept") }
	for name, work := range map[string]func(){
		"siblings": func() {
			m.alternate(ts, nft.Change{AddSteers: map[nft.Match]nft.Mark{sibling: blue}}, nft.Change{DeleteSteers: []nft.Match{sibling}})
		},
		"maps": func() {
			m.alternate(ts, nft.Change{AddSteers: map[nft.Match]nft.Mark{shorter: blue}}, nft.Change{DeleteSteers: []nft.Match{shorter}})
		},
		"peers": func() {
			m.alternate(ts, nft.Change{AddPeers: []nft.Peer{keyed}}, nft.Change{DeletePeers: []nft.Peer{keyed}})
		},
		"repair": func() {
			repeat(func() {
				edit()
				m.apply(ts, "", nft.Change{})
			})
		},
		"foreign objects": func() {
			repeat(func() {
				m.nft("own", "add counter inet vpcproxy foreign; add chain inet vpcproxy foreign; add set inet vpcproxy foreign { type mark; }")
				m.apply(ts, "", nft.Change{})
			})
		},
		"an older agent's chains": func() {
			repeat(func() {
				m.nft("own", olderChains)
				m.nft("own", "delete chain inet vpcproxy prerouting")
				m.apply(ts, "", nft.Change{})
			})
		},
		"missing chain": func() {
			repeat(func() {
				m.nft("own", "delete chain inet vpcproxy gre_forward")
				m.apply(ts, "", nft.Change{})
			})
		},
	} {
		m.expectMarked(name, work, "the packets that were steered throughout")
	}
}

func TestNoPacketIsUnmarkedWhileItsMarkChanges(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	s := match("10.244.1.5/32", "172.16.101.0/24")
	m.apply(ts, "", nft.Change{AddSteers: map[nft.Match]nft.Mark{s: red}})
	m.expectMarked("marks", func() {
		m.alternate(ts, nft.Change{AddSteers: map[nft.Match]nft.Mark{s: blue}}, nft.Change{AddSteers: map[nft.Match]nft.Mark{s: red}})
	}, "packets whose mark changed")
}

// expectMarked fails if a packet from 10.244.1.5 to 172.16.101.5 got no mark
// while something else was going on.
func (m *machine) expectMarked(name string, work func(), what string) {
	m.t.Helper()
	m.nft("own", `add table inet watch
		add counter inet watch unmarked
		add counter inet watch seen
		add chain inet watch pre { type filter hook prerouting priority -100; }
		flush chain inet watch pre
		reset counters table inet watch
		add rule inet watch pre ip saddr 10.244.1.5 ip daddr 172.16.101.5 counter name seen
		add rule inet watch pre ip saddr 10.244.1.5 ip daddr 172.16.101.5 meta mark & 0xff00 == 0 counter name unmarked`)
	from := m.udp("pod", "10.244.1.5:0")
	to := netip.MustParseAddrPort("172.16.101.5:5000")
	// An address of its own for each call: package unix writes into it.
	sent := flood(func() { _ = unix.Sendto(from, []byte("x"), 0, sockaddr(to)) }, work)
	out := m.nft("own", "list counters table inet watch")
	got := packetsCounted.FindAllStringSubmatch(out, -1)
	m.t.Logf("%s: %d packets sent", name, sent)
	if got[0][1] != "0" || sent < 1000 || got[1][1] == "0" {
		m.t.Errorf("%s: of %d packets, some of %s were unmarked:\n%s", name, sent, what, out)
	}
}
