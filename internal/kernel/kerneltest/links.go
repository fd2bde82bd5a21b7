package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// link is a network interface and what sits on it alone.
type link struct {
	kernel.Link
	underlay *space // of a GRE device: where it was made
	guard    *guard
	stats    kernel.LinkStats
}

type guard struct {
	sources []netip.Addr
	drops   uint64
}

// Plug adds a link to a namespace as hardware, or another program, would: l.Index
// is assigned and returned. A link without Type is physical.
func (f *Fake) Plug(netns string, l kernel.Link) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.MTU == 0 {
		l.MTU = 1500
	}
	index := f.spaces[netns].plug(&link{Link: l}).Index
	f.hint(netns, kernel.HintLinks)
	return index
}

// CountDrops adds n packets to what the guard on a link's egress has dropped.
func (f *Fake) CountDrops(netns string, index int, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spaces[netns].links[index].guard.drops += n
}

// CountTraffic sets what has passed through a link.
func (f *Fake) CountTraffic(netns string, index int, stats kernel.LinkStats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spaces[netns].links[index].stats = stats
}

// plug gives a link an index and its sysctls.
func (s *space) plug(l *link) *link {
	if l.Index == 0 || s.links[l.Index] != nil {
		for s.links[s.nextIndex] != nil {
			s.nextIndex++
		}
		l.Index = s.nextIndex
	}
	s.links[l.Index] = l
	s.addLinkSysctls(l.Name)
	return l
}

func (s *space) sorted() []*link {
	return slices.SortedFunc(maps.Values(s.links), func(a, b *link) int { return cmp.Compare(a.Index, b.Index) })
}

func (s *space) named(name string) *link {
	for _, l := range s.links {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// link returns ErrNotFound for an index that does not exist.
func (s *space) link(index int) (*link, error) {
	l := s.links[index]
	if l == nil {
		return nil, fmt.Errorf("link %d: %w", index, kernel.ErrNotFound)
	}
	return l, nil
}

// copy hides the fake's own memory.
func (l *link) copy() kernel.Link {
	c := l.Link
	if c.GRE != nil {
		gre := *c.GRE
		c.GRE = &gre
	}
	return c
}

func (h *handle) Links(ctx context.Context) ([]kernel.Link, error) {
	var all []kernel.Link
	err := h.list(ctx, "Links", func(s *space) error {
		for _, l := range s.sorted() {
			all = append(all, l.copy())
		}
		return nil
	})
	return all, err
}

func (h *handle) LinkNames(ctx context.Context) (kernel.LinkNames, error) {
	names := kernel.LinkNames{ByIndex: map[int]string{}, ByName: map[string]int{}}
	err := h.list(ctx, "LinkNames", func(s *space) error {
		for _, l := range s.links {
			names.ByIndex[l.Index], names.ByName[l.Name] = l.Name, l.Index
		}
		return nil
	})
	return names, err
}

func (h *handle) LinkStats(ctx context.Context) (map[int]kernel.LinkStats, error) {
	all := map[int]kernel.LinkStats{}
	err := h.list(ctx, "LinkStats", func(s *space) error {
		for _, l := range s.links {
			all[l.Index] = l.stats
		}
		return nil
	})
	return all, err
}

func (h *handle) LinkByName(ctx context.Context, name string) (kernel.Link, error) {
	var found kernel.Link
	err := h.list(ctx, "LinkByName", func(s *space) error {
		l := s.named(name)
		if l == nil {
			return fmt.Errorf("link %s: %w", name, kernel.ErrNotFound)
		}
		found = l.copy()
		return nil
	})
	return found, err
}

func (h *handle) CreateGRE(ctx context.Context, name string, g kernel.GRE, mtu int) error {
	return h.change(ctx, "CreateGRE", name, func(s *space) error {
		if !g.Local.Is4() {
			return fmt.Errorf("create GRE device %s: the local address must be IPv4", name)
		}
		if !g.Keyed {
			g.Key = 0
		}
		if s.named(name) != nil || h.fake.slotTaken(s, g) {
			return fmt.Errorf("create GRE device %s: %w", name, kernel.ErrExists)
		}
		g.KeysDiffer, g.Seq, g.Csum, g.Remote = false, false, false, netip.Addr{}
		if mtu == 0 {
			mtu = 1476 // of an underlay of 1500 bytes: IP and GRE headers less
			if g.Keyed {
				mtu = 1472
			}
		}
		s.plug(&link{
			Link:     kernel.Link{Name: name, Type: "gre", MTU: mtu, NoARP: true, GRE: &g},
			underlay: s,
		})
		h.fake.hint(s.name, kernel.HintLinks)
		return nil
	})
}

// slotTaken looks for a GRE device with the same key on the same underlay, whichever
// namespace it has been moved to.
func (f *Fake) slotTaken(underlay *space, g kernel.GRE) bool {
	for _, s := range f.spaces {
		for _, l := range s.links {
			if l.underlay == underlay && l.GRE.Local == g.Local && l.GRE.Keyed == g.Keyed &&
				l.GRE.Key == g.Key && l.GRE.Underlay == g.Underlay {
				return true
			}
		}
	}
	return false
}

func (h *handle) DeleteLink(ctx context.Context, index int) error {
	return h.change(ctx, "DeleteLink", fmt.Sprint(index), func(s *space) error {
		l := s.links[index]
		if l == nil {
			return nil
		}
		if l.Type == "" {
			return fmt.Errorf("link %d: delete: %w", index, kernel.ErrNotSupported)
		}
		h.fake.unplug(s, l)
		return nil
	})
}

// unplug takes a link out of a namespace, and all that depends on it.
func (f *Fake) unplug(s *space, l *link) {
	s.dropLink(l)
	delete(s.links, l.Index)
	s.removeLinkSysctls(l.Name)
	f.hint(s.name, kernel.HintLinks, kernel.HintEgress, kernel.HintAddresses, kernel.HintNeighbors, kernel.HintRoutes)
}

// dropLink removes what a link takes along when it leaves its namespace.
func (s *space) dropLink(l *link) {
	s.linkDown(l)
	s.addresses = slices.DeleteFunc(s.addresses, func(a kernel.Address) bool { return a.Link == l.Index })
	l.guard = nil
}

// linkDown removes what a link that is set down takes along: neighbors, even
// permanent ones, routes, and IPv6 addresses (net.ipv6.conf.*.keep_addr_on_down
// is 0 by default).
func (s *space) linkDown(l *link) {
	l.Up, l.Lower = false, false
	maps.DeleteFunc(s.neighbors, func(k neighborKey, _ kernel.Neighbor) bool { return k.link == l.Index })
	s.routes = slices.DeleteFunc(s.routes, func(r kernel.Route) bool { return r.Link == l.Index && r.Nexthop == 0 })
	for _, n := range slices.Collect(maps.Values(s.nexthops)) {
		if n.Link == l.Index && len(n.Members) == 0 {
			s.dropNexthop(n.ID)
		}
	}
	s.addresses = slices.DeleteFunc(s.addresses, func(a kernel.Address) bool {
		return a.Link == l.Index && a.Prefix.Addr().Is6()
	})
}

func (h *handle) SetLinkName(ctx context.Context, index int, name string) error {
	return h.change(ctx, "SetLinkName", fmt.Sprint(index, " ", name), func(s *space) error {
		l, err := s.link(index)
		if err != nil || l.Name == name {
			return err
		}
		if s.named(name) != nil {
			return fmt.Errorf("link %d: rename to %s: %w", index, name, kernel.ErrExists)
		}
		if l.Up { // allowed since Linux 6.2 only
			return fmt.Errorf("link %d: rename to %s: %w", index, name, unix.EBUSY)
		}
		s.renameLinkSysctls(l.Name, name)
		l.Name = name
		h.fake.hint(s.name, kernel.HintLinks)
		return nil
	})
}

func (h *handle) SetLinkMTU(ctx context.Context, index, mtu int) error {
	return h.setLink(ctx, "SetLinkMTU", index, fmt.Sprint(mtu), func(l *link) { l.MTU = mtu })
}

func (h *handle) SetLinkAlias(ctx context.Context, index int, alias string) error {
	return h.setLink(ctx, "SetLinkAlias", index, alias, func(l *link) { l.Alias = alias })
}

func (h *handle) setLink(ctx context.Context, op string, index int, value string, f func(*link)) error {
	return h.change(ctx, op, fmt.Sprint(index, " ", value), func(s *space) error {
		l, err := s.link(index)
		if err != nil {
			return err
		}
		f(l)
		h.fake.hint(s.name, kernel.HintLinks)
		return nil
	})
}

func (h *handle) SetLinkUp(ctx context.Context, index int, up bool) error {
	return h.change(ctx, "SetLinkUp", fmt.Sprint(index, " ", up), func(s *space) error {
		l, err := s.link(index)
		if err != nil || l.Up == up {
			return err
		}
		if up {
			l.Up, l.Lower = true, true
			h.fake.hint(s.name, kernel.HintLinks)
			return nil
		}
		s.linkDown(l)
		h.fake.hint(s.name, kernel.HintLinks, kernel.HintAddresses, kernel.HintNeighbors, kernel.HintRoutes)
		return nil
	})
}

func (h *handle) MoveLink(ctx context.Context, index int, netns string) error {
	return h.change(ctx, "MoveLink", fmt.Sprint(index, " to ", netns), func(s *space) error {
		l, err := s.link(index)
		if err != nil {
			return err
		}
		target := h.fake.spaces[netns]
		if target == nil {
			return fmt.Errorf("link %d: move: %w", index, noNamespace(netns))
		}
		return h.fake.move(s, l, target)
	})
}

// move needs f.mu. The index stays if it is free in the other namespace.
func (f *Fake) move(from *space, l *link, to *space) error {
	if from == to {
		return nil
	}
	if to.named(l.Name) != nil {
		return fmt.Errorf("link %d: move to network namespace %q, which has a link %s: %w", l.Index, to.name, l.Name, kernel.ErrExists)
	}
	f.unplug(from, l)
	to.plug(l)
	f.hint(to.name, kernel.HintLinks)
	return nil
}
