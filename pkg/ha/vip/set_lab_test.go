package vip_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// TestAddressesMoveOnARealLink has two machines exchange an IPv4 and an IPv6
// address while a neighbor talks to both: he learns of each move, and is answered
// by the new holder at once.
func TestAddressesMoveOnARealLink(t *testing.T) {
	lab.Require(t)
	const one, two, neighbor = "vip-one", "vip-two", "vip-neighbor"
	bridge(t, neighbor, one, two)
	host, err := kernel.NewHost(kernel.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wire := vip.NewEthernet(host)
	t.Cleanup(func() { _, _ = wire.Close(), host.Close() })
	moving := []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("2001:db8::100")}
	sets := map[string]*vip.Set{}
	for _, machine := range []string{one, two} {
		s := vip.NewSet(vip.Options{Group: machine, Host: host, Wire: wire, Log: slog.New(slog.DiscardHandler)})
		var addresses []vip.Address
		for _, a := range moving {
			addresses = append(addresses, vip.Address{Netns: machine, Link: "eth0", Addr: a})
		}
		s.Replace(t.Context(), addresses)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		sets[machine] = s
	}
	for _, move := range [][2]string{{two, one}, {one, two}, {two, one}} {
		from, to := move[0], move[1]
		if err := sets[from].Deactivate(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, a := range moving { // whoever had it
			ip(t, "-n", neighbor, "neigh", "replace", a.String(), "lladdr", mac(t, from), "nud", "reachable", "dev", "br0")
		}
		if err := sets[to].Activate(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, a := range moving {
			answers(t, neighbor, a)
			if got := ip(t, "-n", neighbor, "neigh", "show", a.String()); !strings.Contains(got, mac(t, to)) {
				t.Errorf("%s is at %s by now, and for its neighbor: %s", a, mac(t, to), got)
			}
			contest(t, wire, host, from, mac(t, to), a)
		}
	}
}

// bridge makes machines with one link each, to a bridge of the first.
func bridge(t *testing.T, first string, machines ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, m := range append(machines, first) {
			// t.Context has ended by now. Any may be missing after a failure.
			_ = exec.CommandContext(context.Background(), "ip", "netns", "del", m).Run()
		}
	})
	ip(t, "netns", "add", first)
	ip(t, "-n", first, "link", "add", "br0", "type", "bridge")
	ip(t, "-n", first, "link", "set", "br0", "up")
	furnish := func(machine, link string, last int) {
		ip(t, "-n", machine, "addr", "add", fmt.Sprintf("192.0.2.%d/24", last), "dev", link)
		ip(t, "-n", machine, "addr", "add", fmt.Sprintf("2001:db8::%d/64", last), "dev", link, "nodad")
	}
	furnish(first, "br0", 3)
	for i, m := range machines {
		ip(t, "netns", "add", m)
		port := fmt.Sprintf("port%d", i)
		ip(t, "-n", first, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", m)
		ip(t, "-n", first, "link", "set", port, "master", "br0", "up")
		ip(t, "-n", m, "link", "set", "eth0", "up")
		furnish(m, "eth0", i+1)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mac is the address of a machine's eth0.
func mac(t *testing.T, machine string) string {
	t.Helper()
	fields := strings.Fields(ip(t, "-n", machine, "-br", "link", "show", "eth0"))
	if len(fields) < 3 {
		t.Fatalf("ip link says %q", fields)
	}
	return fields[2]
}

// answers sends one echo request, which must be answered.
func answers(t *testing.T, from string, to netip.Addr) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", from, "ping", "-c", "1", "-W", "5", to.String()).CombinedOutput()
	if err != nil {
		t.Errorf("ping %s: %v: %s", to, err, out)
	}
}

// contest asks, on a machine that does not hold an address, who does.
func contest(t *testing.T, wire vip.Wire, host kernel.Host, asking, want string, a netip.Addr) {
	t.Helper()
	h, err := host.In(asking)
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.LinkByName(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := wire.Ask(ctx, asking, l, a); err != nil || got != want {
		t.Errorf("asked who has %s: %q, %v, want %q", a, got, err, want)
	}
}
