package nft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func match(src, dst string) nft.Match {
	return nft.Match{Src: netip.MustParsePrefix(src), Dst: netip.MustParsePrefix(dst)}
}

func peers(ps ...nft.Peer) map[nft.Peer]struct{} {
	set := map[nft.Peer]struct{}{}
	for _, p := range ps {
		set[p] = struct{}{}
	}
	return set
}

var (
	endpoint = nft.Peer{Local: addr("192.168.4.2")}
	keyed    = nft.Peer{Local: addr("192.168.4.2"), Addr: addr("192.168.80.8"), Keyed: true, Key: 0x01020304}
	keyed0   = nft.Peer{Local: addr("192.168.4.2"), Addr: addr("192.168.80.8"), Keyed: true}
	unkeyed  = nft.Peer{Local: addr("192.168.4.2"), Addr: addr("192.168.80.9")}
	other    = nft.Peer{Local: addr("192.168.4.3"), Addr: addr("192.168.80.8"), Keyed: true, Key: 7}
	red      = nft.Mark{Mark: 0x100, Mask: 0xff00}
	blue     = nft.Mark{Mark: 0x200, Mask: 0xff00}
)

// everything is a change that makes use of all there is.
func everything() nft.Change {
	return nft.Change{
		AddPeers: []nft.Peer{endpoint, keyed, keyed0, unkeyed, other},
		AddSteers: map[nft.Match]nft.Mark{
			match("10.244.1.5/32", "172.16.101.0/24"): red,
			match("10.244.0.0/16", "172.16.101.0/24"): red,
			match("10.244.1.5/32", "172.16.102.0/24"): blue,
			match("0.0.0.0/0", "172.16.103.0/24"):     blue,
			match("fd00:1::5/128", "fd00:2::/64"):     red,
			match("::/0", "fd00:3::/64"):              {Mark: 0xffffffff, Mask: 0xffffffff},
			match("10.244.1.7/32", "172.16.101.0/24"): {Mark: 0x300, Mask: 0xff00, Zone: 17603},
			match("10.244.1.8/32", "172.16.101.0/24"): {Refuse: true},
		},
		AddZones: map[string]uint16{"vpx-red": 17601, "vpx-0123456789a": 17603, "vpx-green": 17603},
	}
}

func contentsOf(ch nft.Change, implied ...nft.Peer) nft.Contents {
	return nft.Contents{Peers: peers(append(implied, ch.AddPeers...)...), Steers: ch.AddSteers, Zones: ch.AddZones}
}

var comparers = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b map[string]uint16) bool { return maps.Equal(a, b) }),
}

func (m *machine) expect(ts *nft.Tables, netns string, want nft.Contents) {
	m.t.Helper()
	if want.Steers == nil {
		want.Steers = map[nft.Match]nft.Mark{}
	}
	if diff := cmp.Diff(want, m.load(ts, netns), comparers...); diff != "" {
		m.t.Fatalf("contents (-want +got):\n%s", diff)
	}
}

func (m *machine) expectNoTable(netns string) {
	m.t.Helper()
	if out := m.nft(netns, "list tables"); strings.Contains(out, nft.TableName) {
		m.t.Fatalf("the table is still there: %s", out)
	}
}

func TestContentsReadBackAsWritten(t *testing.T) {
	m := newMachine(t, "own", "vpx-a")
	ts := m.tables("own")
	for _, netns := range []string{"", "vpx-a"} {
		m.expect(ts, netns, contentsOf(nft.Change{}))
		ch := everything()
		// A peer implies its endpoint.
		want := contentsOf(ch, nft.Peer{Local: other.Local})
		m.apply(ts, netns, ch)
		m.expect(ts, netns, want)
		m.apply(ts, netns, ch)
		m.expect(ts, netns, want)
	}
	if err := ts.Remove(context.Background(), "vpx-a"); err != nil {
		t.Fatal(err)
	}
	m.expectNoTable("vpx-a")
	m.expect(ts, "", contentsOf(everything(), nft.Peer{Local: other.Local}))
	if err := ts.Remove(context.Background(), "vpx-a"); err != nil {
		t.Fatalf("removing an absent table: %v", err)
	}
}

func TestMissingNamespace(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	ctx := context.Background()
	if err := os.WriteFile(filepath.Join(m.dir, "stale"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for _, netns := range []string{"vpx-gone", "stale"} {
		_, loadErr := ts.Load(ctx, netns)
		_, countErr := ts.Counters(ctx, netns)
		for _, err := range []error{loadErr, countErr, ts.Apply(ctx, netns, nft.Change{}), ts.Remove(ctx, netns)} {
			if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), netns) {
				t.Errorf("%s: %v", netns, err)
			}
		}
	}
}

func TestTableGoesWithItsLastElement(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	all := everything()
	m.apply(ts, "", all)
	var steers []nft.Match
	for s := range all.AddSteers {
		steers = append(steers, s)
	}
	zones := slices.Collect(maps.Keys(all.AddZones))
	m.apply(ts, "", nft.Change{DeleteSteers: steers, DeleteZones: zones})
	m.expect(ts, "", nft.Contents{Peers: peers(endpoint, keyed, keyed0, unkeyed, other, nft.Peer{Local: other.Local})})
	if out := m.nft("own", "list table inet "+nft.TableName); strings.Contains(out, "steer4") || strings.Contains(out, "mark_") || strings.Contains(out, "zone") || strings.Contains(out, "refuse") {
		t.Fatalf("maps or chains stay behind:\n%s", out)
	}
	m.apply(ts, "", nft.Change{DeletePeers: []nft.Peer{keyed, keyed0, unkeyed, other, {Local: other.Local}}})
	// An endpoint outlives its peers.
	m.expect(ts, "", nft.Contents{Peers: peers(endpoint)})
	absent := nft.Change{DeletePeers: []nft.Peer{keyed, unkeyed}, DeleteSteers: steers, DeleteZones: zones}
	m.apply(ts, "", absent)
	m.expect(ts, "", nft.Contents{Peers: peers(endpoint)})
	m.apply(ts, "", nft.Change{DeletePeers: []nft.Peer{endpoint}})
	m.expectNoTable("own")
	m.apply(ts, "", absent)
	m.expectNoTable("own")
}

func TestOverlappingSteersInAnyOrder(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	matches := []nft.Match{
		match("0.0.0.0/0", "172.16.0.0/16"), match("10.0.0.0/8", "172.16.1.0/24"), match("10.0.0.0/8", "172.16.1.0/25"),
		match("10.1.1.1/32", "172.16.0.0/16"), match("10.1.1.1/32", "172.16.1.0/24"), match("10.1.1.0/31", "172.16.1.0/24"),
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3 {
		rng.Shuffle(len(matches), func(i, j int) { matches[i], matches[j] = matches[j], matches[i] })
		want := nft.Contents{Peers: peers(), Steers: map[nft.Match]nft.Mark{}}
		for i, s := range matches {
			want.Steers[s] = nft.Mark{Mark: uint32(i+1) << 8, Mask: 0xff00}
			m.apply(ts, "", nft.Change{AddSteers: map[nft.Match]nft.Mark{s: want.Steers[s]}})
			m.expect(ts, "", want)
		}
		rng.Shuffle(len(matches), func(i, j int) { matches[i], matches[j] = matches[j], matches[i] })
		for _, s := range matches {
			delete(want.Steers, s)
			m.apply(ts, "", nft.Change{DeleteSteers: []nft.Match{s}})
			m.expect(ts, "", want)
		}
		m.expectNoTable("own")
	}
}

func TestSteerGetsAnotherMark(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	s := match("10.244.1.5/32", "172.16.101.0/24")
	for _, mark := range []nft.Mark{red, blue, {Mark: 0x100, Mask: 0xfff}, red} {
		m.apply(ts, "", nft.Change{AddSteers: map[nft.Match]nft.Mark{s: mark}})
		m.expect(ts, "", nft.Contents{Peers: peers(), Steers: map[nft.Match]nft.Mark{s: mark}})
	}
	if n := strings.Count(m.nft("own", "list chains"), "chain mark_"); n != 1 {
		t.Fatalf("%d mark chains, want the one in use", n)
	}
}

func TestInvalidChangeIsRefusedWhole(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	good := match("10.244.1.5/32", "172.16.101.0/24")
	for name, ch := range map[string]nft.Change{
		"IPv6 endpoint":       {AddPeers: []nft.Peer{{Local: addr("fd00::1")}}},
		"no endpoint":         {AddPeers: []nft.Peer{{Addr: addr("10.0.0.1")}}},
		"any endpoint":        {AddPeers: []nft.Peer{{Local: addr("0.0.0.0"), Addr: addr("10.0.0.1")}}},
		"IPv6 peer":           {AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Addr: addr("fd00::1")}}},
		"any peer":            {AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Addr: addr("0.0.0.0")}}},
		"mapped peer":         {AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Addr: addr("::ffff:10.0.0.2")}}},
		"key without keyed":   {AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Addr: addr("10.0.0.2"), Key: 1}}},
		"endpoint with key":   {AddPeers: []nft.Peer{{Local: addr("10.0.0.1"), Keyed: true, Key: 1}}},
		"no source":           {AddSteers: map[nft.Match]nft.Mark{{Dst: good.Dst}: red}},
		"no destination":      {AddSteers: map[nft.Match]nft.Mark{{Src: good.Src}: red}},
		"source host bits":    {AddSteers: map[nft.Match]nft.Mark{match("10.0.0.1/8", "10.0.0.0/8"): red}},
		"dest. host bits":     {AddSteers: map[nft.Match]nft.Mark{match("10.0.0.0/8", "10.0.0.1/8"): red}},
		"two families":        {AddSteers: map[nft.Match]nft.Mark{match("10.0.0.0/8", "fd00::/8"): red}},
		"no mark":             {AddSteers: map[nft.Match]nft.Mark{good: {Mask: 0xff}}},
		"mark outside mask":   {AddSteers: map[nft.Match]nft.Mark{good: {Mark: 0x101, Mask: 0xff}}},
		"one good of the two": {AddPeers: []nft.Peer{keyed, {Local: addr("fd00::1")}}},
	} {
		if err := ts.Apply(context.Background(), "", ch); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m.expectNoTable("own")
}

// crowd fills the table with so much, beside a crowded table of others, that
// the kernel's dumps are in pieces, and returns what is in it.
func (m *machine) crowd(ts *nft.Tables) nft.Contents {
	m.t.Helper()
	commands := "add table inet busy"
	for i := range 300 {
		commands += fmt.Sprintf("; add chain inet busy c%d", i)
	}
	m.nft("own", commands)
	want := nft.Contents{Peers: peers(), Steers: map[nft.Match]nft.Mark{}}
	for i := range 2000 {
		src := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 32)
		want.Steers[nft.Match{Src: src, Dst: netip.MustParsePrefix("172.16.101.0/24")}] = nft.Mark{Mark: uint32(i%400 + 1), Mask: 0xffff}
	}
	m.apply(ts, "", nft.Change{AddSteers: want.Steers})
	return want
}

// While others change their tables, the kernel leaves objects out of its dumps.
func TestReadingWhileOthersWriteIncessantly(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	want := m.crowd(ts)
	var cmd *exec.Cmd
	var in io.WriteCloser
	if err := m.in("own", func() (err error) {
		cmd = exec.Command("nft", "-i")
		if in, err = cmd.StdinPipe(); err != nil {
			return err
		}
		return cmd.Start()
	}); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		defer in.Close()
		for i := 0; ; i++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			if _, err := fmt.Fprintf(in, "delete chain inet busy c%[1]d\nadd chain inet busy c%[1]d\n", i%300); err != nil {
				written <- err
				return
			}
		}
	}()
	unsettled := 0
	for range 10 {
		c, err := ts.Load(context.Background(), "")
		if err != nil {
			unsettled++ // unknown is not wrong
		} else if diff := cmp.Diff(want, c, comparers...); diff != "" {
			t.Errorf("a wrong list: damage %q, %d of %d steers", c.Damage, len(c.Steers), len(want.Steers))
		}
	}
	close(stop)
	if err := errors.Join(<-written, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of 10 lists failed", unsettled)
}

func TestReadingWhileOthersWriteNowAndThen(t *testing.T) {
	m := newMachine(t, "own")
	ts := m.tables("own")
	want := m.crowd(ts)
	for i := range 20 {
		done := make(chan error, 1)
		go func() {
			done <- m.in("own", func() error {
				return runNFT(fmt.Sprintf("delete chain inet busy c%[1]d; add chain inet busy c%[1]d", i))
			})
		}()
		m.expect(ts, "", want)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestCancelledContext(t *testing.T) {
	m := newMachine(t, "own")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.tables("own").Apply(ctx, "", everything()); err == nil {
		t.Fatal("written although the context was cancelled")
	}
	m.expectNoTable("own")
}
