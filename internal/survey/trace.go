package survey

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/probe"
)

// sendTime bounds how long the function host sends the probe again and again; the
// proxy watches a little longer than that.
const sendTime = 2 * time.Second

// WatchTime is for how long a proxy watches for the probe.
const WatchTime = sendTime + time.Second

// Walk says what this function host does with the flow's packet, and which nodes
// may be the proxy that gets it.
func (s *Surveyor) Walk(ctx context.Context, f probe.Flow) (*diagnose.Side, error) {
	side, _ := s.look(ctx).walk(f)
	return side, nil
}

// walk returns false if no attachment takes the packet.
func (l *look) walk(f probe.Flow) (*diagnose.Side, bool) {
	side := &diagnose.Side{Node: l.opts.Name}
	fp, mark, ok := l.match(f, side)
	if ok {
		side.Attachment, side.Tunnel, side.Table, side.Mark = fp.Attachment, fp.Link, fp.Table, mark
		l.walkHost(side, fp, f)
		side.Proxies = l.proxies(fp.Attachment)
	}
	return side, ok
}

// proxies are the members of the groups that serve an attachment.
func (l *look) proxies(attachment string) []string {
	var names []string
	a := l.set.Attachment(attachment)
	if a == nil {
		return nil
	}
	for _, g := range l.set.Groups {
		if !a.ServedBy(g.ObjectName()) {
			continue
		}
		for _, m := range g.Spec.Members {
			names = append(names, m.Node)
		}
	}
	return names
}

// Send walks what this function host does with the flow's packet, sends it as the
// pod would, and says where it was seen.
func (s *Surveyor) Send(ctx context.Context, f probe.Flow) (*diagnose.Side, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	l := s.look(ctx)
	side, ok := l.walk(f)
	if ok {
		if err := l.send(side, f); err != nil {
			return nil, err
		}
	}
	side.Evidence = s.evidence(ctx, tracePings, 0)
	return side, nil
}

// tracePings is enough to tell a way from none. Tunnels are judged by the probe.
const tracePings = 3

func (l *look) send(side *diagnose.Side, f probe.Flow) error {
	c, err := probe.Watch(l.ctx, l.opts.Host, "", f)
	if err != nil {
		return err
	}
	err = probe.Send(l.ctx, l.opts.Host, c, sendTime)
	seen, closeErr := c.Close(l.ctx, l.opts.Host)
	side.Seen = sightings(seen, l.e.Time)
	return errors.Join(err, closeErr)
}

// match finds the attachment that takes a flow, as the steering map does: the
// longest source wins, and among those the longest destination.
func (l *look) match(f probe.Flow, side *diagnose.Side) (plan.Footprint, uint32, bool) {
	var best *desired.SteerKey
	var mark uint32
	for k, v := range l.plan.State.Steers {
		if k.Netns != "" || !k.Src.Contains(f.From) || !k.Dst.Contains(f.To.Addr()) {
			continue
		}
		if best == nil || k.Src.Bits() > best.Src.Bits() || k.Src.Bits() == best.Src.Bits() && k.Dst.Bits() > best.Dst.Bits() {
			best, mark = &k, v.Mark
		}
	}
	var table uint32
	for r := range l.plan.State.Rules {
		if best != nil && r.Netns == "" && r.Mark == mark {
			table, side.Rule = r.Table, r.Priority
		}
	}
	for _, fp := range l.footprints {
		if fp.Role != intent.RoleFunction {
			continue
		}
		here := slices.ContainsFunc(fp.CIDRs, func(p netip.Prefix) bool { return p.Contains(f.To.Addr()) })
		switch {
		case best != nil && fp.Table == table, best == nil && fp.HostWide && here:
			return fp, mark, true
		case here, slices.ContainsFunc(fp.Steers, func(k desired.SteerKey) bool { return k.Src.Contains(f.From) }):
			side.Near = append(side.Near, fp.Attachment)
		}
	}
	return plan.Footprint{}, 0, false
}

// walkHost asks the kernel what it would do.
func (l *look) walkHost(side *diagnose.Side, fp plan.Footprint, f probe.Flow) {
	side.Back = l.lookup("", kernel.Packet{To: f.From}, "")
	p := kernel.Packet{From: f.From, To: f.To.Addr(), Mark: side.Mark, In: side.Back.Link}
	if fp.HostWide {
		p = kernel.Packet{To: f.To.Addr()}
	}
	side.Lookup = l.lookup("", p, fp.Link)
	if side.Lookup.NBMA.IsValid() {
		side.Underlay = l.lookup("", kernel.Packet{To: side.Lookup.NBMA}, "")
	}
	for _, s := range l.plan.State.NAT[desired.NATKey{}].SNAT {
		side.Translated = s.To
	}
}

// lookup is a routing decision; for the tunnel device with the neighbor behind it.
func (l *look) lookup(netns string, p kernel.Packet, tunnel string) diagnose.Lookup {
	d, err := kernel.Lookup(l.ctx, l.opts.Host, netns, p)
	if err != nil {
		return diagnose.Lookup{Error: err.Error()}
	}
	out := diagnose.Lookup{Link: d.Link, Via: d.Via, Table: d.Table}
	next := d.Via
	if !next.IsValid() {
		next = p.To
	}
	if tunnel != "" && d.Link == tunnel {
		out.NBMA = l.neighbor(netns, tunnel, next)
	}
	return out
}

// neighbor is where a tunnel's neighbor is.
func (l *look) neighbor(netns, tunnel string, a netip.Addr) netip.Addr {
	h, err := l.opts.Host.In(netns)
	if err != nil {
		return netip.Addr{}
	}
	link, err := h.LinkByName(l.ctx, tunnel)
	if err != nil {
		return netip.Addr{}
	}
	all, err := h.Neighbors(l.ctx)
	if err != nil {
		return netip.Addr{}
	}
	for _, n := range all {
		if n.Link == link.Index && n.Addr == a {
			return n.NBMA
		}
	}
	return netip.Addr{}
}

// Watch watches on a proxy for the probe of an attachment, and says where it was
// seen and what the namespace would do with it.
func (s *Surveyor) Watch(ctx context.Context, attachment string, f probe.Flow) (*diagnose.Side, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	l := s.look(ctx)
	i := slices.IndexFunc(l.footprints, func(fp plan.Footprint) bool {
		return fp.Role == intent.RoleProxy && (fp.Attachment == attachment || attachment == "" && slices.ContainsFunc(fp.CIDRs, func(p netip.Prefix) bool { return p.Contains(f.To.Addr()) }))
	})
	if i < 0 {
		return nil, fmt.Errorf("node %s is no proxy of attachment %q", s.opts.Name, attachment)
	}
	fp := l.footprints[i]
	side := &diagnose.Side{Node: s.opts.Name, Attachment: fp.Attachment, Netns: fp.Netns, Tunnel: fp.Link, ENI: fp.ENI}
	seen, err := l.watch(fp, f)
	if err != nil {
		return nil, err
	}
	side.Seen = sightings(seen, l.e.Time)
	l.walkProxy(side, fp, f)
	side.Evidence = s.evidence(ctx, tracePings, 0)
	return side, nil
}

func (l *look) watch(fp plan.Footprint, f probe.Flow) ([]probe.Sighting, error) {
	var captures []*probe.Capture
	var errs []error
	for _, netns := range []string{"", fp.Netns} {
		c, err := probe.Watch(l.ctx, l.opts.Host, netns, f)
		if err != nil {
			if !errors.Is(err, kernel.ErrNotFound) { // its absence is a finding
				errs = append(errs, err)
			}
			continue
		}
		captures = append(captures, c)
	}
	if len(errs) == 0 {
		t := time.NewTimer(WatchTime)
		defer t.Stop()
		select {
		case <-l.ctx.Done():
		case <-t.C:
		}
	}
	var all []probe.Sighting
	for _, c := range captures {
		seen, err := c.Close(l.ctx, l.opts.Host)
		errs = append(errs, err)
		all = append(all, seen...)
	}
	return all, errors.Join(errs...)
}

// walkProxy asks the kernel what the attachment's namespace would do.
func (l *look) walkProxy(side *diagnose.Side, fp plan.Footprint, f probe.Flow) {
	var host netip.Addr // as the packet arrived
	for _, s := range side.Seen {
		if s.Kind == diagnose.Request && !s.Out && !s.GRE && s.Device == fp.Link {
			host = s.From.Addr()
		}
	}
	p := kernel.Packet{To: f.To.Addr()}
	if host.IsValid() {
		p.From, p.In = host, fp.Link
		side.Back = l.lookup(fp.Netns, kernel.Packet{To: host}, fp.Link)
		if side.Back.NBMA.IsValid() {
			side.Underlay = l.lookup("", kernel.Packet{To: side.Back.NBMA}, "")
		}
	}
	side.Lookup = l.lookup(fp.Netns, p, "")
	for _, s := range l.plan.State.NAT[desired.NATKey{Netns: fp.Netns}].SNAT {
		side.Translated = s.To
	}
	for _, s := range side.Seen { // what a masquerade chose
		if s.Kind == diagnose.Request && s.Out && s.Device == fp.ENI {
			side.Translated = s.From.Addr()
		}
	}
	next := side.Lookup.Via
	if !next.IsValid() {
		next = f.To.Addr()
	}
	if fp.ENI != "" && side.Lookup.Link == fp.ENI {
		r, err := kernel.EthernetNeighbor(l.ctx, l.opts.Host, fp.Netns, fp.ENI, next)
		if err == nil && r == kernel.Unresolved {
			side.Silent = next
		}
	}
}

// sightings puts what was seen into the report's form.
func sightings(seen []probe.Sighting, since time.Time) []diagnose.Sighting {
	out := make([]diagnose.Sighting, 0, len(seen))
	for _, s := range seen {
		out = append(out, diagnose.Sighting{
			Netns: s.Netns, Device: s.Device, Out: s.Out, GRE: s.GRE, Outer: s.Outer, From: s.From, To: s.To,
			Kind: string(s.Kind), Code: s.Code, Size: s.Size, Micros: s.At.Sub(since).Microseconds(),
		})
	}
	return out
}
