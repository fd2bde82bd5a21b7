package survey

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/echo"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
)

// tunnels measures the ways through the tunnels, at most maxPeers of them.
func (l *look) tunnels(packets int) ([]diagnose.Tunnel, error) {
	if packets == 0 {
		return nil, nil
	}
	links := map[desired.LinkKey]plan.Footprint{}
	for _, f := range l.footprints {
		links[desired.LinkKey{Netns: f.Netns, Name: f.Link}] = f
	}
	var ends []desired.NeighborKey
	for k, v := range l.plan.State.Neighbors {
		if _, ok := links[desired.LinkKey{Netns: k.Netns, Name: k.Link}]; ok && v.NBMA.Is4() {
			ends = append(ends, k)
		}
	}
	slices.SortFunc(ends, func(a, b desired.NeighborKey) int {
		return cmp.Or(cmp.Compare(a.Netns, b.Netns), cmp.Compare(a.Link, b.Link), a.Addr.Compare(b.Addr))
	})
	var errs []error
	if len(ends) > maxPeers {
		errs = append(errs, fmt.Errorf("%d of %d ways were measured", maxPeers, len(ends)))
		ends = ends[:maxPeers]
	}
	out := make([]diagnose.Tunnel, len(ends))
	failed := make([]error, len(ends))
	turns := make(chan struct{}, parallel)
	var running sync.WaitGroup
	for i, k := range ends {
		f := links[desired.LinkKey{Netns: k.Netns, Name: k.Link}]
		nbma := l.plan.State.Neighbors[k].NBMA
		out[i] = diagnose.Tunnel{Attachment: f.Attachment, Node: l.nodeAt(nbma), Address: nbma, Idle: l.idle(f), There: -1}
		if out[i].Idle != "" {
			continue
		}
		running.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			failed[i] = l.tunnel(&out[i], k, packets)
		})
	}
	running.Wait()
	return out, errors.Join(append(errs, failed...)...)
}

// idle says why nothing can be sent through an attachment's tunnel; "" if it can:
// only the active proxy has the address that tunnels of its group come from.
func (l *look) idle(f plan.Footprint) string {
	a := l.set.Attachment(f.Attachment)
	if a == nil || f.Role != intent.RoleProxy {
		return ""
	}
	group := l.set.GroupOn(a, l.opts.Name)
	if group == nil || !group.Spec.HaVip.IsValid() {
		return ""
	}
	for _, g := range l.e.Groups {
		if g.Name == group.ObjectName() && g.State == "Active" {
			return ""
		}
	}
	return "this proxy is not the active one of group " + group.ObjectName()
}

// tunnel measures one way. That the device is not there is a difference, and no
// failure.
func (l *look) tunnel(t *diagnose.Tunnel, k desired.NeighborKey, packets int) error {
	h, err := l.opts.Host.In(k.Netns)
	var link kernel.Link
	if err == nil {
		link, err = h.LinkByName(l.ctx, k.Link)
	}
	if errors.Is(err, kernel.ErrNotFound) {
		t.Idle = "the tunnel is not there"
		return nil
	}
	var p echo.Path
	if err == nil {
		p, err = echo.Measure(l.ctx, l.opts.Host, k.Netns, link, t.Address, packets)
	}
	if err != nil {
		t.Idle = "it could not be measured"
		return err
	}
	t.Sent, t.There, t.Back, t.RTT = p.Sent, p.There, p.Back, p.RTT
	t.MTUThere, t.MTUBack, t.Needed = p.MTUThere, p.MTUBack, link.MTU
	return nil
}
