package conntrack_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// namespace makes an empty network namespace and returns its path.
func namespace(t *testing.T) string {
	t.Helper()
	lab.Require(t, lab.Conntrack)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	host, err := kernel.NewHost(kernel.HostOptions{NetnsDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	if err := host.CreateNamespace(t.Context(), "table"); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "table")
}

func open(t *testing.T, path string) *conntrack.Conn {
	t.Helper()
	c, err := conntrack.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// translated is a flow from src to dst whose source becomes as.
func translated(proto uint8, src, dst, as string) conntrack.Entry {
	e := conntrack.Entry{
		Orig: conntrack.MakeTuple(proto, addr(src), addr(dst)), Reply: conntrack.MakeTuple(proto, addr(dst), addr(as)),
		Status: conntrack.SeenReply | conntrack.Assured, Timeout: 600,
	}
	if proto == unix.IPPROTO_TCP {
		e.TCP = conntrack.TCP{State: conntrack.TCPEstablished, WScaleOrig: 7, WScaleReply: 9, FlagsOrig: 3, FlagsReply: 3}
	}
	return e
}

var flows = []conntrack.Entry{
	translated(unix.IPPROTO_TCP, "10.0.0.1:40000", "172.16.101.5:5432", "172.16.101.100:30000"),
	translated(unix.IPPROTO_TCP, "10.0.0.1:40001", "172.16.101.5:5432", "172.16.101.100:40001"),
	translated(unix.IPPROTO_UDP, "10.0.0.1:40000", "172.16.101.5:53", "172.16.101.100:1024"),
	translated(unix.IPPROTO_UDP, "10.0.0.1:40002", "172.16.101.5:53", "10.0.0.1:40002"), // not translated
	translated(unix.IPPROTO_TCP, "[fd00::1]:40000", "[fd01::5]:5432", "[fd01::100]:30001"),
}

func dump(t *testing.T, c *conntrack.Conn, status conntrack.Status) map[conntrack.Tuple]conntrack.Entry {
	t.Helper()
	all := map[conntrack.Tuple]conntrack.Entry{}
	if err := c.Dump(t.Context(), status, func(e *conntrack.Entry) { all[e.Orig] = *e }); err != nil {
		t.Fatal(err)
	}
	return all
}

func noErrors(t *testing.T, errs []error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestEntriesAreKeptAsCreated(t *testing.T) {
	c := open(t, namespace(t))
	noErrors(t, c.Create(t.Context(), flows))
	have := dump(t, c, conntrack.Assured)
	if len(have) != len(flows) {
		t.Fatalf("%d entries, want %d", len(have), len(flows))
	}
	for _, want := range flows {
		got := have[want.Orig]
		if got.Reply != want.Reply {
			t.Errorf("%s: answers come as %s, want %s", want.Orig, got.Reply, want.Reply)
		}
		if got.Translated() != want.Translated() {
			t.Errorf("%s: translated %t", want.Orig, got.Translated())
		}
		if got.Timeout < 590 || got.Timeout > 600 {
			t.Errorf("%s: %d s left of 600", want.Orig, got.Timeout)
		}
		const liberal = 0x08
		if want.Orig.Proto == unix.IPPROTO_TCP {
			if got.TCP.State != conntrack.TCPEstablished || got.TCP.WScaleOrig != 7 || got.TCP.WScaleReply != 9 {
				t.Errorf("%s: TCP is %+v, want %+v", want.Orig, got.TCP, want.TCP)
			}
			if got.TCP.FlagsOrig&liberal == 0 || got.TCP.FlagsReply&liberal == 0 {
				t.Errorf("%s: windows would be judged: %+v", want.Orig, got.TCP)
			}
		}
	}
	if n, err := c.Count(t.Context()); err != nil || n != len(flows) {
		t.Errorf("Count is %d, %v", n, err)
	}
}

func TestOnlyWhatHasTheStatusIsListed(t *testing.T) {
	c := open(t, namespace(t))
	young := flows[0]
	young.Status = conntrack.SeenReply
	noErrors(t, c.Create(t.Context(), []conntrack.Entry{young, flows[1]}))
	if have := dump(t, c, conntrack.Assured); len(have) != 1 || have[flows[1].Orig].Orig != flows[1].Orig {
		t.Errorf("listed %v", have)
	}
	if have := dump(t, c, 0); len(have) != 2 {
		t.Errorf("without a filter %d are listed", len(have))
	}
}

// A batch has many requests, some of which fail: each gets its own outcome.
func TestEachRequestOfABatchHasItsOutcome(t *testing.T) {
	c := open(t, namespace(t))
	const n = 1000
	all := make([]conntrack.Entry, n)
	for i := range all {
		all[i] = flows[0]
		all[i].Orig.SrcPort, all[i].Reply.DstPort = uint16(1000+i), uint16(1000+i)
	}
	var odd []conntrack.Entry
	for i := 1; i < n; i += 2 {
		odd = append(odd, all[i])
	}
	noErrors(t, c.Create(t.Context(), odd))
	for i, err := range c.Create(t.Context(), all) {
		if want := i%2 == 1; errors.Is(err, unix.EEXIST) != want || err != nil && !want {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	// A flow whose answers would come as another's is refused as well.
	clash := all[0]
	clash.Orig.SrcPort = 60000
	if errs := c.Create(t.Context(), []conntrack.Entry{clash}); !errors.Is(errs[0], unix.EEXIST) {
		t.Errorf("a clash of reply tuples: %v", errs[0])
	}
	found := 0
	tuples := []conntrack.Tuple{clash.Orig}
	for _, e := range all {
		tuples = append(tuples, e.Orig)
	}
	if err := c.Get(t.Context(), tuples, func(i int, e *conntrack.Entry) {
		if e.Orig != tuples[i] {
			t.Errorf("request %d: got %s", i, e.Orig)
		}
		found++
	}); err != nil || found != n {
		t.Errorf("found %d, %v", found, err)
	}
	noErrors(t, c.Delete(t.Context(), append(tuples, all[0].Orig)))
	if n, err := c.Count(t.Context()); err != nil || n != 0 {
		t.Errorf("%d entries are left, %v", n, err)
	}
}

func TestAnUpdateKeepsTranslation(t *testing.T) {
	c := open(t, namespace(t))
	noErrors(t, c.Create(t.Context(), flows[:1]))
	later := flows[0]
	later.Timeout, later.TCP.State, later.Mark = 60, conntrack.TCPFinWait, 7
	noErrors(t, c.Update(t.Context(), []conntrack.Entry{later}))
	got := dump(t, c, 0)[later.Orig]
	if got.Timeout > 60 || got.TCP.State != conntrack.TCPFinWait || got.Mark != 7 || got.Reply != later.Reply {
		t.Errorf("the entry is %+v", got)
	}
	if errs := c.Update(t.Context(), flows[1:2]); !errors.Is(errs[0], unix.ENOENT) {
		t.Errorf("update of an absent entry: %v", errs[0])
	}
}

func TestDeleteByTheReplyTuple(t *testing.T) {
	c := open(t, namespace(t))
	noErrors(t, c.Create(t.Context(), flows))
	noErrors(t, c.Delete(t.Context(), []conntrack.Tuple{flows[0].Reply, flows[4].Reply}))
	have := dump(t, c, 0)
	if _, there := have[flows[0].Orig]; there || len(have) != len(flows)-2 {
		t.Errorf("left are %v", have)
	}
}

func TestNamespaceThatIsNotThere(t *testing.T) {
	lab.Require(t, lab.Conntrack)
	if _, err := conntrack.Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

func TestListenerHearsOfChanges(t *testing.T) {
	path := namespace(t)
	c := open(t, path)
	l, err := conntrack.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	noErrors(t, c.Create(t.Context(), flows[:2]))
	later := flows[0]
	later.Mark = 9
	noErrors(t, c.Update(t.Context(), []conntrack.Entry{later}))
	noErrors(t, c.Delete(t.Context(), []conntrack.Tuple{flows[0].Orig, flows[1].Orig}))
	if err := l.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var heard []conntrack.Entry
	if _, err := l.Drain(100, func(e *conntrack.Entry) { heard = append(heard, *e) }); err != nil {
		t.Fatal(err)
	}
	if len(heard) != 1 || heard[0].Orig != later.Orig || heard[0].Reply != later.Reply || heard[0].Mark != 9 {
		t.Errorf("heard %+v, want the update alone", heard)
	}
}

func TestLostEventsAreToldOf(t *testing.T) {
	path := namespace(t)
	c := open(t, path)
	l, err := conntrack.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	noErrors(t, c.Create(t.Context(), flows[:1]))
	same := make([]conntrack.Entry, 1000)
	lost := func() bool {
		for i := range same {
			same[i] = flows[0]
			same[i].Mark = uint32(i + 1)
		}
		noErrors(t, c.Update(t.Context(), same))
		_, err := l.Drain(1, func(*conntrack.Entry) {})
		return errors.Is(err, conntrack.ErrLost)
	}
	for deadline := time.Now().Add(20 * time.Second); !lost(); {
		if time.Now().After(deadline) {
			t.Fatal("no loss is reported")
		}
	}
}
