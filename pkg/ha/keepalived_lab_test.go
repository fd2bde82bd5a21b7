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

const (
	virtual   = "192.0.2.100"
	oursAt    = "192.0.2.1"
	theirsAt  = "192.0.2.2"
	labAdvert = 200 * time.Millisecond
)

// TestKeepalivedPeer pairs an instance with keepalived 2.2.7 in both roles.
//
// That version sends and accepts, over IPv4, the checksum with the pseudo-header
// only: v3_checksum_as_v2 came later. So it hears us in that form alone, while we
// hear it whatever we send.
func TestKeepalivedPeer(t *testing.T) {
	lab.Require(t, lab.Program("keepalived"))
	t.Run("ours is active", func(t *testing.T) {
		p := newPair(t, vrrp.RFC5798)
		theirs := p.keepalived(100)
		p.await("keepalived holds the address alone", p.theirsHolds)
		ours := p.start(200)
		p.await("ours preempts", func() bool { return ours.Status().State == ha.Active && p.oursHolds() && !p.theirsHolds() })
		p.formSeen(ours)

		began := time.Now()
		ours.stop()
		p.await("keepalived takes over after our farewell", func() bool { return p.theirsHolds() && !p.oursHolds() })
		t.Logf("keepalived took over %v after our farewell", time.Since(began))

		again := p.start(200)
		p.await("ours is back", func() bool { return again.Status().State == ha.Active && !p.theirsHolds() })
		p.quiet(again, ha.Active)
		theirs()
	})
	for _, form := range []vrrp.Form{vrrp.RFC5798, vrrp.RFC9568} {
		t.Run("theirs is active, ours sends "+form.String(), func(t *testing.T) {
			p := newPair(t, form)
			ours := p.start(100)
			p.await("ours is active alone", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
			theirs := p.keepalived(200)
			p.await("keepalived preempts", func() bool { return ours.Status().State == ha.Backup && p.theirsHolds() && !p.oursHolds() })
			p.quiet(ours, ha.Backup)
			p.formSeen(ours)

			began := time.Now()
			theirs()
			p.await("ours takes over after keepalived's farewell", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
			t.Logf("ours took over %v after keepalived was told to stop", time.Since(began))
			ours.stop()
			if p.oursHolds() {
				t.Error("the address is still there after the end")
			}
		})
	}
	// The trap: keepalived does not hear the other form and is active, too. The
	// counter of forms is what tells an operator.
	t.Run("ours is active, in a form that theirs does not know", func(t *testing.T) {
		p := newPair(t, vrrp.RFC9568)
		ours := p.start(200)
		p.await("ours is active alone", func() bool { return ours.Status().State == ha.Active && p.oursHolds() })
		p.keepalived(100)
		p.await("keepalived is active, too", func() bool { return p.theirsHolds() && p.oursHolds() })
		p.formSeen(ours)
	})
}

// pair is two namespaces with a link between them.
type pair struct {
	t            *testing.T
	form         vrrp.Form
	ours, theirs string
}

func newPair(t *testing.T, form vrrp.Form) *pair {
	p := &pair{t: t, form: form, ours: "vrrp-ours", theirs: "vrrp-theirs"}
	t.Cleanup(func() {
		// t.Context has ended by now. Either may be missing after a failure.
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", p.ours).Run()
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", p.theirs).Run()
	})
	for _, c := range []string{
		"netns add " + p.ours, "netns add " + p.theirs,
		"-n " + p.ours + " link add eth0 type veth peer name eth0 netns " + p.theirs,
		"-n " + p.ours + " addr add " + oursAt + "/24 dev eth0", "-n " + p.theirs + " addr add " + theirsAt + "/24 dev eth0",
		"-n " + p.ours + " link set eth0 up", "-n " + p.theirs + " link set eth0 up",
	} {
		p.ip(c)
	}
	return p
}

func (p *pair) ip(args string) string {
	p.t.Helper()
	out, err := exec.CommandContext(p.t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

func (p *pair) holds(netns string) bool {
	return strings.Contains(p.ip("-n "+netns+" -o addr show dev eth0"), " "+virtual+"/")
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

// formSeen checks that keepalived's adverts carried the pseudo-header form.
func (p *pair) formSeen(n *labNode) {
	p.t.Helper()
	s := n.Stats()
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
	socket := openIn(p.t, p.ours, oursAt)
	n, err := ha.NewNode(ha.NodeConfig{
		Instance: ha.Config{
			Name: "lab", VRID: 51, Priority: priority, Interval: labAdvert,
			Addresses: []netip.Addr{netip.MustParseAddr(virtual)}, Local: netip.MustParseAddr(oursAt),
			Peers: []ha.Peer{{Addr: netip.MustParseAddr(theirsAt)}},
		},
		Checksum: p.form, Transport: socket, Mover: ipMover{p.ours},
	})
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

// ipMover holds the address as an operator would.
type ipMover struct{ netns string }

func (m ipMover) Activate(ctx context.Context) error {
	return m.run(ctx, "replace")
}

func (m ipMover) Deactivate(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "ip", "-n", m.netns, "-o", "addr", "show", "dev", "eth0").Output()
	if err != nil || !bytes.Contains(out, []byte(" "+virtual+"/")) {
		return err
	}
	return m.run(ctx, "del")
}

func (ipMover) Announce(context.Context) error { return nil }

func (m ipMover) run(ctx context.Context, verb string) error {
	return exec.CommandContext(ctx, "ip", "-n", m.netns, "addr", verb, virtual+"/32", "dev", "eth0").Run()
}

// keepalived starts it; the function that it returns ends it with SIGTERM.
func (p *pair) keepalived(priority int) func() {
	p.t.Helper()
	dir := lab.Artifacts(p.t)
	conf := filepath.Join(dir, "keepalived.conf")
	text := fmt.Sprintf(`vrrp_instance lab {
    version 3
    state BACKUP
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int %.1f
    unicast_src_ip %s
    unicast_peer {
        %s
    }
    virtual_ipaddress {
        %s/32
    }
}
`, priority, labAdvert.Seconds(), theirsAt, oursAt, virtual)
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
