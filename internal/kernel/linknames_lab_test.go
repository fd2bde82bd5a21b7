package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/lab"
)

// othersLinks is another program that makes and renames links of a namespace.
func othersLinks(t *testing.T, h *handle) *netlink.Handle {
	t.Helper()
	var nl *netlink.Handle
	err := h.visit(func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	return nl
}

func namesAreTrue(t *testing.T, h *handle, when string) {
	t.Helper()
	got, err := h.LinkNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := h.listLinkNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %v, want %v", when, got, want)
	}
}

func dummy(name string, index int) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = name, index
	return &netlink.Dummy{LinkAttrs: attrs}
}

func TestLinkNamesAreRemembered(t *testing.T) {
	lab.Require(t)
	h := ownMachine(t).own
	links := othersLinks(t, h)
	if err := links.LinkAdd(dummy("vpx-1", 70)); err != nil {
		t.Fatal(err)
	}
	remembered := func() bool {
		t.Helper()
		names, err := h.LinkNames(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, marked := names.ByIndex[-1]
		names.ByIndex[-1] = "a mark"
		return marked
	}
	if remembered() {
		t.Error("the first call knew what it had not listed")
	}
	for range 3 {
		if !remembered() {
			t.Error("listed again, and nothing had been done to a link")
		}
	}
	if err := links.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: netlink.NewIPNet([]byte{10, 0, 0, 1}), Scope: unix.RT_SCOPE_LINK}); err != nil && !errors.Is(err, unix.ENETDOWN) {
		t.Fatal(err)
	}
	if !remembered() {
		t.Error("listed again for a route's sake")
	}
	if err := links.LinkSetName(dummy("vpx-1", 70), "vpx-2"); err != nil {
		t.Fatal(err)
	}
	if remembered() {
		t.Error("not listed again after a change")
	}
	if !remembered() {
		t.Error("not remembered after a change")
	}
}

// A link's index can be used again, by a link of any name.
func TestLinkNamesWhenAnIndexIsUsedAgain(t *testing.T) {
	lab.Require(t)
	h := ownMachine(t).own
	links := othersLinks(t, h)
	for i, name := range []string{"vpx-1", "vpx-2", "vpx-1", "vpx-1"} {
		if err := links.LinkAdd(dummy(name, 70)); err != nil {
			t.Fatal(err)
		}
		namesAreTrue(t, h, fmt.Sprintf("%s, the %d. time", name, i))
		if err := links.LinkDel(dummy(name, 70)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			namesAreTrue(t, h, name+" is gone")
		}
	}
}

// More is said than the socket keeps.
func TestLinkNamesAfterAnOverrun(t *testing.T) {
	lab.Require(t)
	h := ownMachine(t).own
	links := othersLinks(t, h)
	if err := links.LinkAdd(dummy("vpx-0", 70)); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		namesAreTrue(t, h, "before")
		for i := range 50 {
			if err := links.LinkSetName(dummy("", 70), fmt.Sprintf("vpx-%d-%d", round, i)); err != nil {
				t.Fatal(err)
			}
		}
		namesAreTrue(t, h, "after many changes")
		if err := links.LinkSetName(dummy("", 70), fmt.Sprintf("vpx-%d", round)); err != nil {
			t.Fatal(err)
		}
		namesAreTrue(t, h, "after one more")
	}
}

// A change that comes while links are listed, and is not in the list, is seen by the
// next call.
func TestLinkNamesChangeWhileTheyAreListed(t *testing.T) {
	lab.Require(t)
	h := ownMachine(t).own
	links := othersLinks(t, h)
	if err := links.LinkAdd(dummy("vpx-1", 70)); err != nil {
		t.Fatal(err)
	}
	got, err := h.linkMemo.get(h.listenToLinks, func() (LinkNames, error) {
		names, err := h.listLinkNames(t.Context())
		return names, errors.Join(err, links.LinkSetName(dummy("", 70), "vpx-2"))
	})
	if err != nil || got.ByIndex[70] != "vpx-1" {
		t.Fatal(got, err)
	}
	namesAreTrue(t, h, "renamed behind the list")
}

// Whatever has been done to links is seen, also by calls that come while others
// list.
func TestLinkNamesAreNeverStale(t *testing.T) {
	lab.Require(t)
	h := ownMachine(t).own
	links := othersLinks(t, h)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := h.LinkNames(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer readers.Wait()
	defer close(stop)
	dice := rand.New(rand.NewPCG(1, 2))
	const first, count = 100, 8
	there := map[int]bool{}
	for i := range 300 {
		index := first + dice.IntN(count)
		name := fmt.Sprintf("vpx-%d", i)
		var err error
		switch {
		case !there[index]:
			err = links.LinkAdd(dummy(name, index))
			there[index] = true
		case dice.IntN(3) == 0:
			err = links.LinkDel(dummy("", index))
			there[index] = false
		default:
			err = links.LinkSetName(dummy("", index), name)
		}
		if err != nil {
			t.Fatal(err)
		}
		namesAreTrue(t, h, fmt.Sprintf("step %d", i))
	}
}
