package session_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/pkg/ha/session"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// proxy is one member of the group "g": a directory of namespaces with one of
// the name that all members give it.
type proxy struct {
	name string
	host kernel.Host
	dir  string
	path string // of the namespace
	conn *conntrack.Conn
	m    *session.Manager
	stop func()
}

const netns = "vpx-db"

// pair makes two members, a and b, with certificates of one CA.
func pair(t testing.TB, age time.Duration) (a, b *proxy) { return pairWith(t, age, time.Millisecond) }

func pairWith(t testing.TB, age, grace time.Duration) (a, b *proxy) {
	t.Helper()
	lab.Require(t, lab.Conntrack, lab.NFTables)
	ca := filepath.Join(t.TempDir(), "ca")
	if _, err := pki.Init(ca, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	a, b = newProxy(t, ca, "a", age, grace), newProxy(t, ca, "b", age, grace)
	a.start(t, b)
	b.start(t, a)
	return a, b
}

func newProxy(t testing.TB, ca, name string, age, grace time.Duration) *proxy {
	t.Helper()
	p := &proxy{name: name, dir: t.TempDir()}
	if err := unix.Mount("none", p.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.dir, unix.MNT_DETACH) })
	var err error
	if p.host, err = kernel.NewHost(kernel.HostOptions{NetnsDir: p.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.host.Close() })
	p.makeNamespace(t)
	bundle, err := pki.Issue(ca, name, []pki.Role{pki.RoleNode}, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	creds, err := pki.Load(bundle, log)
	if err != nil {
		t.Fatal(err)
	}
	p.m, err = session.Listen(t.Context(), session.Options{
		Listen:       "127.0.0.1:0",
		Credentials:  session.Credentials{Server: creds.ServerConfig(), Client: creds.MemberConfig, Peer: pki.MemberName},
		NetnsDir:     p.dir,
		ChooseEvents: nft.New(log, nft.Options{NetnsDir: p.dir}).AssuredEventsOnly,
		Age:          age, Refresh: 200 * time.Millisecond, Grace: grace, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *proxy) makeNamespace(t testing.TB) {
	t.Helper()
	if err := p.host.CreateNamespace(t.Context(), netns); err != nil {
		t.Fatal(err)
	}
	p.path = filepath.Join(p.dir, netns)
	c, err := conntrack.Open(p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	p.conn = c
}

func (p *proxy) start(t testing.TB, other *proxy) {
	p.m.Set([]session.Group{{
		Name: "g", Others: []session.Member{{Node: other.name, Address: other.m.Address()}}, Namespaces: []string{netns},
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.m.Run(ctx); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	})
	p.stop = func() { cancel(); running.Wait() }
	t.Cleanup(p.stop)
}

// entries returns what the member's kernel has.
func (p *proxy) entries(t testing.TB) map[conntrack.Tuple]conntrack.Entry {
	t.Helper()
	all := map[conntrack.Tuple]conntrack.Entry{}
	if err := p.conn.Dump(t.Context(), conntrack.Assured, func(e *conntrack.Entry) { all[e.Orig] = *e }); err != nil {
		t.Fatal(err)
	}
	return all
}

func eventually(t testing.TB, what string, f func() bool, sides ...*proxy) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s%s", what, compared(t, sides))
		}
		select {
		case <-t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// compared says what each of two members, if they are given, has and the other has not.
func compared(t testing.TB, sides []*proxy) string {
	t.Helper()
	var out strings.Builder
	for i, p := range sides {
		own, other := p.entries(t), sides[len(sides)-1-i].entries(t)
		var lacking []string
		for k, e := range own {
			if f, ok := other[k]; !ok || f.Reply != e.Reply {
				lacking = append(lacking, fmt.Sprintf("%v, answered %v", k, e.Reply))
			}
		}
		slices.Sort(lacking)
		fmt.Fprintf(&out, "\n%s has %d entries, status %+v; %d of them the other has not:", p.name, len(own), p.status(t), len(lacking))
		for _, l := range lacking[:min(len(lacking), 10)] {
			fmt.Fprintf(&out, "\n\t%s", l)
		}
	}
	return out.String()
}

func same(a, b map[conntrack.Tuple]conntrack.Entry) bool {
	if len(a) != len(b) {
		return false
	}
	for k, e := range a {
		if f, ok := b[k]; !ok || f.Reply != e.Reply {
			return false
		}
	}
	return true
}

// made returns n flows, the i-th translated to port base+i.
func made(from, n int, snat string, base int) []conntrack.Entry {
	dst := netip.MustParseAddrPort("172.16.101.5:5432")
	var out []conntrack.Entry
	for i := from; i < from+n; i++ {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 12), byte(i >> 4 & 0xff)}), uint16(1024+i&15))
		as := netip.AddrPortFrom(netip.MustParseAddr(snat), uint16(base+i))
		out = append(out, conntrack.Entry{
			Orig: conntrack.MakeTuple(unix.IPPROTO_TCP, src, dst), Reply: conntrack.MakeTuple(unix.IPPROTO_TCP, dst, as),
			Status: conntrack.SeenReply | conntrack.Assured, Timeout: 3000, TCP: conntrack.TCP{State: conntrack.TCPEstablished},
		})
	}
	return out
}

func (p *proxy) create(t *testing.T, entries []conntrack.Entry) {
	t.Helper()
	for _, err := range p.conn.Create(t.Context(), entries) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (p *proxy) remove(t *testing.T, entries []conntrack.Entry) {
	t.Helper()
	var tuples []conntrack.Tuple
	for _, e := range entries {
		tuples = append(tuples, e.Orig)
	}
	for _, err := range p.conn.Delete(t.Context(), tuples) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (p *proxy) status(t testing.TB) session.GroupStatus {
	t.Helper()
	for _, s := range p.m.Status() {
		if s.Group == "g" {
			return s
		}
	}
	t.Fatal("the group is not known")
	return session.GroupStatus{}
}

func TestStandbyFollowsTheActiveMember(t *testing.T) {
	a, b := pair(t, 0)
	all := made(0, 3000, "172.16.101.100", 20000)
	a.create(t, all[:2000])
	a.m.SetActive("g", true)
	follows := func() bool { return same(a.entries(t), b.entries(t)) }
	eventually(t, "the bulk", follows, a, b)
	if n := len(b.entries(t)); n != 2000 {
		t.Fatalf("%d entries", n)
	}
	a.create(t, all[2000:])
	a.remove(t, all[:500])
	eventually(t, "changes", follows, a, b)
	if n := len(b.entries(t)); n != 2500 {
		t.Fatalf("%d entries", n)
	}
	eventually(t, "nothing pending", func() bool { s := a.status(t); return s.Pending == 0 && s.Lag == 0 })
	if s := a.status(t); !slices.Equal(s.Standbys, []string{"b"}) || s.Entries != 2500 {
		t.Errorf("status %+v", s)
	}

	t.Run("drift", func(t *testing.T) {
		b.remove(t, all[600:700])
		stale := made(4000, 50, "172.16.101.100", 30000)
		b.create(t, stale)
		eventually(t, "repair of the standby's kernel", follows, a, b)
	})
	t.Run("changed translation", func(t *testing.T) {
		a.remove(t, all[700:710])
		a.create(t, made(700, 10, "172.16.101.100", 40000))
		eventually(t, "the new translation", follows, a, b)
	})
	t.Run("reused translation", func(t *testing.T) {
		// Other flows get the ports of ended ones.
		a.remove(t, all[710:720])
		a.create(t, made(5710, 10, "172.16.101.100", 15000))
		eventually(t, "the new flows", follows, a, b)
	})
	t.Run("time-out and state", func(t *testing.T) {
		e := all[800]
		e.Timeout, e.TCP.State = 5000, conntrack.TCPFinWait
		for _, err := range a.conn.Update(t.Context(), []conntrack.Entry{e}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the change", func() bool {
			got := b.entries(t)[e.Orig]
			return got.Timeout > 4000 && got.TCP.State == conntrack.TCPFinWait
		})
		e.TCP.State = conntrack.TCPTimeWait
		for _, err := range a.conn.Update(t.Context(), []conntrack.Entry{e}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the end of a closed connection", func() bool {
			_, there := b.entries(t)[e.Orig]
			return !there
		})
		a.remove(t, []conntrack.Entry{e})
	})
	t.Run("namespace made anew", func(t *testing.T) {
		if err := b.host.DeleteNamespace(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
		b.makeNamespace(t)
		eventually(t, "entries in the new namespace", follows, a, b)
	})
}

func TestReconnectionResumes(t *testing.T) {
	a, b := pair(t, 0)
	all := made(0, 1100, "172.16.101.100", 20000)
	a.create(t, all[:1000])
	a.m.SetActive("g", true)
	follows := func() bool { return same(a.entries(t), b.entries(t)) }
	eventually(t, "the bulk", func() bool { return len(b.entries(t)) == 1000 })
	eventually(t, "the acknowledgement", func() bool { return a.status(t).Pending == 0 })
	before := a.status(t)

	b.m.Set([]session.Group{{Name: "g", Namespaces: []string{netns}}}) // nobody to follow
	eventually(t, "the loss to be noticed", func() bool { return a.status(t).Pending >= 1000 })
	a.create(t, all[1000:])
	a.remove(t, all[:50])
	b.m.Set([]session.Group{{
		Name: "g", Others: []session.Member{{Node: "a", Address: a.m.Address()}}, Namespaces: []string{netns},
	}})
	eventually(t, "the changes", func() bool { return follows() && len(b.entries(t)) == 1050 })
	after := a.status(t)
	if after.Resyncs != before.Resyncs || after.Sent-before.Sent > 300 {
		t.Errorf("sent %d changes with %d whole copies, for 150 changes", after.Sent-before.Sent, after.Resyncs-before.Resyncs)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	a, _ := pair(t, 0)
	a.m.SetActive("g", true)
	c, err := net.Dial("tcp", a.m.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x00\x00\x00\x08\x01vpxs\x01\x01g")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			break
		}
		if n > 0 && b[0] != 21 { // a TLS alert
			t.Fatalf("got %q", b[:n])
		}
	}
	if s := a.status(t); slices.Contains(s.Standbys, "") {
		t.Errorf("status %+v", s)
	}
}
