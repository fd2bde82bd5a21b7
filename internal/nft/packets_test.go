package nft_test

import (
	"context"
	"encoding/binary"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
		{"a measurement", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x200088b5, optional: key(7)}, true},
		{"a measurement, no key", gre{src: "10.0.0.4", dst: "10.0.0.1", first: 0x000088b5}, true},
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
		{"a measurement, wrong key", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x200088b5, optional: key(9)}, false},
		{"a measurement, key missing", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x000088b5}, false},
		{"another experiment", gre{src: "10.0.0.2", dst: "10.0.0.1", first: 0x200088b6, optional: key(7)}, false},
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

func TestNoStrangerPassesDuringARepair(t *testing.T) {
	m, ts := guarded(t)
	in := m.socket("own", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE)
	out := m.sender("node")
	bad := gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(9), text: "text:stranger"}.marshal()
	// A flood that has to wait for an ARP answer overflows the neighbor's queue.
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:first"}.marshal())
	receive(t, in, "first")
	m.ip("node", "neigh change 10.0.0.1 dev own nud permanent")
	before := backlogDrops(t)
	sent := flood(func() { out.send(bad) }, func() {
		repeat(func() {
			// Edits that open nothing by themselves.
			m.nft("own", "add rule inet vpcproxy prerouting accept; add rule inet vpcproxy gre accept; add rule inet vpcproxy gre_forward accept")
			m.apply(ts, "", nft.Change{})
		})
		m.alternate(ts, nft.Change{AddPeers: []nft.Peer{keyed}}, nft.Change{DeletePeers: []nft.Peer{keyed}})
	})
	out.send(gre{src: "10.0.0.2", dst: "10.0.0.1", first: ipv4Keyed, optional: key(7), text: "text:last"}.marshal())
	if got := receive(t, in, "last"); len(got) > 0 {
		t.Errorf("%d of %d strangers' packets passed", len(got), sent)
	}
	// What a busy machine's backlog drops is dropped before any rule.
	lost := backlogDrops(t) - before
	if n := m.dropped(ts, nft.CounterUnknownPeer); n > uint64(sent) || n+lost < uint64(sent) {
		t.Errorf("%d packets counted as dropped, and %d lost before, want %d", n, lost, sent)
	}
}

// backlogDrops is how many packets processors had no room for, in the second column
// of /proc/net/softnet_stat (softnet_seq_show, net/core/net-procfs.c).
func backlogDrops(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for line := range strings.Lines(string(text)) {
		columns := strings.Fields(line)
		if len(columns) < 2 {
			t.Fatalf("softnet_stat: %q", line)
		}
		n, err := strconv.ParseUint(columns[1], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
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
