package ha

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// holds and refuses name the rule of docs/rfc9568.md that the test shows to be
// kept, and the one it shows to be enforced against its violation.
// TestEveryRuleIsTested reads these calls.
func holds(*testing.T, string)   {}
func refuses(*testing.T, string) {}

const ms = time.Millisecond

var (
	lower  = netip.MustParseAddr("192.0.2.9")
	higher = netip.MustParseAddr("192.0.2.11")
)

func machine(t *testing.T, change func(*Config)) *Machine {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	m, err := NewMachine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// active returns a machine that became active at 361 ms.
func active(t *testing.T, change func(*Config)) *Machine {
	t.Helper()
	m := machine(t, change)
	m.Step(0, Startup{})
	m.Step(361*ms, Tick{})
	if m.state != Active {
		t.Fatalf("state %v", m.state)
	}
	return m
}

func backup(t *testing.T, change func(*Config)) *Machine {
	t.Helper()
	m := machine(t, change)
	m.Step(0, Startup{})
	if m.state != Backup {
		t.Fatalf("state %v", m.state)
	}
	return m
}

func advert(from netip.Addr, priority uint8) Advert {
	return Advert{From: from, Priority: priority, Interval: 100 * ms, Addresses: testConfig().Addresses}
}

func kinds(actions []Action) string {
	var s []string
	for _, a := range actions {
		if send, ok := a.(Send); ok {
			s = append(s, fmt.Sprintf("Send(%d)", send.Priority))
			continue
		}
		s = append(s, reflect.TypeOf(a).Name())
	}
	return strings.Join(s, " ")
}

func expect(t *testing.T, m *Machine, actions []Action, want string, state State, deadline time.Duration) {
	t.Helper()
	if got := kinds(actions); got != want {
		t.Errorf("actions %q, want %q", got, want)
	}
	if m.state != state {
		t.Errorf("state %v, want %v", m.state, state)
	}
	if at, ok := m.Deadline(); ok != (deadline != 0) || ok && at != deadline {
		t.Errorf("deadline %v %v, want %v", at, ok, deadline)
	}
}

func TestTimers(t *testing.T) {
	holds(t, "RFC9568-6.1-1")
	refuses(t, "RFC9568-6.1-1")
	for _, c := range []struct {
		priority   uint8
		interval   time.Duration
		skew, down time.Duration
	}{
		{100, 100 * ms, 60937500, 360937500},
		{254, 100 * ms, 781250, 300781250},
		{255, time.Second, 3906250, 3003906250},
		{1, time.Second, 996093750, 3996093750},
		{100, 30 * ms, 18281250, 108281250},
	} {
		if got := Skew(c.priority, c.interval); got != c.skew {
			t.Errorf("priority %d, interval %v: skew %v, want %v", c.priority, c.interval, got, c.skew)
		}
		cfg := Config{}
		if got := cfg.down(c.priority, c.interval); got != c.down {
			t.Errorf("priority %d, interval %v: down interval %v, want %v", c.priority, c.interval, got, c.down)
		}
	}
	m := backup(t, func(c *Config) { c.Interval = time.Second }) // its own interval is not the active's
	a := advert(lower, 200)
	m.Step(ms, a)
	expect(t, m, nil, "", Backup, ms+360937500)
}

func TestPriorityRange(t *testing.T) {
	holds(t, "RFC9568-5.2.4-1")
	refuses(t, "RFC9568-5.2.4-1")
	for priority, ok := range map[uint8]bool{0: false, 1: true, 254: true, 255: true} {
		cfg := testConfig()
		cfg.Priority = priority
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("priority %d: %v", priority, err)
		}
	}
}

func TestStartup(t *testing.T) {
	holds(t, "RFC9568-6.4.1-1")
	owner := machine(t, func(c *Config) { c.Priority = 255 })
	expect(t, owner, owner.Step(0, Startup{}), "Deactivate Send(255) Activate Change", Active, 100*ms)
	refuses(t, "RFC9568-6.4.1-1")
	other := machine(t, func(c *Config) { c.Priority = 254 })
	expect(t, other, other.Step(0, Startup{}), "Deactivate Change", Backup, 300781250)
}

func TestBackupClaimsNothing(t *testing.T) {
	holds(t, "RFC9568-6.4.2-1")
	m := active(t, nil)
	if got := m.Step(400*ms, advert(higher, 200)); !slices.Contains(got, Action(Deactivate{})) {
		t.Errorf("became backup with %q", kinds(got))
	}
	refuses(t, "RFC9568-6.4.2-1")
	for at, e := range map[time.Duration]Event{401 * ms: advert(higher, 200), 402 * ms: advert(lower, 1), 403 * ms: Tick{}} {
		for _, a := range m.Step(at, e) {
			switch a.(type) {
			case Activate, Announce, Send:
				t.Errorf("a backup does %T after %#v", a, e)
			}
		}
	}
}

func TestShutdownInBackup(t *testing.T) {
	holds(t, "RFC9568-6.4.2-6")
	refuses(t, "RFC9568-6.4.2-6")
	m := backup(t, nil)
	expect(t, m, m.Step(ms, Shutdown{}), "Change", Initialize, 0) // no Send
	expect(t, m, m.Step(time.Second, Tick{}), "", Initialize, 0)
}

func TestDownTimerFires(t *testing.T) {
	m := backup(t, nil)
	refuses(t, "RFC9568-6.4.2-7")
	expect(t, m, m.Step(360937499, Tick{}), "", Backup, 360937500)
	holds(t, "RFC9568-6.4.2-7")
	expect(t, m, m.Step(360937500, Tick{}), "Send(100) Activate Change", Active, 460937500)
}

func TestBackupHearsPriorityZero(t *testing.T) {
	holds(t, "RFC9568-6.4.2-8")
	m := backup(t, nil)
	m.Step(100*ms, advert(lower, 200))
	expect(t, m, m.Step(200*ms, advert(lower, 0)), "", Backup, 260937500)
	refuses(t, "RFC9568-6.4.2-8")
	m.Step(210*ms, advert(lower, 200)) // another is there: the full interval again
	expect(t, m, nil, "", Backup, 210*ms+360937500)
}

func TestBackupObeys(t *testing.T) {
	slow := Advert{From: lower, Priority: 100, Interval: time.Second, Addresses: testConfig().Addresses}
	holds(t, "RFC9568-6.4.2-9")
	m := backup(t, nil)
	expect(t, m, m.Step(10*ms, slow), "Note", Backup, 10*ms+3609375*time.Microsecond) // equal priority
	slow.Priority = 1
	m = backup(t, func(c *Config) { c.NoPreempt = true })
	expect(t, m, m.Step(10*ms, slow), "Note", Backup, 10*ms+3609375*time.Microsecond)
	refuses(t, "RFC9568-6.4.2-9")
	slow.Priority = 99
	m = backup(t, nil)
	expect(t, m, m.Step(10*ms, slow), "Note", Backup, 360937500)
}

func TestBackupPreempts(t *testing.T) {
	holds(t, "RFC9568-6.4.2-10")
	m := backup(t, nil)
	for at := 50 * ms; at <= 350*ms; at += 50 * ms {
		expect(t, m, m.Step(at, advert(lower, 99)), "", Backup, 360937500)
	}
	refuses(t, "RFC9568-6.4.2-10")
	m.Step(351*ms, advert(lower, 101))
	expect(t, m, nil, "", Backup, 351*ms+360937500)
	// An owner preempts whatever its configuration says.
	owner := machine(t, func(c *Config) { c.Priority, c.NoPreempt = 255, true })
	owner.Step(0, Startup{})
	owner.Step(10*ms, advert(higher, 255))
	before, _ := owner.Deadline()
	owner.Step(20*ms, advert(lower, 254))
	if after, _ := owner.Deadline(); owner.state != Backup || before != after {
		t.Errorf("%v, deadline %v after a lower advert, %v before", owner.state, after, before)
	}
}

func TestShutdownInActive(t *testing.T) {
	holds(t, "RFC9568-6.4.3-8")
	m := active(t, nil)
	expect(t, m, m.Step(400*ms, Shutdown{}), "Deactivate Send(0) Change", Initialize, 0)
	refuses(t, "RFC9568-6.4.3-8")
	expect(t, m, m.Step(401*ms, Shutdown{}), "", Initialize, 0)
}

func TestAdverTimer(t *testing.T) {
	m := active(t, nil)
	refuses(t, "RFC9568-6.4.3-9")
	expect(t, m, m.Step(460*ms, Tick{}), "", Active, 461*ms)
	holds(t, "RFC9568-6.4.3-9")
	expect(t, m, m.Step(461*ms, Tick{}), "Send(100)", Active, 561*ms)
}

func TestActiveHearsPriorityZero(t *testing.T) {
	holds(t, "RFC9568-6.4.3-10")
	m := active(t, nil)
	expect(t, m, m.Step(400*ms, advert(higher, 0)), "Send(100) Announce", Active, 500*ms)
	refuses(t, "RFC9568-6.4.3-10")
	f := machine(t, func(c *Config) { c.Tracks = []Track{{Name: "eni"}} })
	f.Step(0, Startup{})
	expect(t, f, f.Step(ms, advert(higher, 0)), "", Fault, 0)
}

func TestActiveGivesWay(t *testing.T) {
	six := func(local string) func(*Config) {
		return func(c *Config) {
			c.Local, c.Addresses = netip.MustParseAddr(local), []netip.Addr{netip.MustParseAddr("fe80::100")}
		}
	}
	for _, c := range []struct {
		name   string
		config func(*Config)
		from   netip.Addr
		prio   uint8
		gives  bool
	}{
		{"higher priority", nil, lower, 101, true},
		{"equal, address greater in its last byte, less as text", func(c *Config) { c.Local = netip.MustParseAddr("192.0.2.9") }, netip.MustParseAddr("192.0.2.10"), 100, true},
		{"equal, greater with the high bit set", func(c *Config) { c.Local = netip.MustParseAddr("10.0.0.1") }, netip.MustParseAddr("200.0.0.1"), 100, true},
		{"equal, greater IPv6", six("fe80::9"), netip.MustParseAddr("fe80::10"), 100, true},
		{"equal, address less", nil, lower, 100, false},
		{"equal, less IPv6", six("fe80::10"), netip.MustParseAddr("fe80::9"), 100, false},
		{"lower priority, address greater", nil, higher, 99, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := active(t, c.config)
			a := advert(c.from, c.prio)
			a.Addresses = m.cfg.Addresses
			a.Interval = 200 * ms
			got := m.Step(400*ms, a)
			if c.gives {
				holds(t, "RFC9568-6.4.3-11")
				expect(t, m, got, "Note Deactivate Send(100) Change", Backup, 400*ms+721875*time.Microsecond)
				if send := got[2].(Send); send.To != c.from {
					t.Errorf("the parting advert goes to %v", send.To)
				}
			} else {
				refuses(t, "RFC9568-6.4.3-11")
				expect(t, m, got, "Note Send(100) Announce", Active, 500*ms)
			}
		})
	}
}

func TestActiveReasserts(t *testing.T) {
	holds(t, "RFC9568-6.4.3-12")
	m := active(t, nil)
	expect(t, m, m.Step(400*ms, advert(higher, 99)), "Send(100) Announce", Active, 500*ms)
	expect(t, m, m.Step(410*ms, advert(higher, 99)), "Send(100)", Active, 510*ms)
	expect(t, m, m.Step(510*ms, Tick{}), "Announce Send(100)", Active, 610*ms)
	refuses(t, "RFC9568-6.4.3-12")
	b := backup(t, nil)
	expect(t, b, b.Step(ms, advert(lower, 99)), "", Backup, 360937500)
}

func TestTwoOwnersAreLoggedOnceAMinute(t *testing.T) {
	holds(t, "RFC9568-8.3.2-1")
	refuses(t, "RFC9568-8.3.2-1")
	m := machine(t, func(c *Config) { c.Priority = 255 })
	m.Step(0, Startup{})
	notes := 0
	for at := 50 * ms; at < 61*time.Second; at += 50 * ms {
		if strings.Contains(kinds(m.Step(at, advert(lower, 255))), "Note") {
			notes++
		}
	}
	if notes != 2 {
		t.Errorf("%d notes in 61 s, want 2", notes)
	}
	m = machine(t, func(c *Config) { c.Priority = 255 })
	m.Step(0, Startup{})
	if got := kinds(m.Step(ms, advert(lower, 254))); strings.Contains(got, "Note") {
		t.Errorf("one owner: %q", got)
	}
}

func TestMismatchIsReportedNotDropped(t *testing.T) {
	for _, c := range []struct {
		rule   string
		change func(*Advert)
	}{
		{"RFC9568-7.1-8", func(a *Advert) { a.Interval = 200 * ms }},
		{"RFC9568-7.1-9", func(a *Advert) { a.Addresses = []netip.Addr{higher} }},
	} {
		m, a := backup(t, nil), advert(lower, 200)
		c.change(&a)
		if got := kinds(m.Step(ms, a)); got != "Note" || m.activeAddr != lower {
			t.Errorf("%s: %q, active %v", c.rule, got, m.activeAddr)
		}
		if got := kinds(m.Step(2*ms, a)); got != "" {
			t.Errorf("%s: reported again: %q", c.rule, got)
		}
		m = backup(t, nil)
		if got := kinds(m.Step(ms, advert(lower, 200))); got != "" {
			t.Errorf("%s: nothing differs: %q", c.rule, got)
		}
	}
	holds(t, "RFC9568-7.1-8")
	refuses(t, "RFC9568-7.1-8")
	holds(t, "RFC9568-7.1-9")
	refuses(t, "RFC9568-7.1-9")
}

func TestFrozenActiveStepsDownBeforeItSends(t *testing.T) {
	holds(t, "RFC9568-2.5-1")
	for _, e := range []Event{Tick{}, advert(lower, 50), advert(higher, 0), Report{"x", true}} {
		m := active(t, nil)
		got := m.Step(361*ms+300*ms, e)
		if k := kinds(got); k != "Deactivate Change" || m.state != Backup {
			t.Errorf("after %#v: %q, %v", e, k, m.state)
		}
		if change := got[1].(Change); !strings.Contains(change.Why, "frozen") {
			t.Errorf("why: %q", change.Why)
		}
	}
	refuses(t, "RFC9568-2.5-1")
	m := active(t, nil)
	expect(t, m, m.Step(361*ms+299*ms, Tick{}), "Send(100)", Active, 760*ms)
}

func TestTimeNeverStepsBack(t *testing.T) {
	m := active(t, nil)
	expect(t, m, m.Step(0, Tick{}), "", Active, 461*ms)
}

func TestReceive(t *testing.T) {
	peer := Peer{Addr: higher}
	far := Peer{Addr: netip.MustParseAddr("198.51.100.1"), MinTTL: 250, MaxTTL: 253}
	unicast := testConfig()
	unicast.Peers = []Peer{peer, far}
	multicast := testConfig()
	local, group := multicast.Local, vrrp.GroupIPv4
	message := func(src, dst netip.Addr, vrid uint8) Datagram {
		a := vrrp.Advertisement{VRID: vrid, Priority: 7, Interval: 100 * ms, Addresses: multicast.Addresses}
		b, err := a.Append(nil, src, dst, vrrp.RFC9568, nil)
		if err != nil {
			t.Fatal(err)
		}
		return Datagram{Src: src, Dst: dst, TTL: 255, Payload: b}
	}
	ttl := func(d Datagram, ttl int) Datagram { d.TTL = ttl; return d }
	for _, c := range []struct {
		name string
		cfg  Config
		d    Datagram
		want error
	}{
		{"multicast", multicast, message(higher, group, 51), nil},
		{"multicast, TTL 254", multicast, ttl(message(higher, group, 51), 254), vrrp.TTL},
		{"multicast, other VRID", multicast, message(higher, group, 52), vrrp.VRID},
		{"unicast without peers, multicast", Config{VRID: 51, Local: local, Unicast: true}, message(higher, group, 51), vrrp.Multicast},
		{"unicast without peers", Config{VRID: 51, Local: local, Unicast: true}, message(higher, local, 51), vrrp.UnknownPeer},
		{"multicast, to us alone", multicast, message(higher, local, 51), vrrp.Unicast},
		{"multicast, from ourselves", multicast, message(local, group, 51), vrrp.OwnAddress},
		{"unicast", unicast, message(higher, local, 51), nil},
		{"unicast, TTL 254 on the link", unicast, ttl(message(higher, local, 51), 254), vrrp.TTL},
		{"unicast, routed peer", unicast, ttl(message(far.Addr, local, 51), 250), nil},
		{"unicast, routed peer from too far", unicast, ttl(message(far.Addr, local, 51), 249), vrrp.TTL},
		{"unicast, routed peer from too near", unicast, ttl(message(far.Addr, local, 51), 255), vrrp.TTL},
		{"unicast, stranger", unicast, message(lower, local, 51), vrrp.UnknownPeer},
		{"unicast, to the group", unicast, message(higher, group, 51), vrrp.Multicast},
		{"unicast, cut short", unicast, Datagram{Src: higher, Dst: local, TTL: 255, Payload: []byte{0x31}}, vrrp.Truncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := receive(&c.cfg, nil, c.d)
			if err != c.want {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err == nil && (got.From != c.d.Src || got.Priority != 7 || got.Interval != 100*ms || !slices.Equal(got.Addresses, multicast.Addresses)) {
				t.Errorf("advert %+v", got)
			}
		})
	}
	holds(t, "RFC9568-5.1.1.3-2")
	refuses(t, "RFC9568-5.1.1.3-2")
	holds(t, "RFC9568-7.1-4")
	refuses(t, "RFC9568-7.1-4")
}

func TestReceiveIPv6HopLimit(t *testing.T) {
	cfg := testConfig()
	cfg.Local, cfg.Addresses = netip.MustParseAddr("fe80::1"), []netip.Addr{netip.MustParseAddr("fe80::100")}
	src := netip.MustParseAddr("fe80::2")
	a := vrrp.Advertisement{VRID: 51, Priority: 7, Interval: 100 * ms, Addresses: cfg.Addresses}
	b, err := a.Append(nil, src, vrrp.GroupIPv6, vrrp.RFC9568, nil)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, "RFC9568-5.1.2.3-2")
	if _, _, err := receive(&cfg, nil, Datagram{Src: src, Dst: vrrp.GroupIPv6, TTL: 255, Payload: b}); err != nil {
		t.Error(err)
	}
	refuses(t, "RFC9568-5.1.2.3-2")
	if _, _, err := receive(&cfg, nil, Datagram{Src: src, Dst: vrrp.GroupIPv6, TTL: 254, Payload: b}); err != vrrp.TTL {
		t.Errorf("%v, want %v", err, vrrp.TTL)
	}
}

func TestIPv6GroupNeedsLinkLocalFirst(t *testing.T) {
	cfg := testConfig()
	cfg.Local = netip.MustParseAddr("fe80::1")
	global, link := netip.MustParseAddr("2001:db8::100"), netip.MustParseAddr("fe80::100")
	holds(t, "RFC9568-5.2.9-1")
	cfg.Addresses = []netip.Addr{link, global}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	refuses(t, "RFC9568-5.2.9-1")
	cfg.Addresses = []netip.Addr{global, link}
	if err := cfg.Validate(); err == nil {
		t.Error("a global address first was accepted")
	}
}
