package vip_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
)

// wire records announcements, and answers questions as told.
type wire struct {
	mu        sync.Mutex
	prepared  map[string]bool // links
	announced []string
	answers   map[netip.Addr]string
}

func (w *wire) Prepare(_ context.Context, netns string, l kernel.Link) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.prepared == nil {
		w.prepared = map[string]bool{}
	}
	w.prepared[netns+"/"+l.Name] = true
	return nil
}

func (w *wire) Announce(_ context.Context, netns string, l kernel.Link, a netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.announced = append(w.announced, fmt.Sprintf("%s %s/%s", a, netns, l.Name))
	return nil
}

func (w *wire) Ask(_ context.Context, _ string, _ kernel.Link, a netip.Addr) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answers[a], nil
}

func (*wire) Retain(map[string]bool) {}

func (w *wire) count(a netip.Addr) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, s := range w.announced {
		if strings.HasPrefix(s, a.String()+" ") {
			n++
		}
	}
	return n
}

var (
	outer  = vip.Address{Link: "eth0", Addr: netip.MustParseAddr("192.168.4.100")}
	inside = vip.Address{Name: "red", Netns: "vpx-red", Link: "eth1", Addr: netip.MustParseAddr("172.16.101.100")}
	other  = vip.Address{Name: "blue", Netns: "vpx-blue", Link: "eth2", Addr: netip.MustParseAddr("172.16.101.100")}
)

type rig struct {
	*kerneltest.Fake
	wire *wire
	set  *vip.Set
}

// driver records what it is told.
type driver struct {
	calls []string
	err   error
}

func (d *driver) Claim(_ context.Context, a []vip.Address) error {
	d.calls = append(d.calls, fmt.Sprintf("claim %d", len(a)))
	return d.err
}

func (d *driver) Release(_ context.Context, a []vip.Address) error {
	d.calls = append(d.calls, fmt.Sprintf("release %d", len(a)))
	return d.err
}

func newRig(t *testing.T, d vip.Driver) *rig {
	t.Helper()
	r := &rig{Fake: kerneltest.New(), wire: &wire{answers: map[netip.Addr]string{}}}
	t.Cleanup(func() { _ = r.Fake.Close() })
	r.plug(t, "", "eth0", "02:00:00:00:04:04")
	for i, a := range []vip.Address{inside, other} {
		if err := r.CreateNamespace(t.Context(), a.Netns); err != nil {
			t.Fatal(err)
		}
		r.plug(t, a.Netns, a.Link, fmt.Sprintf("02:00:00:00:65:%02d", i))
	}
	r.set = vip.NewSet(vip.Options{Group: "g", Host: r.Fake, Wire: r.wire, Driver: d, Log: slog.New(slog.DiscardHandler)})
	r.set.Replace(t.Context(), []vip.Address{outer, inside, other})
	return r
}

func (r *rig) plug(t *testing.T, netns, name, mac string) {
	t.Helper()
	r.Plug(netns, kernel.Link{Name: name, MAC: mac})
	r.up(t, netns, name, true)
}

func (r *rig) up(t *testing.T, netns, name string, up bool) {
	t.Helper()
	h, err := r.In(netns)
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.LinkByName(t.Context(), name)
	if err == nil {
		err = h.SetLinkUp(t.Context(), l.Index, up)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// held lists which of the addresses the kernel holds.
func (r *rig) held(t *testing.T) (out []string) {
	t.Helper()
	for _, a := range []vip.Address{outer, inside, other} {
		h, err := r.In(a.Netns)
		if err != nil {
			continue
		}
		all, err := h.Addresses(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range all {
			if k.Prefix.Addr() == a.Addr {
				out = append(out, a.Netns+"/"+a.Link)
			}
		}
	}
	return out
}

func (r *rig) put(t *testing.T, a vip.Address, protocol uint8) {
	t.Helper()
	h, err := r.In(a.Netns)
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.LinkByName(t.Context(), a.Link)
	if err == nil {
		err = h.AddAddress(t.Context(), kernel.Address{Link: l.Index, Prefix: netip.PrefixFrom(a.Addr, 32), Protocol: protocol})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantHeld(t *testing.T, r *rig, want ...string) {
	t.Helper()
	if got := r.held(t); !slices.Equal(got, want) {
		t.Errorf("the kernel holds %v, want %v", got, want)
	}
}

var all = []string{"/eth0", "vpx-red/eth1", "vpx-blue/eth2"}

// lines returns the journal's writes of one method since a mark.
func (r *rig) lines(from int, method string) (out []string) {
	for _, l := range r.Journal()[from:] {
		if strings.HasPrefix(l, method) {
			out = append(out, l)
		}
	}
	return out
}

func TestMoves(t *testing.T) {
	d := &driver{}
	r := newRig(t, d)
	mark := r.Writes()
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r, all...)
	if added := r.lines(mark, "AddAddress"); len(added) != 3 || !strings.Contains(added[2], outer.Addr.String()) {
		t.Errorf("added in this order: %v; want the underlay's address last", added)
	}
	if r.wire.count(outer.Addr) != 1 || r.wire.count(inside.Addr) != 2 {
		t.Errorf("announced %v", r.wire.announced)
	}
	mark = r.Writes()
	canceled, cancel := context.WithCancel(t.Context())
	cancel() // a wish that overtakes it must not leave half behind
	if err := r.set.Deactivate(canceled); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r)
	if gone := r.lines(mark, "DeleteAddress"); len(gone) != 3 || !strings.Contains(gone[0], outer.Addr.String()) {
		t.Errorf("removed in this order: %v; want the underlay's address first", gone)
	}
	if !slices.Equal(d.calls, []string{"claim 3", "release 3"}) {
		t.Errorf("the driver was told %v", d.calls)
	}
	before := len(r.wire.announced)
	if err := r.set.Announce(t.Context()); err != nil || len(r.wire.announced) != before {
		t.Errorf("who holds nothing announced %v (%v)", r.wire.announced[before:], err)
	}
}

func TestTogetherOrNotAtAll(t *testing.T) {
	r := newRig(t, nil)
	r.Fail("AddAddress", 2, errors.New("no memory"))
	if err := r.set.Activate(t.Context()); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("error %v", err)
	}
	wantHeld(t, r)
	if r.set.Holding() {
		t.Error("holds though it could not")
	}
	if len(r.wire.announced) > 0 {
		t.Errorf("announced %v", r.wire.announced)
	}
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r, all...)
}

// An attachment whose interface is gone keeps nothing back from the others.
func TestAbsentLinkIsNoFailure(t *testing.T) {
	r := newRig(t, nil)
	if err := r.DeleteNamespace(t.Context(), other.Netns); err != nil {
		t.Fatal(err)
	}
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r, "/eth0", "vpx-red/eth1")
	found, err := r.set.Verify(t.Context())
	if err != nil || len(found) != 1 || found[0].Fault != vip.Lacking || found[0].Address != other {
		t.Errorf("found %v, %v", found, err)
	}
}

// forgetful is a kernel before Linux 5.18: it keeps no protocol.
type forgetful struct{ vip.Host }

func (f forgetful) In(name string) (kernel.Handle, error) {
	h, err := f.Host.In(name)
	return forgetfulHandle{h}, err
}

type forgetfulHandle struct{ kernel.Handle }

func (h forgetfulHandle) AddAddress(ctx context.Context, a kernel.Address) error {
	a.Protocol = 0
	return h.Handle.AddAddress(ctx, a)
}

func TestOldKernelIsRefused(t *testing.T) {
	r := newRig(t, nil)
	set := vip.NewSet(vip.Options{Group: "g", Host: forgetful{r.Fake}, Wire: r.wire, Log: slog.New(slog.DiscardHandler)})
	set.Replace(t.Context(), []vip.Address{outer, inside})
	if err := set.Activate(t.Context()); err == nil || !strings.Contains(err.Error(), "HaVips need Linux 5.18") {
		t.Errorf("error %v", err)
	}
	wantHeld(t, r)
}

func TestDriverFailureIsReported(t *testing.T) {
	d := &driver{err: errors.New("quota")}
	r := newRig(t, d)
	if err := r.set.Activate(t.Context()); err == nil || !strings.Contains(err.Error(), "claim the HaVips of group g: quota") {
		t.Errorf("error %v", err)
	}
	if err := r.set.Deactivate(t.Context()); err == nil || !strings.Contains(err.Error(), "release") {
		t.Errorf("error %v", err)
	}
	wantHeld(t, r) // whatever the driver says
}

func TestReplace(t *testing.T) {
	r := newRig(t, nil)
	r.set.Replace(t.Context(), []vip.Address{outer, inside})
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r, "/eth0", "vpx-red/eth1")
	r.set.Replace(t.Context(), []vip.Address{outer, other})
	wantHeld(t, r, "/eth0", "vpx-blue/eth2")
	if err := r.set.Deactivate(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.set.Replace(t.Context(), []vip.Address{outer, inside, other})
	wantHeld(t, r)
}

func TestVerify(t *testing.T) {
	r := newRig(t, nil)
	r.put(t, outer, desired.HaVipProtocol)
	r.put(t, inside, 0)
	found, err := r.set.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].Fault != vip.Lingering || found[1].Fault != vip.Foreign {
		t.Errorf("found %v, want one that lingers and one of somebody else", found)
	}
	if err := r.set.Deactivate(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, r, "vpx-red/eth1") // not ours to remove
}

func run(t *testing.T, r *rig) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.set.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestRunAnnouncesWhenTheLinkIsReady(t *testing.T) {
	r := newRig(t, nil)
	r.up(t, "", "eth0", false)
	run(t, r)
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a burst inside", func() bool { return r.wire.count(inside.Addr) >= 6 })
	if n := r.wire.count(outer.Addr); n > 0 {
		t.Errorf("announced %d times on a link that is down", n)
	}
	r.up(t, "", "eth0", true)
	eventually(t, "a burst outside", func() bool { return r.wire.count(outer.Addr) >= 3 })
}

// A move must not wait for a socket to be opened in another namespace.
func TestRunPreparesOnStandby(t *testing.T) {
	r := newRig(t, nil)
	run(t, r)
	eventually(t, "prepared on all links", func() bool {
		r.wire.mu.Lock()
		defer r.wire.mu.Unlock()
		return r.wire.prepared["/eth0"] && r.wire.prepared["vpx-red/eth1"]
	})
	if r.set.Holding() {
		t.Error("the set is held")
	}
}

func TestRunRepairs(t *testing.T) {
	r := newRig(t, nil)
	run(t, r)
	r.put(t, outer, desired.HaVipProtocol)
	r.set.Look()
	eventually(t, "removed what lingers", func() bool { return len(r.held(t)) == 0 })
	if err := r.set.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, _ := r.In("")
	l, _ := h.LinkByName(t.Context(), "eth0")
	if err := h.DeleteAddress(t.Context(), kernel.Address{Link: l.Index, Prefix: netip.PrefixFrom(outer.Addr, 32)}); err != nil {
		t.Fatal(err)
	}
	announced := r.wire.count(outer.Addr)
	r.set.Look()
	eventually(t, "put back", func() bool { return len(r.held(t)) == 3 })
	eventually(t, "announced again", func() bool { return r.wire.count(outer.Addr) > announced })
}

func TestSweep(t *testing.T) {
	r := newRig(t, nil)
	r.put(t, outer, desired.HaVipProtocol)
	r.put(t, inside, desired.HaVipProtocol)
	r.put(t, other, 0)
	n, err := vip.Sweep(t.Context(), r.Fake, func(netns string, _ kernel.Address) bool { return netns == "" })
	if err != nil || n != 1 {
		t.Errorf("removed %d, %v", n, err)
	}
	wantHeld(t, r, "/eth0", "vpx-blue/eth2")
}
