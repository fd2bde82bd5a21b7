package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// slack is how much of a time may be put down to the lab, if it stood still
	// meanwhile: its processors are shared, and in some guests emulated.
	slack = 300 * time.Millisecond
	// jitter is what a guest with one processor adds without standing still: alone,
	// detection takes 365 ms.
	jitter = 50 * time.Millisecond
	// detection is 3 × interval + skew at priority 100, and the promised 50 ms.
	detection = 361*time.Millisecond + 50*time.Millisecond
	graceful  = 150 * time.Millisecond
)

// TestFailover moves the role about as operators and crashes do. The preferred
// proxy takes it back after a second.
func TestFailover(t *testing.T) {
	p := newPair(t, 100*time.Millisecond)
	for _, s := range []struct {
		name string
		test func(*testing.T, *pair)
	}{
		{"stop", stopActive}, {"kill", killActive}, {"release", releaseKilled}, {"freeze", freezeActive}, {"power off", powerOffActive},
		{"interface of a VPC", unplugENI}, {"gateway of a VPC", silenceGateway}, {"standby restarts", restartStandby},
	} {
		t.Run(s.name, func(t *testing.T) { s.test(t, p) })
		if t.Failed() {
			return // the next would begin from anywhere
		}
	}
}

func stopActive(t *testing.T, p *pair) {
	active := p.agents["proxy1"]
	start := time.Now()
	if err := active.process.Stop(t.Context()); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	p.activeOn(t, 1)
	p.moved(t, start, 0, 1, soon, askEvery)
	// From when it has let go: before that, it was being told to.
	let, took := start.Add(p.lastClaim(start, 0)), start.Add(p.firstClaim(start, 1))
	t.Logf("nobody held the HaVips for %v, of which the guest stood still for %v", took.Sub(let), p.pauses.Lost(let, took))
	if !p.within(let, took, graceful) {
		t.Errorf("nobody held the HaVips for %v, want at most %v", took.Sub(let), graceful)
	}
	active.restart(t)
	p.activeOn(t, 0)
}

// killActive leaves the HaVips in the dead agent's kernel: neighbors must
// follow the new holder all the same, and the next agent must let go at once.
func killActive(t *testing.T, p *pair) {
	active := p.agents["proxy1"]
	start := time.Now()
	active.kill(t)
	eventually(t, soon, func(context.Context) error { return claimed(p.outer, start, p.outerMAC(1)) })
	p.served(t)
	p.moved(t, p.silent(t, 0, 1, start), 0, 1, detection, time.Hour)
	start = time.Now()
	active.launch(t, p.daemon)
	p.activeOn(t, 1)
	for _, period := range traffic.Holders(p.outer.Claims(start), p.down()) {
		if lasted := period.To.Sub(start); period.MAC == p.outerMAC(0) && lasted > 3*time.Second {
			t.Errorf("the new agent kept what it found for %v", lasted)
		}
	}
	p.activeOn(t, 0)
}

// releaseKilled has an operator, or systemd, take away what a killed agent holds.
func releaseKilled(t *testing.T, p *pair) {
	active := p.agents["proxy1"]
	if out, code := p.vpcproxyctl(t, active.Machine, "node", "release"); code == 0 {
		t.Errorf("released beside an agent: %s", out)
	}
	active.kill(t)
	if out := p.mustCtl(t, active.Machine, "node", "release"); !strings.Contains(out, "removed 3 HaVips") {
		t.Errorf("released: %s", out)
	}
	p.activeOn(t, 1)
	active.restart(t)
	p.activeOn(t, 0)
}

// claimed tells whether somebody has claimed an address since a moment.
func claimed(by *traffic.Asker, since time.Time, mac string) error {
	for _, c := range by.Claims(since) {
		if c.MAC == mac {
			return nil
		}
	}
	return fmt.Errorf("%s has not claimed the address", mac)
}

// freezeActive stops the process for ten seconds, as a snapshot of its machine
// would. When it wakes up it must step down before it sends anything.
func freezeActive(t *testing.T, p *pair) {
	active := p.agents["proxy1"]
	start := time.Now()
	if err := active.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func(context.Context) error { return claimed(p.outer, start, p.outerMAC(1)) })
	eventually(t, soon, func(context.Context) error { return claimed(p.inner, start, p.innerMAC(1)) })
	p.moved(t, p.silent(t, 0, 1, start), 0, 1, detection, time.Hour)
	p.served(t)
	adverts := p.watch(t, p.Proxies[0].Machine, "eth0", func(packet traffic.Packet) bool {
		header, payload, ok := packet.IPv4()
		return ok && packet.Outgoing && header.Protocol == protocolVRRP && header.Source == p.Proxies[0].Underlay && len(payload) > 2 && payload[2] != 0
	})
	for until := start.Add(10 * time.Second); time.Now().Before(until); {
		time.Sleep(time.Until(until)) // the freeze is the fault that is injected
	}
	woken := time.Now()
	if err := active.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func(context.Context) error { return p.heldBy(1) })
	if both := p.lastClaim(woken, 0); !p.within(woken, woken.Add(both), p.down()) {
		t.Errorf("both answered for %v after the frozen one woke up", both)
	}
	if !strings.Contains(active.process.Log(), "frozen or starved") {
		t.Error("the frozen agent does not say why it stepped down")
	}
	if n, packets := adverts.Count(); n > 0 && packets[0].At.Sub(woken) < time.Second {
		t.Errorf("the frozen agent sent an advert %v after it woke up", packets[0].At.Sub(woken))
	}
	p.activeOn(t, 0)
}

// lastClaim returns for how long after a moment a proxy went on to claim either
// HaVip.
func (p *pair) lastClaim(since time.Time, i int) (last time.Duration) {
	for mac, by := range map[string]*traffic.Asker{p.outerMAC(i): p.outer, p.innerMAC(i): p.inner} {
		for _, c := range by.Claims(since) {
			if c.MAC == mac {
				last = max(last, c.At.Sub(since))
			}
		}
	}
	return last
}

// firstClaim returns how long after a moment a proxy had claimed both HaVips.
func (p *pair) firstClaim(since time.Time, i int) (first time.Duration) {
	for mac, by := range map[string]*traffic.Asker{p.outerMAC(i): p.outer, p.innerMAC(i): p.inner} {
		for _, c := range by.Claims(since) {
			if c.MAC == mac {
				first = max(first, c.At.Sub(since))
				break
			}
		}
	}
	return first
}

// protocolVRRP is RFC 9568 section 5.1.1.4.
const protocolVRRP = 112

// cut unplugs all of a proxy's interfaces, or plugs them in again.
func (p *pair) cut(t *testing.T, i int, on bool) {
	t.Helper()
	state := map[bool]string{true: "down", false: "up"}[on]
	for _, m := range []*topo.Machine{p.Router, p.VPCs["red"].Machine, p.VPCs["blue"].Machine} {
		typeLines(t, m, fmt.Sprintf("ip link set %s %s", p.Proxies[i].Name, state))
	}
}

func powerOffActive(t *testing.T, p *pair) {
	start := time.Now()
	p.cut(t, 0, true)
	p.activeOn(t, 1)
	// One cable after the other: nobody answers on those that are cut.
	p.moved(t, p.silent(t, 0, 1, start), 0, 1, detection, askEvery)
	start = time.Now()
	p.cut(t, 0, false)
	p.activeOn(t, 0)
	p.neverBoth(t, start)
}

// neverBoth checks that the proxies did not both answer for long since a
// moment.
func (p *pair) neverBoth(t *testing.T, since time.Time) {
	t.Helper()
	for name, by := range map[string]*traffic.Asker{"outer": p.outer, "inner": p.inner} {
		if both := traffic.Overlap(traffic.Holders(by.Claims(since), 4*askEvery)); both > p.down() {
			t.Errorf("both proxies answered for the %s HaVip for %v", name, both)
		}
	}
}

func unplugENI(t *testing.T, p *pair) {
	vpc := p.VPCs["red"].Machine
	start := time.Now()
	typeLines(t, vpc, "ip link set proxy1 down")
	p.activeOn(t, 1)
	// The kernel may be late to say that a carrier is lost.
	p.moved(t, start, 0, 1, detection+slack, p.down())
	start = time.Now()
	typeLines(t, vpc, "ip link set proxy1 up")
	p.activeOn(t, 0)
	p.neverBoth(t, start)
}

// silenceGateway has the VPC's router answer the standby's probes only.
func silenceGateway(t *testing.T, p *pair) {
	p.edit(t, "red", strings.NewReplacer("  haVip:", fmt.Sprintf("  probe: %s\n  haVip:", topo.VPCRouter)))
	p.settle(t)
	vpc, eni := p.VPCs["red"].Machine, p.Proxies[0].ENIs["red"]
	typeLines(t, vpc, "nft add table ip cut", "nft 'add chain ip cut in { type filter hook input priority 0; }'",
		fmt.Sprintf("nft 'add rule ip cut in ip saddr %s icmp type echo-request drop'", eni.Address.Addr()))
	p.activeOn(t, 1)
	typeLines(t, vpc, "nft delete table ip cut")
	p.activeOn(t, 0)
}

// restartStandby must not be noticed by anybody.
func restartStandby(t *testing.T, p *pair) {
	load := startLoad(t, p.world)
	standby := p.agents["proxy2"]
	since := time.Now()
	if err := standby.process.Stop(t.Context()); err != nil {
		t.Errorf("the standby ended with %v", err)
	}
	standby.restart(t)
	standby.kill(t)
	standby.restart(t)
	if err := claimed(p.outer, since, p.outerMAC(1)); err == nil {
		t.Error("the standby claimed the HaVip")
	}
	load.unharmed(t)
}

// roles counts how often an agent has changed its role since it was started
// for the first time.
func (a *agent) roles() int { return strings.Count(a.process.Log(), "role changed") }

// steady does something during which no role may change and only the first
// proxy may claim.
func (p *pair) steady(t *testing.T, during func()) {
	t.Helper()
	since, before := time.Now(), p.agents["proxy1"].roles()+p.agents["proxy2"].roles()
	during()
	if after := p.agents["proxy1"].roles() + p.agents["proxy2"].roles(); after != before {
		t.Errorf("roles changed %d times:\n%s", after-before, p.agents["proxy1"].process.Log())
	}
	if err := claimed(p.outer, since, p.outerMAC(1)); err == nil {
		t.Error("the standby claimed the HaVip")
	}
	p.served(t)
}

// dropAdverts has a proxy lose what matches, as nftables writes it, until the
// returned function is called.
func (p *pair) dropAdverts(t *testing.T, i int, match string) (heal func()) {
	t.Helper()
	m := p.Proxies[i].Machine
	typeLines(t, m, "nft add table ip cut", "nft 'add chain ip cut in { type filter hook input priority -300; }'",
		fmt.Sprintf("nft 'add rule ip cut in ip protocol 112 %s drop'", match))
	return func() { typeLines(t, m, "nft delete table ip cut") }
}

// TestSplitBrain loses adverts between proxies that go on.
func TestSplitBrain(t *testing.T) {
	// A process that is not scheduled for three intervals steps down, rightly;
	// in a guest that shares its processors these are longer.
	p := newPair(t, 300*time.Millisecond)

	t.Run("both ways", func(t *testing.T) {
		start := time.Now()
		heal := []func(){p.dropAdverts(t, 0, ""), p.dropAdverts(t, 1, "")}
		eventually(t, soon, func(context.Context) error { return claimed(p.outer, start, p.outerMAC(1)) })
		eventually(t, soon, func(context.Context) error { return claimed(p.inner, start, p.innerMAC(1)) })
		heal[0]()
		heal[1]()
		healed := time.Now()
		eventually(t, soon, func(context.Context) error { return p.heldBy(0) })
		if both := p.lastClaim(healed, 1); !p.within(healed, healed.Add(both), p.down()) {
			t.Errorf("both answered for %v after the split had healed", both)
		}
		eventually(t, soon, func(context.Context) error { return announced(p.outer, healed, p.outerMAC(0)) })
		eventually(t, soon, func(context.Context) error { return announced(p.inner, healed, p.innerMAC(0)) })
		p.served(t)
	})

	t.Run("one way", func(t *testing.T) {
		heal := p.dropAdverts(t, 1, "")
		start := time.Now()
		eventually(t, soon, func(context.Context) error { return p.heldBy(1) }) // which does not hear the other; the other hears it
		if now := time.Now(); !p.within(start, now, 2*p.down()) {
			t.Errorf("there was one active only after %v", now.Sub(start))
		}
		p.neverBoth(t, start)
		p.served(t)
		heal()
		p.steadyOn(t, 1, time.Second)
		if err := p.agents["proxy2"].process.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		p.activeOn(t, 0)
		p.agents["proxy2"].restart(t)
	})

	t.Run("a third is lost for a minute", func(t *testing.T) {
		const share = "numgen random mod 100 < 30"
		heal := []func(){p.dropAdverts(t, 0, share), p.dropAdverts(t, 1, share)}
		p.steady(t, func() { time.Sleep(time.Minute) }) // the fault lasts so long
		heal[0]()
		heal[1]()
	})

	t.Run("equal priorities", func(t *testing.T) {
		p.edit(t, "g1", strings.NewReplacer("priority: 200", "priority: 100"))
		p.settle(t)
		since := time.Now()
		heal := []func(){p.dropAdverts(t, 0, ""), p.dropAdverts(t, 1, "")}
		eventually(t, soon, func(context.Context) error { return claimed(p.outer, since, p.outerMAC(1)) })
		heal[0]()
		heal[1]()
		healed := time.Now()
		p.activeOn(t, 1) // whose address is the higher one
		p.neverBoth(t, healed)
		p.edit(t, "g1", strings.NewReplacer("{node: proxy1, priority: 100}", "{node: proxy1, priority: 200}"))
		p.activeOn(t, 0)
	})

	t.Run("ten reloads in a second", func(t *testing.T) {
		p.steady(t, func() {
			for i := range 10 {
				p.group(t, fmt.Sprintf("sends: %d", 4+i%2), "minTTL: 254")
				time.Sleep(100 * time.Millisecond) // so often is the fault
			}
			p.settle(t)
		})
	})
}

// TestMulticastPair elects by multicast, as on a link without a cloud around it.
func TestMulticastPair(t *testing.T) {
	p := &pair{world: newWorld(t, pairLayout), interval: 300 * time.Millisecond, spec: []string{"transport: multicast"}}
	p.begin(t)
	group := netip.MustParseAddr("224.0.0.18")
	adverts := p.watch(t, p.Proxies[1].Machine, "eth0", func(packet traffic.Packet) bool {
		header, _, ok := packet.IPv4()
		return ok && !packet.Outgoing && header.Protocol == protocolVRRP && header.Destination == group
	})
	start := time.Now()
	if err := p.agents["proxy1"].process.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	p.activeOn(t, 1)
	p.neverBoth(t, start)
	if n, _ := adverts.Count(); n == 0 {
		t.Error("the standby received no advert by multicast")
	}
}

// announced tells whether somebody has claimed an address unasked.
func announced(by *traffic.Asker, since time.Time, mac string) error {
	for _, c := range by.Claims(since) {
		if c.MAC == mac && c.Gratuitous {
			return nil
		}
	}
	return errors.New("nobody has announced the address")
}

// steadyOn checks that nobody but a proxy claims the HaVips for a while.
func (p *pair) steadyOn(t *testing.T, i int, d time.Duration) {
	t.Helper()
	since := time.Now()
	eventually(t, soon, func(context.Context) error {
		if time.Since(since) < d {
			return errors.New("the time is not over")
		}
		return p.heldBy(i)
	})
	for _, c := range p.outer.Claims(since) {
		if c.MAC != p.outerMAC(i) {
			t.Errorf("%s claimed the HaVip", c.MAC)
			return
		}
	}
}
