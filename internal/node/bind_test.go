package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/binding"
	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/flow"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
	"github.com/vpcproxy/vpcproxy/pkg/route"
)

// memTable is an nftables table in memory.
type memTable struct {
	mu     sync.Mutex
	steers map[nft.Match]nft.Mark
	zones  map[string]uint16
	fail   error // of the next exchanges
}

func (m *memTable) Load(context.Context, string) (nft.Contents, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return nft.Contents{Steers: maps.Clone(m.steers), Zones: maps.Clone(m.zones)}, nil
}

func (m *memTable) Apply(_ context.Context, _ string, ch nft.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, k := range ch.DeleteSteers {
		delete(m.steers, k)
	}
	for _, k := range ch.DeleteZones {
		delete(m.zones, k)
	}
	maps.Copy(m.steers, ch.AddSteers)
	maps.Copy(m.zones, ch.AddZones)
	return nil
}

func (m *memTable) Exchange(ctx context.Context, remove, add map[nft.Match]nft.Mark) (bool, error) {
	return true, m.Apply(ctx, "", nft.Change{DeleteSteers: slices.Collect(maps.Keys(remove)), AddSteers: add})
}

func (m *memTable) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// of returns how a pod is steered, by destination: a zone, or refused.
func (m *memTable) of(pod string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for k, v := range m.steers {
		if k.Src.Addr() != netip.MustParseAddr(pod) {
			continue
		}
		what := fmt.Sprint(v.Zone)
		if v.Refuse {
			what = "refused"
		}
		out = append(out, k.Dst.String()+" "+what)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// endings notes whose flows were ended, in which of the zones asked about.
type endings struct {
	mu   sync.Mutex
	list []string
	// Of walks for all pods at once, the number and what they ended.
	walks, ended int
}

func (e *endings) End(_ context.Context, src netip.Addr, ends func(flow.Flow) bool) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.walks++
	for zone := uint16(17600); zone < 17603; zone++ {
		for i := range 60 {
			if f := (flow.Flow{Zone: zone, Src: netip.AddrFrom4([4]byte{10, 244, 3, byte(i)})}); !src.IsValid() && ends(f) {
				e.ended++
			}
		}
		if src.IsValid() && ends(flow.Flow{Zone: zone, Src: src, Dst: netip.MustParseAddr("172.16.101.9")}) {
			e.list = append(e.list, fmt.Sprintf("%s in %d", src, zone))
		}
	}
	return 0, nil
}

func (e *endings) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}

// slowNAT is address translation that waits, as for the xtables lock.
type slowNAT struct {
	*table[desired.NATKey, nat.RuleSet]
	mu   sync.Mutex
	wait chan struct{} // nil: it does not
}

func (s *slowNAT) List(ctx context.Context) (map[desired.NATKey]nat.RuleSet, error) {
	s.mu.Lock()
	wait := s.wait
	s.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.table.List(ctx)
}

func (s *slowNAT) lock() (unlock func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := make(chan struct{})
	s.wait = wait
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wait = nil
		close(wait)
	}
}

// functionHost is a host whose pods are bound: attachments list none.
type functionHost struct {
	*machine
	table *memTable
	flows *endings
	nat   *slowNAT
	dir   string
}

func newFunctionHost(t *testing.T, linger time.Duration) *functionHost {
	t.Helper()
	fake := kerneltest.New()
	t.Cleanup(func() { _ = fake.Close() })
	index := fake.Plug("", kernel.Link{Name: "eth0", MAC: "02:00:00:00:80:08", MTU: 1500, Up: true})
	h, err := fake.In("")
	if err == nil {
		err = h.AddAddress(t.Context(), kernel.Address{Link: index, Prefix: netip.MustParsePrefix("192.168.80.8/24")})
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &functionHost{
		table: &memTable{steers: map[nft.Match]nft.Mark{}, zones: map[string]uint16{}}, flows: &endings{}, dir: t.TempDir(),
		nat: &slowNAT{table: newTable[desired.NATKey, nat.RuleSet]("nat", func(a, b nat.RuleSet) bool { return nat.Diff(a, b) == "" })},
	}
	f.machine = f.start(t, fake, linger)
	return f
}

func (f *functionHost) start(t *testing.T, fake *kerneltest.Fake, linger time.Duration) *machine {
	t.Helper()
	store, err := binding.Open(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, "host", fake, func(o *Options) {
		steers := route.NewSteers(f.table, fake)
		o.Kinds.Steers, o.Kinds.Exchange, o.Kinds.NAT = steers, steers.Exchange, f.nat
		o.Bindings = BindingOptions{Store: store, Flows: f.flows, Linger: linger}
		o.Plan.ZoneBase = 17600
		o.Plan.MarkMask = 0x3
	})
	m.node.SetIntent(unlisted(1, "red", "blue"))
	return m
}

// unlisted is tenants whose attachments list no pods; green has another subnet.
func unlisted(revision int64, names ...string) *intent.Set {
	s := tenants(revision, names...)
	for _, a := range s.Attachments {
		a.Spec.Pods = nil
	}
	key := uint32(103)
	s.Put(&intent.Attachment{Metadata: intent.Metadata{Name: "green"}, Spec: intent.AttachmentSpec{
		VPC: "green", Group: "g", GREKey: &key, CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.102.0/24")}, ENIs: []intent.ENI{{Name: "eth3"}},
	}})
	return s
}

func (f *functionHost) bind(t *testing.T, pod string, attachments ...string) BindingStatus {
	t.Helper()
	s, err := f.node.Bind(t.Context(), BindRequest{Pod: netip.MustParseAddr(pod), Attachments: attachments})
	if err != nil {
		t.Fatalf("bind %s to %v: %v", pod, attachments, err)
	}
	return s
}

// steered checks how a pod is steered: each destination by the zone that its
// attachment's tunnel is in.
func (f *functionHost) steered(t *testing.T, pod string, attachments ...string) {
	t.Helper()
	var want []string
	for _, a := range attachments {
		dst := map[string]string{"red": "172.16.101.0/24", "blue": "172.16.101.0/24", "green": "172.16.102.0/24"}[a]
		f.table.mu.Lock()
		zone := f.table.zones["vpx-"+a]
		f.table.mu.Unlock()
		want = append(want, fmt.Sprintf("%s %d", dst, zone))
	}
	slices.Sort(want)
	if got := f.table.of(pod); got != strings.Join(want, ", ") {
		t.Errorf("pod %s is steered %q, want %q", pod, got, want)
	}
}

const podA, podB = "10.244.1.5", "10.244.1.6"

func TestBind(t *testing.T) {
	f := newFunctionHost(t, 0)
	f.until("idle", applied(1))
	if got := links(t, f.fake, ""); strings.Contains(got, "vpx-") {
		t.Errorf("paths that nobody uses: %s", got)
	}
	for _, at := range f.node.Status().Attachments {
		if !at.Ready {
			t.Errorf("an attachment that is not in use is not ready: %+v", at)
		}
	}
	if s := f.bind(t, podA, "red"); !s.Attachments[0].Ready {
		t.Errorf("not ready: %+v", s.Attachments)
	}
	f.steered(t, podA, "red")
	f.bind(t, podB, "green", "blue")
	f.steered(t, podB, "blue", "green")
	f.bind(t, podA, "red") // again
	f.bind(t, podA, "blue")
	f.steered(t, podA, "blue")
	f.until("red's path is gone", func(s Status) bool { return s.InSync && !strings.Contains(links(t, f.fake, ""), "vpx-red") })
	if pass, err := f.node.Resync(t.Context()); err != nil || pass.Writes() != 0 {
		t.Errorf("the loop wrote %d objects, %v: %+v", pass.Writes(), err, pass.Kinds)
	}
	f.steered(t, podA, "blue")
	f.steered(t, podB, "blue", "green")

	for _, pod := range []string{podA, podB} {
		if removed, err := f.node.Unbind(t.Context(), netip.MustParseAddr(pod), ""); !removed || err != nil {
			t.Errorf("unbind %s: %v, %v", pod, removed, err)
		}
		if removed, err := f.node.Unbind(t.Context(), netip.MustParseAddr(pod), ""); removed || err != nil {
			t.Errorf("unbind %s again: %v, %v", pod, removed, err)
		}
		f.steered(t, pod)
	}
	f.until("nothing is left", func(s Status) bool { return s.InSync && !strings.Contains(links(t, f.fake, ""), "vpx-") })
	if len(f.table.steers)+len(f.table.zones) > 0 {
		t.Errorf("left: %v %v", f.table.steers, f.table.zones)
	}
	if left, err := os.ReadDir(f.dir); len(left) != 0 || err != nil {
		t.Errorf("records left: %v, %v", left, err)
	}
}

func TestBindIsRefused(t *testing.T) {
	f := newFunctionHost(t, 0)
	f.bind(t, podA, "red")
	for name, c := range map[string]struct {
		request BindRequest
		reason  intent.Reason
		text    string
	}{
		"no pod":       {BindRequest{Attachments: []string{"red"}}, intent.Invalid, "podIP"},
		"mapped pod":   {BindRequest{Pod: netip.MustParseAddr("::ffff:10.244.1.5"), Attachments: []string{"red"}}, intent.Invalid, "podIP"},
		"pod in zone":  {BindRequest{Pod: netip.MustParseAddr("fe80::1%eth0"), Attachments: []string{"red"}}, intent.Invalid, "podIP"},
		"IPv6":         {BindRequest{Pod: netip.MustParseAddr("fd00::5"), Attachments: []string{"red"}}, intent.Conflict, "address family"},
		"nothing":      {BindRequest{Pod: netip.MustParseAddr(podA)}, intent.Invalid, "is empty"},
		"twice":        {BindRequest{Pod: netip.MustParseAddr(podA), Attachments: []string{"red", "red"}}, intent.Invalid, "appears twice"},
		"unknown":      {BindRequest{Pod: netip.MustParseAddr(podA), Attachments: []string{"pink"}}, intent.NotFound, "pink"},
		"overlap":      {BindRequest{Pod: netip.MustParseAddr(podA), Attachments: []string{"red", "blue"}}, intent.Conflict, "overlaps 172.16.101.0/24 of attachment red"},
		"no interface": {BindRequest{Pod: netip.MustParseAddr(podA), Attachments: []string{"blue"}, Interface: "veth9"}, intent.Invalid, "veth9"},
	} {
		_, err := f.node.Bind(t.Context(), c.request)
		field, ok := errors.AsType[*intent.FieldError](err)
		if !ok || field.Reason != c.reason || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.steered(t, podA, "red")

	s := unlisted(2, "red", "blue")
	s.Attachment("blue").Spec.Pods = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	s.Attachment("green").Spec.Scope = intent.ScopeHost
	f.node.SetIntent(s)
	f.until("listed", applied(2))
	for name, text := range map[string]string{"red": "whose spec.pods lists the pod", "green": "scope host"} {
		if _, err := f.node.Bind(t.Context(), BindRequest{Pod: netip.MustParseAddr(podB), Attachments: []string{name}}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A binding that cannot be written changes nothing, here or on disk.
func TestBindFailure(t *testing.T) {
	f := newFunctionHost(t, time.Hour)
	f.bind(t, podA, "red")
	f.bind(t, podB, "blue")
	f.table.setFail(errors.New("injected"))
	for pod, attachment := range map[string]string{podA: "blue", "10.244.1.7": "red"} {
		if _, err := f.node.Bind(t.Context(), BindRequest{Pod: netip.MustParseAddr(pod), Attachments: []string{attachment}}); err == nil || !strings.Contains(err.Error(), "injected") {
			t.Errorf("bind %s: %v", pod, err)
		}
	}
	f.table.setFail(nil)
	f.steered(t, podA, "red")
	f.steered(t, "10.244.1.7")
	store, err := binding.Open(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	list, problems, err := store.Load()
	if len(list) != 2 || list[0].Attachments[0].Name != "red" || len(problems) != 0 || err != nil {
		t.Errorf("on disk: %+v, %v, %v", list, problems, err)
	}
	// An unbind that cannot be written is made good by the loop.
	f.table.setFail(errors.New("injected"))
	if _, err := f.node.Unbind(t.Context(), netip.MustParseAddr(podA), ""); err == nil {
		t.Error("no error")
	}
	f.table.setFail(nil)
	f.until("the steer is gone", func(Status) bool { return f.table.of(podA) == "" })
}

// A pod whose path is prepared does not wait for a loop that waits for others.
func TestBindBesideABusyLoop(t *testing.T) {
	f := newFunctionHost(t, time.Hour)
	f.bind(t, podA, "red")
	f.until("settled", func(s Status) bool { return s.InSync })
	unlock := f.nat.lock()
	defer unlock()
	f.node.loop.HintAll()
	f.until("the loop is stuck", func(Status) bool { return f.node.loop.Stalled() > 0 })
	f.bind(t, podB, "red")
	f.steered(t, podB, "red")

	// One whose path is not has to, and gives up in time: it has what it had.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := f.node.Bind(ctx, BindRequest{Pod: netip.MustParseAddr(podB), Attachments: []string{"green"}})
	if !errors.Is(err, ErrNotInPlace) {
		t.Errorf("%v", err)
	}
	f.steered(t, podB, "red")
}

func TestBindingsOutliveTheNode(t *testing.T) {
	f := newFunctionHost(t, time.Hour)
	veth := f.fake.Plug("", kernel.Link{Name: "veth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true})
	for pod, link := range map[string]string{podA: "", podB: "veth1"} {
		if _, err := f.node.Bind(t.Context(), BindRequest{Pod: netip.MustParseAddr(pod), Attachments: []string{"red"}, Interface: link, Owner: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	before := maps.Clone(f.table.steers)
	again := f.start(t, f.fake, time.Hour) // beside the old one, which does nothing more
	again.until("applied", applied(1))
	if !maps.Equal(before, f.table.steers) {
		t.Errorf("steers were %v, are %v", before, f.table.steers)
	}
	list := again.node.Bindings(netip.Addr{})
	if len(list) != 2 || list[0].Owner != "x" || !list[0].Attachments[0].Ready {
		t.Errorf("bindings %+v", list)
	}

	h, err := f.fake.In("")
	if err != nil {
		t.Fatal(err)
	}
	// A name that no link has any more is as good as a link that is gone.
	if err := errors.Join(h.SetLinkUp(t.Context(), veth, false), h.SetLinkName(t.Context(), veth, "other")); err != nil {
		t.Fatal(err)
	}
	again.until("the pod is gone", func(Status) bool { return again.node.BindingCount() == 1 && f.table.of(podB) == "" })
	f.steered(t, podA, "red")

	// What cannot be read is refused all that there is.
	if err := os.WriteFile(filepath.Join(f.dir, podA+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	third := f.start(t, f.fake, time.Hour)
	third.until("applied", applied(1))
	if got := f.table.of(podA); got != "172.16.101.0/24 refused, 172.16.102.0/24 refused" {
		t.Errorf("steered %q", got)
	}
}

func TestFlowsOfAPodEndWithWhatItLoses(t *testing.T) {
	f := newFunctionHost(t, time.Hour)
	zone := func(a string) string {
		f.table.mu.Lock()
		defer f.table.mu.Unlock()
		return fmt.Sprint(f.table.zones["vpx-"+a])
	}
	bind := func(owner string, attachments ...string) []string {
		t.Helper()
		if _, err := f.node.Bind(t.Context(), BindRequest{Pod: netip.MustParseAddr(podA), Attachments: attachments, Owner: owner}); err != nil {
			t.Fatal(err)
		}
		return f.flows.take()
	}
	unbind := func(owner string) []string {
		t.Helper()
		pod := netip.MustParseAddr(podA)
		if _, err := f.node.Unbind(t.Context(), pod, owner); err != nil {
			t.Fatal(err)
		}
		if err := f.node.bindings.ender.await(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		return f.flows.take()
	}
	expect := func(what string, got []string, attachments ...string) {
		t.Helper()
		var want []string
		for _, a := range attachments {
			want = append(want, podA+" in "+zone(a))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: ended %q, want %q", what, got, want)
		}
	}
	expect("bound", bind("x", "red", "green"))
	expect("bound again", bind("x", "green", "red"))
	expect("one less", bind("x", "red"), "green")
	expect("moved", bind("x", "blue"), "red")
	expect("another pod's", bind("y", "blue"), "blue")
	expect("unbound by an earlier owner", unbind("x"))
	expect("unbound", unbind("y"), "blue")
}

// Many pods that end at a time take few walks through the kernel's table.
func TestFlowsOfManyPodsEndTogether(t *testing.T) {
	e := &endings{}
	ender := newEnder(e, slog.New(slog.DiscardHandler))
	for i := range 60 {
		ender.end(netip.AddrFrom4([4]byte{10, 244, 3, byte(i)}), map[uint16]bool{17601: true})
	}
	first := netip.MustParseAddr("10.244.3.0")
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if err := ender.await(short, first); !errors.Is(err, ErrNotInPlace) {
		t.Errorf("while nothing is done: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { ender.run(ctx); close(done) }()
	for i := range 60 {
		if err := ender.await(t.Context(), netip.AddrFrom4([4]byte{10, 244, 3, byte(i)})); err != nil {
			t.Error(err)
		}
	}
	cancel()
	<-done
	if e.walks != 1 || e.ended != 60 {
		t.Errorf("%d walks ended %d pods' flows", e.walks, e.ended)
	}
	if err := ender.await(t.Context(), first); err != nil {
		t.Errorf("when nothing is left to do: %v", err)
	}
}

// An attachment that goes from under its pods leaves them refused, and one that
// comes back takes them up again.
func TestAttachmentGoesFromUnderABinding(t *testing.T) {
	f := newFunctionHost(t, time.Hour)
	f.bind(t, podA, "red")
	f.node.SetIntent(unlisted(2, "blue"))
	f.until("gone", applied(2))
	if got := f.table.of(podA); got != "172.16.101.0/24 refused" {
		t.Errorf("steered %q", got)
	}
	if s := f.node.Bindings(netip.MustParseAddr(podA)); len(s) != 1 || s[0].Attachments[0].Ready || s[0].Attachments[0].Message == "" {
		t.Errorf("bindings %+v", s)
	}
	f.node.SetIntent(unlisted(3, "red", "blue"))
	f.until("back", applied(3))
	f.steered(t, podA, "red")
}

func TestManyPodsAtOnce(t *testing.T) {
	f := newFunctionHost(t, 0)
	var pods sync.WaitGroup
	for i := range 40 {
		pods.Go(func() {
			pod := netip.AddrFrom4([4]byte{10, 244, 2, byte(i)})
			for round := range 10 {
				attachment := []string{"red", "blue", "green"}[(i+round)%3]
				if _, err := f.node.Bind(t.Context(), BindRequest{Pod: pod, Attachments: []string{attachment}}); err != nil {
					t.Error(err)
					return
				}
				if round%3 == 1 {
					f.node.loop.Hint("steers", "rules")
				}
				if round%4 == 3 {
					if _, err := f.node.Unbind(t.Context(), pod, ""); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	pods.Wait()
	f.until("settled", func(s Status) bool { return s.InSync })
	for i := range 40 {
		f.steered(t, fmt.Sprintf("10.244.2.%d", i), []string{"red", "blue", "green"}[(i+9)%3])
	}
}
