package nft_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

// gre is a GRE packet with its outer IPv4 header. Its inner packet is not one:
// it is the text by which a test knows it again.
type gre struct {
	src, dst  string
	fragment  uint16 // flags and offset of the outer header
	options   int    // bytes of outer header options
	first     uint32 // flags, version, protocol type
	optional  []byte // key and the like
	truncated int    // bytes of GRE header that are left; 0: all
	text      string
}

func (g gre) marshal() []byte {
	b := make([]byte, 20+g.options)
	b[0] = byte(0x40 | len(b)/4)
	b[8], b[9] = 64, unix.IPPROTO_GRE
	binary.BigEndian.PutUint16(b[4:], 1) // identification
	binary.BigEndian.PutUint16(b[6:], g.fragment)
	src, dst := addr(g.src).As4(), addr(g.dst).As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	for i := 20; i < len(b); i++ {
		b[i] = 1 // no-operation
	}
	payload := binary.BigEndian.AppendUint32(nil, g.first)
	payload = append(append(payload, g.optional...), g.text...)
	if g.truncated > 0 {
		payload = payload[:g.truncated]
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// key is the key field of a GRE header.
func key(k uint32) []byte { return binary.BigEndian.AppendUint32(nil, k) }

// sender sends raw IPv4 packets from a namespace.
type sender struct {
	fd int
	t  testing.TB
}

func (m *machine) sender(name string) sender {
	return sender{fd: m.socket(name, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW), t: m.t}
}

func (s sender) send(b []byte) {
	s.t.Helper()
	to := &unix.SockaddrInet4{Addr: [4]byte(b[16:20])}
	if err := unix.Sendto(s.fd, b, 0, to); err != nil {
		s.t.Errorf("send: %v", err)
	}
}

// receive reads packets from a raw socket until one ends with the last text,
// and returns the texts behind the given marker.
func receive(t testing.TB, fd int, last string) []string {
	t.Helper()
	var texts []string
	buf := make([]byte, 65536)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("waiting for %q after %q: %v", last, texts, err)
		}
		_, text, _ := strings.Cut(string(buf[:n]), "text:")
		if text == last {
			return texts
		}
		texts = append(texts, text)
	}
}

var packetsCounted = regexp.MustCompile(`packets (\d+)`)

// counted returns the value of a named counter of the test's own.
func (m *machine) counted(netns, name string) uint64 {
	m.t.Helper()
	n, err := strconv.ParseUint(packetsCounted.FindStringSubmatch(m.nft(netns, "list counter inet probe "+name))[1], 10, 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *machine) dropped(ts *nft.Tables, name string) uint64 {
	m.t.Helper()
	counters, err := ts.Counters(context.Background(), "")
	if err != nil {
		m.t.Fatal(err)
	}
	return counters[name]
}

const (
	ipv4Keyed, ipv6Keyed = 0x20000800, 0x200086dd
	ipv4Plain, ipv6Plain = 0x00000800, 0x000086dd
)

// guarded is a host with peers beside a node that sends whatever it likes.
func guarded(t *testing.T) (*machine, *nft.Tables) {
	m := newMachine(t, "own", "node")
	m.connect("own", "10.0.0.1/24", "node", "10.0.0.2/24")
	m.ip("own", "addr add 10.0.1.1/24 dev node")
	m.ip("own", "addr add 10.0.9.1/24 dev node")
	m.ip("node", "addr add 10.0.0.3/24 dev own")
	m.ip("node", "addr add 10.0.0.4/24 dev own")
	m.ip("node", "route add 10.0.0.0/16 dev own")
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddPeers: []nft.Peer{
		{Local: addr("10.0.0.1"), Addr: addr("10.0.0.2"), Keyed: true, Key: 7},
		{Local: addr("10.0.0.1"), Addr: addr("10.0.0.2"), Keyed: true, Key: 0},
		{Local: addr("10.0.0.1"), Addr: addr("10.0.0.3"), Keyed: true, Key: 8},
		{Local: addr("10.0.0.1"), Addr: addr("10.0.0.4")},
		{Local: addr("10.0.1.1")}, // an endpoint with no peer yet
	}})
	return m, ts
}

func TestOnlyPeersSpeakGRE(t *testing.T) {
	m, ts := guarded(t)
	cases := []struct {
		name string
		gre  gre
		pass bool
	}{
		{"peer and key", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7)}, true},
		{"IPv6 inside", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv6Keyed, optional: key(7)}, true},
		{"key 0", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(0)}, true},
		{"IP options", gre{src: "10.0.0.2", dst: "10.0.0.1", options: 8, first: ipv4Keyed, optional: key(7)}, true},
		{"don't fragment", gre{src: "10.0.0.2", dst: "10.0.0.1", fragment: 0x4000, first: ipv4Keyed, optional: key(7)}, true},
		{"peer without key", gre{src: "10.0.0.4", dst: "10.0.0.1", first: ipv4Plain}, true},
		{"peer without key, IPv6", gre{src: "10.0.0.4", dst: "10.0.0.1", first: ipv6Plain}, true},
		{"not an endpoint", gre{src: "10.0.0.2", dst: "10.0.9.1", first: ipv4Keyed, optional: key(9)}, true},
		{"not an endpoint, odd", gre{src: "10.0.0.2", dst: "10.0.9.1", first: 0xb0000800, optional: key(9)}, true},

		{"wrong key", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(9)}, false},
		{"byte-swapped key", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(0x07000000)}, false},
		{"another peer's key", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(8)}, false},
		{"wrong source", gre{src: "10.0.0.5", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7)}, false},
		{"endpoint without peers", gre{src: "10.0.0.2", dst: "10.0.1.1", first: ipv4Keyed, optional: key(7)}, false},
		{"key missing", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Plain}, false},
		{"key not expected", gre{src: "10.0.0.4", dst: "10.0.0.1", first: ipv4Keyed, optional: key(0)}, false},
		{"checksum", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0xa0000800, optional: append(make([]byte, 4), key(7)...)}, false},
		{"checksum flag, key in its place", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0xa0000800, optional: key(7)}, false},
		{"sequence number", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x30000800, optional: append(key(7), key(1)...)}, false},
		{"routing", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x60000800, optional: append(make([]byte, 4), key(7)...)}, false},
		{"version 1", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x20010800, optional: key(7)}, false},
		{"Ethernet inside", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x20006558, optional: key(7)}, false},
		{"Ethernet inside, no key", gre{src: "10.0.0.4", dst: "10.0.0.1", first: 0x00006558}, false},
		{"first fragment", gre{src: "10.0.0.2", dst: "10.0.0.1", fragment: 0x2000, first: ipv4Keyed, optional: key(7)}, false},
		{"later fragment", gre{src: "10.0.0.2", dst: "10.0.0.1", fragment: 0x0010, first: ipv4Keyed, optional: key(7)}, false},
		{"header cut off", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, truncated: 2}, false},
		{"key cut off", gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, truncated: 6, optional: key(7)}, false},
	}
	in := m.socket("own", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	out := m.sender("node")
	var want []string
	bad := uint64(0)
	for _, c := range cases {
		c.gre.text = "text:" + c.name
		out.send(c.gre.marshal())
		if c.pass {
			want = append(want, c.name)
		} else {
			bad++
		}
	}
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	if got := receive(t, in, "last"); !slices.Equal(got, want) {
		t.Errorf("received\n%q, want\n%q", got, want)
	}
	if n := m.dropped(ts, nft.CounterUnknownPeer); n != bad {
		t.Errorf("%d packets counted as dropped, want %d", n, bad)
	}
	if n := m.dropped(ts, nft.CounterForged); n != 0 {
		t.Errorf("%d packets counted as forged, want none", n)
	}
}

// snmp reads a counter of /proc/net/snmp.
func (m *machine) snmp(netns, protocol, field string) uint64 {
	m.t.Helper()
	var content string
	if err := m.in(netns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		content = string(b)
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(content) {
		if fields := strings.Fields(line); fields[0] == protocol+":" {
			if i := slices.Index(names, field); i >= 0 {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					m.t.Fatal(err)
				}
				return n
			}
			names = fields
		}
	}
	m.t.Fatalf("no %s %s", protocol, field)
	return 0
}

// A host answers GRE that it has no device for with an ICMP error: that tells a
// wrong key from a right one, unless strangers never get that far.
func TestStrangersGetNoAnswer(t *testing.T) {
	m, ts := guarded(t)
	out := m.sender("node")
	for range 3 {
		out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(9), text: "text:key"}.marshal())
		out.send(gre{src: "10.0.0.2", dst: "10.0.1.1", first: ipv4Keyed, optional: key(9), text: "text:empty"}.marshal())
	}
	out.send(gre{src: "10.0.0.2", dst: "10.0.9.1", first: ipv4Keyed, optional: key(9), text: "text:unguarded"}.marshal())
	m.eventually("an answer to what is not guarded", func() bool { return m.snmp("node", "Icmp", "InDestUnreachs") > 0 })
	if n := m.snmp("own", "Icmp", "OutDestUnreachs"); n != 1 {
		t.Errorf("%d ICMP errors, want only that for the unguarded address", n)
	}
	if n := m.dropped(ts, nft.CounterUnknownPeer); n != 6 {
		t.Errorf("%d dropped, want 6", n)
	}
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestTunnelsAreNotTracked(t *testing.T) {
	m, _ := guarded(t)
	m.nft("own", `add table inet probe
		add counter inet probe in; add counter inet probe out; add counter inet probe foreign
		add chain inet probe pre { type filter hook prerouting priority 0; }
		add rule inet probe pre ip saddr 10.0.0.2 ip daddr 10.0.0.1 meta l4proto gre ct state untracked counter name in
		add rule inet probe pre ip daddr 10.0.9.1 meta l4proto gre ct state new counter name foreign
		add chain inet probe post { type filter hook output priority 0; }
		add rule inet probe post ip saddr 10.0.0.1 meta l4proto gre ct state untracked counter name out`)
	in := m.socket("own", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	back := m.socket("node", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	m.sender("node").send(gre{src: "10.0.0.2", dst: "10.0.9.1", first: ipv4Keyed, optional: key(7), text: "text:foreign"}.marshal())
	m.sender("node").send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	receive(t, in, "last")
	m.sender("own").send(gre{src: "10.0.0.1", dst: "10.0.0.2", first: ipv4Keyed, optional: key(7), text: "text:back"}.marshal())
	receive(t, back, "back")
	for name, want := range map[string]uint64{"in": 1, "out": 1, "foreign": 1} {
		if n := m.counted("own", name); n != want {
			t.Errorf("counter %s is %d, want %d", name, n, want)
		}
	}
}

func TestNobodySpeaksGREBehindTheHost(t *testing.T) {
	m := newMachine(t, "own", "pod", "proxy")
	m.connect("own", "10.244.1.1/24", "pod", "10.244.1.5/24")
	m.connect("own", "10.0.0.1/24", "proxy", "10.0.0.2/24")
	m.ip("proxy", "addr add 10.0.0.3/24 dev own")
	m.ip("pod", "route add default via 10.244.1.1")
	m.sysctl("own", "net/ipv4/ip_forward", "1")
	m.nft("own", `add table ip nat
		add chain ip nat post { type nat hook postrouting priority 100; }
		add rule ip nat post ip saddr 10.244.0.0/16 masquerade`)
	ts := m.tables("own")
	m.apply(ts, "", nft.Change{AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Addr: addr("10.0.0.2"), Keyed: true, Key: 7}}})
	in := m.socket("proxy", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	out := m.sender("pod")
	for _, g := range []gre{
		{first: ipv4Keyed, optional: key(7), text: "text:forged"},
		{first: ipv4Plain, text: "text:forged without key"},
		{first: 0xb0000800, text: "text:forged, odd"},
		{fragment: 0x2000, first: ipv4Keyed, optional: key(7), text: "text:forged, fragmented"},
	} {
		g.src, g.dst = "10.244.1.5", "10.0.0.2"
		out.send(g.marshal())
	}
	out.send(gre{src: "10.244.1.5", dst: "10.0.0.3", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	if got := receive(t, in, "last"); len(got) > 0 {
		t.Errorf("%q arrived", got)
	}
	// Connection tracking of the masquerading collects fragments first: the
	// lone one never gets to the chain.
	if n := m.dropped(ts, nft.CounterForged); n != 3 {
		t.Errorf("%d packets counted, want 3", n)
	}
	// The host itself may.
	m.sender("own").send(gre{src: "10.0.0.1", dst: "10.0.0.2", first: ipv4Keyed, optional: key(7), text: "text:own"}.marshal())
	receive(t, in, "own")
}

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
		add chain inet probe pre { type filter hook prerouting priority -200; }
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

func TestNoPacketIsUnmarkedWhileOthersChange(t *testing.T) {
	m := steered(t)
	ts := m.tables("own")
	constant := match("10.244.1.5/32", "172.16.101.0/24")
	m.apply(ts, "", nft.Change{AddSteers: map[nft.Match]nft.Mark{constant: red}})
	sibling, shorter := match("10.244.1.6/32", "172.16.101.0/24"), match("10.244.0.0/16", "172.16.101.0/24")
	edit := func() { m.nft("own", "add rule inet vpcproxy steer accept") }
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
	to := sockaddr(netip.MustParseAddrPort("172.16.101.5:5000"))
	sent := flood(func() { _ = unix.Sendto(from, []byte("x"), 0, to) }, work)
	out := m.nft("own", "list counters table inet watch")
	got := packetsCounted.FindAllStringSubmatch(out, -1)
	m.t.Logf("%s: %d packets sent", name, sent)
	if got[0][1] != "0" || sent < 1000 || got[1][1] == "0" {
		m.t.Errorf("%s: of %d packets, some of %s were unmarked:\n%s", name, sent, what, out)
	}
}

func TestNoStrangerPassesDuringARepair(t *testing.T) {
	m, ts := guarded(t)
	in := m.socket("own", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	out := m.sender("node")
	bad := gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(9), text: "text:stranger"}.marshal()
	sent := flood(func() { out.send(bad) }, func() {
		repeat(func() {
			// Edits that open nothing by themselves.
			m.nft("own", "add rule inet vpcproxy gre_prerouting accept; add rule inet vpcproxy gre accept; add rule inet vpcproxy gre_forward accept")
			m.apply(ts, "", nft.Change{})
		})
		m.alternate(ts, nft.Change{AddPeers: []nft.Peer{keyed}}, nft.Change{DeletePeers: []nft.Peer{keyed}})
	})
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	if got := receive(t, in, "last"); len(got) > 0 {
		t.Errorf("%d of %d strangers' packets passed", len(got), sent)
	}
	if n := m.dropped(ts, nft.CounterUnknownPeer); n != uint64(sent) {
		t.Errorf("%d packets counted as dropped, want %d", n, sent)
	}
}

func TestCountersOutliveRepairs(t *testing.T) {
	m, ts := guarded(t)
	in := m.socket("own", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	out := m.sender("node")
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(9)}.marshal())
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	receive(t, in, "last")
	if c := m.load(ts, ""); c.Damage != "" {
		t.Errorf("a counter's value is damage: %s", c.Damage)
	}
	m.nft("own", "delete chain inet vpcproxy gre_forward")
	m.apply(ts, "", nft.Change{})
	if n := m.dropped(ts, nft.CounterUnknownPeer); n != 1 {
		t.Errorf("counter is %d after a rebuild, want 1", n)
	}
}
