package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func (h *handle) Neighbors(ctx context.Context) ([]kernel.Neighbor, error) {
	var all []kernel.Neighbor
	err := h.list(ctx, "Neighbors", func(s *space) error {
		all = slices.SortedFunc(maps.Values(s.neighbors), func(a, b kernel.Neighbor) int {
			return cmp.Or(cmp.Compare(a.Link, b.Link), a.Addr.Compare(b.Addr))
		})
		return nil
	})
	return all, err
}

func neighborName(n kernel.Neighbor) string { return fmt.Sprintf("%s on %d", n.Addr, n.Link) }

func (h *handle) ReplaceNeighbors(ctx context.Context, ns []kernel.Neighbor) []error {
	return h.setNeighbors(ctx, "ReplaceNeighbors", ns, kernel.HintNeighbors)
}

func (h *handle) AnswerNeighbors(ctx context.Context, ns []kernel.Neighbor) []error {
	errs := make([]error, len(ns))
	for i, n := range ns {
		if n.NBMA.IsValid() {
			errs[i] = h.setNeighbors(ctx, "AnswerNeighbors", ns[i:i+1])[0]
			continue
		}
		errs[i] = h.change(ctx, "AnswerNeighbors", "no "+neighborName(n), func(s *space) error {
			delete(s.neighbors, neighborKey{n.Link, n.Addr})
			return nil
		})
	}
	return errs
}

func (h *handle) setNeighbors(ctx context.Context, op string, ns []kernel.Neighbor, hints ...kernel.Hint) []error {
	return changeEach(ctx, h, op, ns, neighborName, func(s *space, n kernel.Neighbor) error {
		if err := n.Validate(); err != nil {
			return err
		}
		l, err := s.link(n.Link)
		if err != nil {
			return err
		}
		if l.GRE == nil {
			return fmt.Errorf("link %s has no IPv4 link-layer addresses", l.Name)
		}
		if n.State == 0 {
			n.State = kernel.NeighborPermanent
		}
		s.neighbors[neighborKey{n.Link, n.Addr}] = n
		h.fake.hint(s.name, hints...)
		return nil
	})
}

func (h *handle) DeleteNeighbors(ctx context.Context, ns []kernel.Neighbor) []error {
	return changeEach(ctx, h, "DeleteNeighbors", ns, neighborName, func(s *space, n kernel.Neighbor) error {
		delete(s.neighbors, neighborKey{n.Link, n.Addr})
		h.fake.hint(s.name, kernel.HintNeighbors)
		return nil
	})
}

func (h *handle) SetLinkARP(ctx context.Context, index int, on bool) error {
	return h.change(ctx, "SetLinkARP", fmt.Sprint(index, " ", on), func(s *space) error {
		l, err := s.link(index)
		if err != nil || l.NoARP == !on {
			return err
		}
		l.NoARP = !on
		maps.DeleteFunc(s.neighbors, func(k neighborKey, _ kernel.Neighbor) bool { return k.link == index })
		h.fake.hint(s.name, kernel.HintLinks, kernel.HintNeighbors)
		return nil
	})
}

func (h *handle) Flows(ctx context.Context) (map[netip.Addr]struct{}, error) {
	var flows map[netip.Addr]struct{}
	err := h.list(ctx, "Flows", func(s *space) error {
		flows = maps.Clone(s.flows)
		return nil
	})
	return flows, err
}

// SetFlows says between which addresses a namespace tracks connections.
func (f *Fake) SetFlows(netns string, addrs ...netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	flows := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		flows[a] = struct{}{}
	}
	f.spaces[netns].flows = flows
}

// asked is one call of NeighborRequests. Its queue takes the place of a socket's.
type asked struct {
	netns string
	ctx   context.Context //nolint:containedctx // a call that is still going on
	stop  context.CancelFunc
	in    chan kernel.NeighborRequest
}

// NeighborRequests implements kernel.Host.
func (f *Fake) NeighborRequests(ctx context.Context, name string) (<-chan kernel.NeighborRequest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(ctx, "NeighborRequests"); err != nil {
		return nil, err
	}
	if f.spaces[name] == nil {
		return nil, noNamespace(name)
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &asked{netns: name, ctx: ctx, stop: cancel, in: make(chan kernel.NeighborRequest)}
	f.asked = append(f.asked, a)
	out := make(chan kernel.NeighborRequest)
	go a.queue(out)
	return out, nil
}

func (a *asked) queue(out chan<- kernel.NeighborRequest) {
	defer close(out)
	waiting := []kernel.NeighborRequest{{}}
	for {
		var ready chan<- kernel.NeighborRequest
		var next kernel.NeighborRequest
		if len(waiting) > 0 {
			ready, next = out, waiting[0]
		}
		select {
		case <-a.ctx.Done():
			return
		case r := <-a.in:
			waiting = append(waiting, r)
		case ready <- next:
			waiting = waiting[1:]
		}
	}
}

// ask needs f.mu.
func (f *Fake) ask(netns string, r kernel.NeighborRequest) {
	f.asked = slices.DeleteFunc(f.asked, func(a *asked) bool { return a.ctx.Err() != nil })
	for _, a := range f.asked {
		if a.netns == netns {
			select {
			case a.in <- r:
			case <-a.ctx.Done():
			}
		}
	}
}

// LoseRequests tells those who follow neighbor requests that some were lost.
func (f *Fake) LoseRequests(netns string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ask(netns, kernel.NeighborRequest{})
}

// Send sends a packet by a link of a namespace to an address on it: what makes the
// kernel ask for a neighbor that it does not have.
func (f *Fake) Send(netns string, index int, to netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.spaces[netns]
	l, k := s.links[index], neighborKey{index, to}
	family := "ipv4"
	if to.Is6() {
		family = "ipv6"
	}
	if l == nil || l.NoARP || s.sysctls["net/"+family+"/neigh/"+l.Name+"/app_solicit"] == "0" || s.neighbors[k].NBMA.IsValid() {
		return
	}
	s.neighbors[k] = kernel.Neighbor{Link: index, Addr: to, State: kernel.NeighborIncomplete}
	f.ask(netns, kernel.NeighborRequest{Link: index, Addr: to})
}
