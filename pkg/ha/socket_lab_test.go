package ha_test

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// TestSocketTellsWhenAPacketCame reads packets later than they came.
func TestSocketTellsWhenAPacketCame(t *testing.T) {
	lab.Require(t)
	t.Run("IPv4", func(t *testing.T) { tellsWhenAPacketCame(t, overIPv4, overIPv4.ours) })
	t.Run("IPv4 multicast", func(t *testing.T) { tellsWhenAPacketCame(t, overIPv4.byMulticast(), vrrp.GroupIPv4) })
	routed, linkLocal := addresses("2001:db8::1", "2001:db8::2"), addresses("fe80::1", "fe80::2")
	t.Run("IPv6", func(t *testing.T) { tellsWhenAPacketCame(t, routed, routed.ours) })
	t.Run("IPv6 multicast", func(t *testing.T) { tellsWhenAPacketCame(t, linkLocal.byMulticast(), vrrp.GroupIPv6) })
}

func tellsWhenAPacketCame(t *testing.T, addressed plan, dst netip.Addr) {
	p := newPair(t, vrrp.RFC9568, addressed)
	from, to := openIn(t, p.theirs, addressed.theirs, addressed.multicast), openIn(t, p.ours, addressed.ours, addressed.multicast)
	if err := to.Wait(0); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := to.Receive(); ok || err != nil {
		t.Fatalf("received before anything was sent: %v, %v", ok, err)
	}
	const pause = 300 * time.Millisecond
	for range 2 {
		if err := from.Send(dst, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
	}
	began := time.Now()
	if err := to.Wait(time.Minute); err != nil {
		t.Fatal(err)
	}
	var waited []time.Duration
	for {
		d, ok, err := to.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if d.Src != addressed.theirs || d.Dst != dst || d.TTL != vrrp.HopLimit {
			t.Errorf("received %+v", d)
		}
		waited = append(waited, d.Waited)
	}
	if len(waited) != 2 || waited[0] < 2*pause || waited[1] < pause || waited[0] < waited[1]+pause*9/10 {
		t.Errorf("packets that came %v and %v ago waited %v", 2*pause, pause, waited)
	}
	go to.Wake()
	if err := to.Wait(time.Minute); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("not woken for %v", took)
	}
}

// openIn opens a socket in a namespace.
func openIn(t *testing.T, netns string, local netip.Addr, multicast bool) *ha.Socket {
	t.Helper()
	type result struct {
		socket *ha.Socket
		err    error
	}
	opened := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock
		f, err := os.Open("/run/netns/" + netns)
		if err != nil {
			opened <- result{err: err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			opened <- result{err: err}
			return
		}
		s, err := ha.OpenSocket("eth0", local, multicast)
		opened <- result{s, err}
	}()
	r := <-opened
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.socket.Close() })
	return r.socket
}
