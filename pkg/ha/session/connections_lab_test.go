package session_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// sh runs commands in a namespace of a host.
func sh(t testing.TB, h kernel.Host, ns, script string) {
	t.Helper()
	err := h.Run(t.Context(), ns, func() error {
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// world joins a client and a server by both members' namespaces:
//
//	client 10.9.0.9 ─ a, b ─ server 10.8.0.8
//
// The members translate to 10.7.0.7. Failover is two routes.
func world(t testing.TB, a, b *proxy) (ends kernel.Host) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ends, err := kernel.NewHost(kernel.HostOptions{NetnsDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ends.Close() })
	for _, n := range []string{"client", "server"} {
		if err := ends.CreateNamespace(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for i, p := range []*proxy{a, b} {
		files := []*os.File{open(p.path), open(filepath.Join(dir, "client")), open(filepath.Join(dir, "server"))}
		link := func(ns int, name string) string {
			return fmt.Sprintf("netns /proc/%d/fd/%d name %s", os.Getpid(), files[ns].Fd(), name)
		}
		sh(t, ends, "", fmt.Sprintf(`ip link add %s type veth peer %s
			ip link add %s type veth peer %s`,
			link(0, "in"), link(1, p.name), link(0, "out"), link(2, p.name)))
		sh(t, p.host, netns, fmt.Sprintf(`ip -batch - <<-BATCH
			addr add 10.1.%[1]d.1/24 dev in
			addr add 10.2.%[1]d.1/24 dev out
			link set dev in up
			link set dev out up
			route add 10.9.0.9 via 10.1.%[1]d.2
			route add 10.8.0.8 via 10.2.%[1]d.2
			BATCH
			echo 1 > /proc/sys/net/ipv4/ip_forward
			echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal # as package plan does for a group
			nft -f - <<-NFT
			table ip test {
				chain post { type nat hook postrouting priority 100; meta l4proto { tcp, udp } oif out snat to 10.7.0.7:20000-60000 fully-random; }
				chain forward { type filter hook forward priority 0; ct state invalid drop; }
			}
			NFT`, i+1))
		for j, end := range []string{"client", "server"} {
			sh(t, ends, end, fmt.Sprintf(`ip addr add 10.%d.%d.2/24 dev %s; ip link set dev %s up; ip link set lo up`, j+1, i+1, p.name, p.name))
		}
	}
	sh(t, ends, "client", "ip addr add 10.9.0.9/32 dev lo")
	sh(t, ends, "server", "ip addr add 10.8.0.8/32 dev lo")
	turn(t, ends, 1)
	return ends
}

// turn sends the packets of both ends by the i-th member.
func turn(t testing.TB, ends kernel.Host, i int) {
	t.Helper()
	sh(t, ends, "client", fmt.Sprintf("ip route replace 10.8.0.8 via 10.1.%d.1 src 10.9.0.9", i))
	sh(t, ends, "server", fmt.Sprintf("ip route replace 10.7.0.7 via 10.2.%d.1 src 10.8.0.8", i))
}

// in opens something in an end's namespace.
func in[T any](t testing.TB, ends kernel.Host, ns string, f func() (T, error)) (v T) {
	t.Helper()
	err := ends.Run(t.Context(), ns, func() (err error) { v, err = f(); return err })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConnectionsGoOnThroughTheOtherMember(t *testing.T) {
	a, b := pair(t, 100*time.Millisecond)
	ends := world(t, a, b)
	a.m.SetActive("g", true)
	eventually(t, "the standby", func() bool { return len(a.status(t).Standbys) == 1 })

	l := in(t, ends, "server", func() (net.Listener, error) { return net.Listen("tcp", "10.8.0.8:80") })
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go echo(c)
		}
	}()
	u := in(t, ends, "server", func() (net.PacketConn, error) { return net.ListenPacket("udp", "10.8.0.8:53") })
	defer u.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			if from.(*net.UDPAddr).Port == 0 {
				return
			}
			_, _ = u.WriteTo(append(buf[:n:n], []byte(from.String())...), from)
		}
	}()
	var conns []net.Conn
	for range 100 {
		c := in(t, ends, "client", func() (net.Conn, error) { return net.Dial("tcp", "10.8.0.8:80") })
		defer c.Close()
		conns = append(conns, c)
	}
	udp := in(t, ends, "client", func() (net.Conn, error) { return net.Dial("udp", "10.8.0.8:53") })
	defer udp.Close()
	all := func() {
		t.Helper()
		for i, c := range conns {
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprintf(c, "%6d", i); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 6)
			if _, err := c.Read(got); err != nil || string(got) != fmt.Sprintf("%6d", i) {
				t.Fatalf("connection %d: %q, %v", i, got, err)
			}
		}
	}
	ask := func() string {
		t.Helper()
		buf := make([]byte, 100)
		for range 20 {
			if _, err := udp.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := udp.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := udp.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		t.Fatal("no answer over UDP")
		return ""
	}
	all()
	source := ask()
	// UDP is assured two seconds after its first answer.
	eventually(t, "all flows on the standby", func() bool {
		ask()
		return len(b.entries(t)) == 101 && a.status(t).Pending == 0
	})
	turn(t, ends, 2)
	b.m.SetActive("g", true)
	a.m.SetActive("g", false)
	all()
	if again := ask(); again != source {
		t.Errorf("the server sees UDP from %s, and saw it from %s", again, source)
	}
	eventually(t, "the way back", func() bool { return same(a.entries(t), b.entries(t)) && len(a.entries(t)) == 101 })
	turn(t, ends, 1)
	a.m.SetActive("g", true)
	b.m.SetActive("g", false)
	all()
	if again := ask(); again != source {
		t.Errorf("the server sees UDP from %s, and saw it from %s", again, source)
	}
	// Short connections are the active member's alone.
	idle := func() bool { return a.status(t).Pending == 0 && len(a.status(t).Standbys) == 1 }
	eventually(t, "the second copy", idle)
	before := a.status(t).Sent
	for range 50 {
		c := in(t, ends, "client", func() (net.Conn, error) { return net.Dial("tcp", "10.8.0.8:80") })
		_ = c.Close()
	}
	eventually(t, "short connections to be over", func() bool {
		over := 0
		for _, e := range a.entries(t) {
			if e.Closed() {
				over++
			}
		}
		return over == 50 && idle()
	})
	if sent := a.status(t).Sent - before; sent > 5 { // a listing may meet one
		t.Errorf("%d changes were sent for 50 short connections", sent)
	}
	// Closed ones end on the standby, although they stay in TIME_WAIT on the
	// active one.
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "closed connections to end on the standby", func() bool { return len(b.entries(t)) == 1 })
}

func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 100)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}
