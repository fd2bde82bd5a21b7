package meter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// namespaces returns those that attachments are in, and always the agent's
// own: its filters drop what concerns no attachment.
func namespaces(places []Place) []Namespace {
	all := []Namespace{{}}
	for _, p := range places {
		if p.Netns != "" {
			all = append(all, Namespace{Netns: p.Netns, Attachment: p.Attachment})
		}
	}
	return all
}

// count reads the cheap counters and puts them together with what the last
// listing found.
func (m *Meter) count(ctx context.Context, places []Place, known map[string]Namespace) Sample {
	var s Sample
	var errs []error
	links := map[string]map[string]kernel.LinkStats{}
	for _, ns := range namespaces(places) {
		stats, err := m.links(ctx, ns.Netns)
		if errors.Is(err, kernel.ErrNotFound) {
			continue // not made yet, or gone
		}
		errs = append(errs, err)
		links[ns.Netns] = stats
		if ns.Entries, ns.Limit, err = m.occupancy(ctx, ns.Netns); err != nil {
			errs = append(errs, err)
		}
		if k, ok := known[ns.Netns]; ok {
			ns.Drops, ns.Sources, ns.Busiest = k.Drops, k.Sources, k.Busiest
		}
		s.Namespaces = append(s.Namespaces, ns)
	}
	m.report(errors.Join(errs...))
	for _, p := range places {
		t := Traffic{Attachment: p.Attachment, Connections: -1}
		if v, ok := links[p.Netns][p.Tunnel]; ok {
			t.Tunnel = &v
		}
		if v, ok := links[p.Netns][p.ENI]; ok && p.ENI != "" {
			t.ENI = &v
		}
		if n, ok := known[p.Netns]; ok {
			t.Connections = n.connections[p.Attachment]
		}
		s.Attachments = append(s.Attachments, t)
	}
	return s
}

func (m *Meter) links(ctx context.Context, netns string) (map[string]kernel.LinkStats, error) {
	h, err := m.opts.Host.In(netns)
	if err != nil {
		return nil, err
	}
	names, err := h.LinkNames(ctx)
	if err != nil {
		return nil, err
	}
	stats, err := h.LinkStats(ctx)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]kernel.LinkStats, len(stats))
	for index, v := range stats {
		if name, ok := names.ByIndex[index]; ok {
			byName[name] = v
		}
	}
	return byName, nil
}

func (m *Meter) occupancy(ctx context.Context, netns string) (entries, limit int, err error) {
	t, err := m.opts.Open(netns)
	if err != nil {
		return 0, 0, err
	}
	entries, limit, err = t.Occupancy(ctx)
	return entries, limit, errors.Join(err, t.Close())
}

// listAll lists the connections and the filters' counters of all namespaces.
func (m *Meter) listAll(ctx context.Context, places []Place) map[string]Namespace {
	all := map[string]Namespace{}
	grown := growth{}
	for _, ns := range namespaces(places) {
		err := errors.Join(m.list(ctx, &ns, places, grown), m.drops(ctx, &ns, places))
		if err != nil && ctx.Err() == nil && !errors.Is(err, kernel.ErrNotFound) {
			m.opts.Log.Debug("connections or drops not counted", "netns", ns.Netns, "err", err)
		}
		all[ns.Netns] = ns
	}
	m.growth = grown
	return all
}

func (m *Meter) list(ctx context.Context, ns *Namespace, places []Place, grown growth) error {
	t, err := m.opts.Open(ns.Netns)
	if err != nil {
		return err
	}
	owner := Owners(ns.Netns, places)
	used := usage{}
	ns.connections = map[string]int{}
	err = t.Dump(ctx, 0, func(e *conntrack.Entry) {
		name, ok := owner.Of(e)
		if !ok {
			return
		}
		ns.connections[name]++
		if e.HasPorts() && e.Translated() {
			used.add(name, e)
		}
	})
	ns.Sources, ns.Busiest = used.sum(ns.Netns, m.now(), m.growth, grown)
	return errors.Join(err, t.Close())
}

// drops adds what the guard on the ENI has dropped: what source NAT missed.
func (m *Meter) drops(ctx context.Context, ns *Namespace, places []Place) error {
	drops := map[string]uint64{}
	var errs []error
	if m.opts.Drops != nil {
		counted, err := m.opts.Drops(ctx, ns.Netns)
		errs = append(errs, err)
		for reason, n := range counted {
			drops[reason] += n
		}
	}
	i := slices.IndexFunc(places, func(p Place) bool { return p.Netns == ns.Netns && p.ENI != "" })
	if i >= 0 {
		n, err := m.guard(ctx, ns.Netns, places[i].ENI)
		if err == nil {
			drops[NoSourceNAT] += n
		} else if !errors.Is(err, kernel.ErrNotFound) {
			errs = append(errs, fmt.Errorf("guard of %s: %w", places[i].ENI, err))
		}
	}
	ns.Drops = drops
	return errors.Join(errs...)
}

// NoSourceNAT is the reason of packets toward a user VPC whose source is not
// ours to use: a guard behind all translation drops them.
const NoSourceNAT = "no_source_nat"

func (m *Meter) guard(ctx context.Context, netns, eni string) (uint64, error) {
	h, err := m.opts.Host.In(netns)
	if err != nil {
		return 0, err
	}
	l, err := h.LinkByName(ctx, eni)
	if err != nil {
		return 0, err
	}
	return h.EgressDrops(ctx, l.Index)
}
