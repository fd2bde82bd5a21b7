package ha_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

const labAdvert = 200 * time.Millisecond

// plan says how a pair's ends are addressed.
type plan struct {
	ours, theirs netip.Addr
	virtual      []netip.Addr
	multicast    bool
	minTTL       uint8 // of keepalived's adverts; 0 is 255
}

func addresses(ours, theirs string, virtual ...string) plan {
	p := plan{ours: netip.MustParseAddr(ours), theirs: netip.MustParseAddr(theirs)}
	for _, v := range virtual {
		p.virtual = append(p.virtual, netip.MustParseAddr(v))
	}
	return p
}

func (p plan) byMulticast() plan {
	p.multicast = true
	return p
}

func (p plan) withTTL(ttl uint8) plan {
	p.minTTL = ttl
	return p
}

var overIPv4 = addresses("192.0.2.1", "192.0.2.2", "192.0.2.100")

// TestKeepalivedPeer pairs an instance with keepalived 2.2.7 in both roles.
//
// That version sends and accepts, over IPv4, the checksum with the pseudo-header
// only: v3_checksum_as_v2 came later. So it hears us in that form alone, while we
// hear it whatever we send.
func TestKeepalivedPeer(t *testing.T) {
	lab.Require(t, lab.Program("keepalived"))
	t.Run("ours is active", func(t *testing.T) {
		p := newPair(t, vrrp.RFC5798, overIPv4)
		oursIsActive(p)
	})
	for _, form := range []vrrp.Form{vrrp.RFC5798, vrrp.RFC9568} {
		t.Run("theirs is active, ours sends "+form.String(), func(t *testing.T) {
			p := newPair(t, form, overIPv4)
			theirsIsActive(p)
		})
	}
	// The trap: keepalived does not hear the other form and is active, too. The
	// counter of forms is what tells an operator.
	t.Run("ours is active, in a form that theirs does not know", func(t *testing.T) {
		p := newPair(t, vrrp.RFC9568, overIPv4)
		ours := p.start(200)
		p.await("ours is active alone", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
		p.keepalived(100)
		p.await("keepalived is active, too", func() bool { return p.theirsHolds() && p.oursHolds() })
		p.formSeen(ours)
	})
}

// TestKeepalivedPeerOverIPv6 does the same over IPv6, where there is one form of the
// checksum: between routed addresses, and by multicast between link-local ones.
// That version leaves the hop limit of unicast adverts to the kernel, which takes 64.
func TestKeepalivedPeerOverIPv6(t *testing.T) {
	lab.Require(t, lab.Program("keepalived"))
	for name, addressed := range map[string]plan{
		"unicast":   addresses("2001:db8::1", "2001:db8::2", "2001:db8::100").withTTL(64),
		"multicast": addresses("fe80::1", "fe80::2", "fe80::100", "2001:db8::100").byMulticast(),
	} {
		t.Run(name+", ours is active", func(t *testing.T) { oursIsActive(newPair(t, vrrp.RFC9568, addressed)) })
		t.Run(name+", theirs is active", func(t *testing.T) { theirsIsActive(newPair(t, vrrp.RFC9568, addressed)) })
	}
}

// oursIsActive has ours take over from keepalived, leave, and take over again.
func oursIsActive(p *pair) {
	theirs := p.keepalived(100)
	p.await("keepalived holds the address alone", p.theirsHolds)
	ours := p.start(200)
	p.await("ours preempts", func() bool { return ours.Status().State == ha.Active && p.oursHolds() && !p.theirsHolds() })
	p.formSeen(ours)

	began := time.Now()
	ours.stop()
	p.await("keepalived takes over after our farewell", func() bool { return p.theirsHolds() && !p.oursHolds() })
	p.t.Logf("keepalived took over %v after our farewell", time.Since(began))

	again := p.start(200)
	p.await("ours is back", func() bool { return again.Status().State == ha.Active && !p.theirsHolds() })
	p.quiet(again, ha.Active)
	theirs()
}

// theirsIsActive has keepalived take over from ours, and leave.
func theirsIsActive(p *pair) {
	ours := p.start(100)
	p.await("ours is active alone", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
	theirs := p.keepalived(200)
	p.await("keepalived preempts", func() bool { return ours.Status().State == ha.Backup && p.theirsHolds() && !p.oursHolds() })
	p.formSeen(ours)
	p.quiet(ours, ha.Backup)

	began := time.Now()
	theirs()
	p.await("ours takes over after keepalived's farewell", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
	p.t.Logf("ours took over %v after keepalived was told to stop", time.Since(began))
	ours.stop()
	if p.oursHolds() {
		p.t.Error("the address is still there after the end")
	}
}

// pair is two namespaces with a link between them.
type pair struct {
	t            *testing.T
	form         vrrp.Form
	plan         plan
	ours, theirs string // namespaces
}

func newPair(t *testing.T, form vrrp.Form, addressed plan) *pair {
	p := &pair{t: t, form: form, plan: addressed, ours: "vrrp-ours", theirs: "vrrp-theirs"}
	t.Cleanup(func() {
		// t.Context has ended by now. Either may be missing after a failure.
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", p.ours).Run()
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", p.theirs).Run()
	})
	for _, c := range []string{
		"netns add " + p.ours, "netns add " + p.theirs,
		"-n " + p.ours + " link add eth0 type veth peer name eth0 netns " + p.theirs,
		// No link-local addresses but those of the plan.
		"-n " + p.ours + " link set eth0 up addrgenmode none", "-n " + p.theirs + " link set eth0 up addrgenmode none",
		"-n " + p.ours + " addr add " + onLink(addressed.ours), "-n " + p.theirs + " addr add " + onLink(addressed.theirs),
	} {
		p.ip(c)
	}
	return p
}

// onLink is an address as ip(8) takes it, with its subnet.
func onLink(a netip.Addr) string {
	if a.Is4() {
		return a.String() + "/24 dev eth0"
	}
	return a.String() + "/64 dev eth0 nodad"
}

func (p *pair) ip(args string) string {
	p.t.Helper()
	out, err := exec.CommandContext(p.t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// holds tells whether a namespace has all of the virtual addresses.
func (p *pair) holds(netns string) bool {
	shown := p.ip("-n " + netns + " -o addr show dev eth0")
	for _, v := range p.plan.virtual {
		if !strings.Contains(shown, " "+v.String()+"/") {
			return false
		}
	}
	return true
}

func (p *pair) oursHolds() bool   { return p.holds(p.ours) }
func (p *pair) theirsHolds() bool { return p.holds(p.theirs) }

func (p *pair) await(what string, ok func() bool) {
	p.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			p.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// quiet checks that a role lasts for a second.
func (p *pair) quiet(n *labNode, want ha.State) {
	p.t.Helper()
	before := n.Stats().Transitions
	received := n.Stats().Received
	p.await("ten adverts, sent or received", func() bool {
		s := n.Stats()
		return s.Received >= received+10 || want == ha.Active && s.Sent >= 10
	})
	if s := n.Stats(); s.Transitions != before || n.Status().State != want {
		p.t.Errorf("%v after %d changes, want %v without any", n.Status().State, s.Transitions-before, want)
	}
}

// formSeen checks that keepalived's adverts were all taken, and over IPv4 carried the
// pseudo-header form.
func (p *pair) formSeen(n *labNode) {
	p.t.Helper()
	s := n.Stats()
	if p.plan.ours.Is6() {
		for reason, n := range s.Discarded {
			if n > 0 {
				p.t.Errorf("%d adverts discarded: %s", n, reason)
			}
		}
		if s.Received == 0 {
			p.t.Error("no adverts received")
		}
		return
	}
	if seen := s.Checksums[vrrp.RFC5798.String()]; seen == 0 || seen != s.Received || s.Discarded["checksum"] > 0 {
		p.t.Errorf("received %d, by form %v, discarded %v", s.Received, s.Checksums, s.Discarded)
	}
}

type labNode struct {
	*ha.Node
	stop func()
}

func (p *pair) start(priority uint8) *labNode {
	p.t.Helper()
	instance := ha.Config{
		Name: "lab", VRID: 51, Priority: priority, Interval: labAdvert, Addresses: p.plan.virtual, Local: p.plan.ours,
	}
	if !p.plan.multicast {
		instance.Peers = []ha.Peer{{Addr: p.plan.theirs, MinTTL: p.plan.minTTL}}
	}
	socket := openIn(p.t, p.ours, p.plan.ours, p.plan.multicast)
	n, err := ha.NewNode(ha.NodeConfig{Instance: instance, Checksum: p.form, Transport: socket, Mover: ipMover{p.ours, p.plan.virtual}})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	node := &labNode{Node: n}
	stopped := false
	node.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(node.stop)
	return node
}

// ipMover holds the addresses as an operator would.
type ipMover struct {
	netns   string
	virtual []netip.Addr
}

func (m ipMover) Activate(ctx context.Context) error {
	for _, v := range m.virtual {
		if err := m.run(ctx, "replace", v, "nodad"); err != nil {
			return err
		}
	}
	return nil
}

func (m ipMover) Deactivate(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "ip", "-n", m.netns, "-o", "addr", "show", "dev", "eth0").Output()
	for _, v := range m.virtual {
		if err == nil && bytes.Contains(out, []byte(" "+v.String()+"/")) {
			err = m.run(ctx, "del", v)
		}
	}
	return err
}

func (ipMover) Announce(context.Context) error { return nil }

func (m ipMover) run(ctx context.Context, verb string, a netip.Addr, options ...string) error {
	args := []string{"-n", m.netns, "addr", verb, netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0"}
	if a.Is6() {
		args = append(args, options...)
	}
	return exec.CommandContext(ctx, "ip", args...).Run()
}

// keepalived starts it; the function that it returns ends it with SIGTERM.
func (p *pair) keepalived(priority int) func() {
	p.t.Helper()
	dir := lab.Artifacts(p.t)
	conf := filepath.Join(dir, "keepalived.conf")
	unicast := fmt.Sprintf("unicast_src_ip %s\n    unicast_peer {\n        %s\n    }", p.plan.theirs, p.plan.ours)
	if p.plan.multicast {
		unicast = ""
	}
	var virtual []string
	for _, v := range p.plan.virtual {
		virtual = append(virtual, netip.PrefixFrom(v, v.BitLen()).String())
	}
	text := fmt.Sprintf(`vrrp_instance lab {
    version 3
    state BACKUP
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int %.1f
    %s
    virtual_ipaddress {
        %s
    }
}
`, priority, labAdvert.Seconds(), unicast, strings.Join(virtual, "\n        "))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), "ip", "netns", "exec", p.theirs, "keepalived", "--dont-fork", "--vrrp", "--log-console",
		"--use-file", conf, "--pid", filepath.Join(dir, "keepalived.pid"), "--vrrp_pid", filepath.Join(dir, "vrrp.pid"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already, which Wait tells
		if err := cmd.Wait(); err != nil {
			p.t.Logf("keepalived: %v", err)
		}
		if p.t.Failed() {
			p.t.Logf("keepalived said:\n%s", &log)
		}
	}
	p.t.Cleanup(stop)
	return stop
}
