package nattest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

func functionHost(t *testing.T, h Harness, b nat.Backend) {
	far, far6 := serve(t, h.Host, peer1.name, peer1.v4), serve(t, h.Host, peer1.name, peer1.v6)
	closed := []netip.AddrPort{serve(t, h.Host, pod.name, pod.v4), serve(t, h.Host, Netns, peer1.gate4), serve(t, h.Host, peer2.name, peer2.v4)}
	wantOpen(t, h.Host, peer1, closed...)
	wantOpen(t, h.Host, pod, far, far6)

	write(t, b, Samples()["function host"])
	wantSource(t, h.Host, pod, far, peer1.gate4)
	// Its own addresses stay, whichever they are.
	wantSource(t, h.Host, node{name: Netns}, far, peer1.gate4)
	wantSource(t, h.Host, node{name: Netns, v4: pod.gate4}, far, pod.gate4)
	// The other side opens nothing, neither toward pods, nor this machine,
	// nor another tunnel.
	wantRefused(t, h.Host, peer1, closed...)
	// A link that is not guarded is nobody's business.
	wantSource(t, h.Host, pod, serve(t, h.Host, vpc.name, vpc.v4), pod.v4)
	// There is no IPv6 translation toward tunnels, so IPv6 stays away.
	wantRefused(t, h.Host, pod, far6)

	inject(t, h.Host, pod, peer1.v4)
	got := counts(t, b)
	for _, c := range []nat.Counter{
		{Key: nat.Key{Family: nat.IPv4, Chain: nat.Forward}, Reason: nat.InboundUserVPC, In: "vpx-+"},
		{Key: nat.Key{Family: nat.IPv4, Chain: nat.Input}, Reason: nat.InboundUserVPC, In: "vpx-+"},
		{Key: nat.Key{Family: nat.IPv4, Chain: nat.Forward}, Reason: nat.InvalidPacket, Out: "vpx-+"},
		{Key: nat.Key{Family: nat.IPv6, Chain: nat.Forward}, Reason: nat.NoSourceNAT, Out: "vpx-+"},
	} {
		if got[c] == 0 {
			t.Errorf("no packets counted for %v: %v", c, got)
		}
	}
}

// masquerades hides pods toward what is no attachment.
func masquerades(t *testing.T, h Harness, b nat.Backend) {
	far := serve(t, h.Host, peer1.name, peer1.v4)
	out, out6 := serve(t, h.Host, vpc.name, vpc.v4), serve(t, h.Host, vpc.name, vpc.v6)
	inside, inside6 := serve(t, h.Host, pod.name, pod.v4), serve(t, h.Host, pod.name, pod.v6)
	here := serve(t, h.Host, Netns, pod.gate4)

	n := Samples()["function host that masquerades"]
	write(t, b, n)
	wantSource(t, h.Host, pod, out, vpc.gate4)
	wantSource(t, h.Host, pod, out6, vpc.gate6)
	wantSource(t, h.Host, pod, here, pod.v4)
	wantSource(t, h.Host, vpc, inside, vpc.v4)
	wantSource(t, h.Host, vpc, inside6, vpc.v6)
	// Attachments come first.
	wantSource(t, h.Host, pod, far, peer1.gate4)

	n.Masquerade = keeping(vpc4, everything6)
	write(t, b, n)
	wantSource(t, h.Host, pod, out, pod.v4)
	wantSource(t, h.Host, pod, out6, pod.v6)
	wantSource(t, h.Host, vpc, inside, pod.gate4)
	wantSource(t, h.Host, vpc, inside6, vpc.v6)
	wantSource(t, h.Host, pod, far, peer1.gate4)
}

func proxy(t *testing.T, h Harness, b nat.Backend) {
	far, far6 := serve(t, h.Host, vpc.name, vpc.v4), serve(t, h.Host, vpc.name, vpc.v6)
	fromVPC := []netip.AddrPort{
		serve(t, h.Host, peer1.name, peer1.v4), serve(t, h.Host, peer1.name, peer1.v6), serve(t, h.Host, pod.name, pod.v4),
		serve(t, h.Host, Netns, vpc.gate4), serve(t, h.Host, Netns, vpc.gate6), serve(t, h.Host, Netns, peer1.gate4),
	}
	// The tunnel's side reaches the ENI and nothing else.
	fromTunnel := []netip.AddrPort{serve(t, h.Host, pod.name, pod.v4), serve(t, h.Host, Netns, peer1.gate4)}
	wantOpen(t, h.Host, vpc, fromVPC...)
	wantOpen(t, h.Host, peer1, fromTunnel...)
	for _, name := range []string{"proxy with HaVip", "lone proxy"} {
		write(t, b, Samples()[name])
		// What the neighbors have learned of each other does not help.
		for _, n := range []string{Netns, vpc.name} {
			h.Shell(t, n, "ip neigh flush all")
		}
		wantSource(t, h.Host, peer1, far, vpc.gate4)
		wantSource(t, h.Host, peer1, far6, vpc.gate6)
		wantRefused(t, h.Host, vpc, fromVPC...)
		wantRefused(t, h.Host, peer1, fromTunnel...)
		remove(t, b)
	}
}

// inject sends an ICMP echo reply that answers nothing: conntrack calls it
// INVALID, and NAT would let it pass with its inner source.
func inject(t *testing.T, h Host, from node, to netip.Addr) {
	t.Helper()
	err := h.Run(t.Context(), from.name, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		// Type 0, code 0, checksum, id 1, sequence 1.
		return unix.Sendto(s, []byte{0, 0, 0xff, 0xfd, 0, 1, 0, 1}, 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
	if err != nil {
		t.Fatalf("send an ICMP message from %s: %v", from.name, err)
	}
}

// pathMTU narrows a link behind the machine under test. The ICMP error about
// it comes from the guarded side, and without it a large segment never arrives.
func pathMTU(t *testing.T, h Harness, b nat.Backend) {
	n := Samples()["proxy with HaVip"]
	n.Clamp = nil // so that only the error can help
	write(t, b, n)
	create(t, h.Host, "far")
	h.Shell(t, vpc.name, ip(`link add far0 mtu 1300 type veth peer name eth0 mtu 1300 netns far
		addr add 172.16.200.1/24 dev far0
		link set far0 up
		`)+"echo 1 > /proc/sys/net/ipv4/ip_forward")
	// The far end does not announce a small segment size itself.
	h.Shell(t, "far", ip(`addr add 172.16.200.5/24 dev eth0
		link set eth0 up
		route add default via 172.16.200.1 advmss 1460
		`))
	h.Shell(t, Netns, "ip route add 172.16.200.0/24 via "+vpc.v4.String())
	to := serve(t, h.Host, "far", netip.MustParseAddr("172.16.200.5"))

	c, err := dial(t.Context(), h.Host, peer1, to, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echo(c, strings.Repeat("x", 8000)); err != nil {
		t.Errorf("a large segment past a narrow link: %v", err)
	}
}

func clamps(t *testing.T, h Harness, b nat.Backend) {
	const mtu = 1280
	n := Samples()["proxy with HaVip"]
	n.Clamp = []desired.Clamp{{Link: "vpx-c1", MTU: mtu}}
	write(t, b, n)
	for to, want := range map[netip.AddrPort]int{
		serve(t, h.Host, vpc.name, vpc.v4): mtu - 40 - 12, // 12: the timestamp option
		serve(t, h.Host, vpc.name, vpc.v6): mtu - 60 - 12,
	} {
		c, err := dial(t.Context(), h.Host, peer1, to, patience)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := sendMSS(c.Conn)
		if err != nil || got != want || c.serverMSS != want {
			t.Errorf("%s: the client sends segments of %d bytes (%v), the server of %d; want %d", to, got, err, c.serverMSS, want)
		}
		_ = c.Close()
	}
}

// replacements is how often rules are replaced under traffic.
const replacements = 50

// replacesUnderTraffic keeps opening connections while the rules change
// between two sets with the same translation, and keeps one connection open.
func replacesUnderTraffic(t *testing.T, h Harness, b nat.Backend) {
	first := Samples()["proxy with HaVip"]
	second := first
	second.Clamp = []desired.Clamp{{Link: "vpx-c1", MTU: 1400}}
	second.Guarded = append([]string{"vpx-c2"}, first.Guarded...)
	second.SNAT = append([]desired.SNAT{{Out: "vpx-c2", To: peer2.gate4}}, first.SNAT...)
	write(t, b, first)

	packets := sniff(t, h.Host, vpc)
	to := serve(t, h.Host, vpc.name, vpc.v4)
	long, err := dial(t.Context(), h.Host, peer1, to, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()

	stop, result := make(chan struct{}), make(chan traffic, 1)
	go func() { result <- connect(t, h.Host, peer1, to, stop) }()
	for i := range replacements {
		n := first
		if i%2 == 0 {
			n = second
		}
		if err := b.Write(t.Context(), Netns, nat.Render(n)); err != nil {
			t.Fatalf("replacement %d: %v", i, err)
		}
		if err := echo(long, "alive"); err != nil {
			t.Fatalf("the connection that was open ended with replacement %d: %v", i, err)
		}
	}
	close(stop)
	got := <-result
	for source, n := range packets() {
		if source != vpc.gate4 && source != vpc.v4 {
			t.Errorf("%d packets arrived from %s, not from %s", n, source, vpc.gate4)
		}
	}
	for _, err := range got.errs {
		t.Errorf("connection refused or lost: %v", err)
	}
	if got.seen[vpc.gate4] < replacements {
		t.Errorf("only %d connections in %d replacements: the test shows nothing", got.seen[vpc.gate4], replacements)
	}
	t.Logf("%d connections", got.seen[vpc.gate4])
}

type traffic struct {
	seen map[netip.Addr]int
	errs []error
}

// connect opens connections until it is stopped, with pauses that leave the
// writer its turn where processors are few.
func connect(t *testing.T, h Host, from node, to netip.AddrPort, stop <-chan struct{}) traffic {
	r := traffic{seen: map[netip.Addr]int{}}
	err := h.Run(t.Context(), from.name, func() error {
		next := time.NewTicker(5 * time.Millisecond)
		defer next.Stop()
		for {
			select {
			case <-stop:
				return nil
			case <-next.C:
			}
			c, err := dialHere(t.Context(), from, to, patience)
			if err != nil {
				r.errs = append(r.errs, err)
				continue
			}
			r.seen[c.source]++
			_ = c.Close()
		}
	})
	if err != nil {
		r.errs = append(r.errs, err)
	}
	return r
}
