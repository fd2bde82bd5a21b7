package election

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
)

const (
	// outOfSync is how long the kernel may differ from the plan before that
	// counts: a change takes its time, and so does a repair.
	outOfSync = 5 * time.Second
	// wedged is how long the reconcile loop may take for a step.
	wedged = 15 * time.Second
	// newcomer is how long an attachment that has just come may be without its
	// interface: it is being moved, or is on its way to this machine.
	newcomer = 30 * time.Second
)

// judge looks at what the elections' tracks are about, and reports it; at links and
// addresses only if it is told to, or has not yet. calm says that all is well.
func (m *Manager) judge(ctx context.Context, links bool) (calm bool) {
	health := m.opts.Health()
	calm = health.Ready && health.InSync
	for _, i := range m.all() {
		e := i.current()
		if err := i.drain(ctx, e.Cordoned); err != nil {
			calm = false
			continue // it has ended, or the context has
		}
		behind := m.opts.Copied != nil && !m.opts.Copied(i.name)
		if err := i.behind(ctx, behind); err != nil {
			calm = false
			continue
		}
		calm = calm && (!behind || i.node.Status().State == ha.Active)
		up := map[string]bool{trackReady: health.Ready}
		for _, t := range e.Tracks {
			switch t.Name {
			case "eni":
				up[t.Name] = i.last(t.Name, links, func() bool { return m.enisUp(ctx, i, e) })
			case "underlay":
				up[t.Name] = i.last(t.Name, links, func() bool { return m.underlayUp(ctx, e) })
			case "sync":
				up[t.Name] = i.inSync(health)
			case "probe":
				up[t.Name] = i.probes.allUp()
			default:
				up[t.Name] = true // of a newer release: it cannot be looked at
			}
		}
		if i.report(ctx, up) {
			kick(m.tell)
		}
		for _, well := range up {
			calm = calm && well
		}
	}
	return calm
}

// drain posts a change of the operator's mind.
func (i *instance) drain(ctx context.Context, on bool) error {
	i.mu.Lock()
	same := i.drained == on
	i.mu.Unlock()
	if same {
		return nil
	}
	if err := i.node.Post(ctx, ha.Drain{On: on}); err != nil {
		return err
	}
	i.mu.Lock()
	i.drained = on
	i.mu.Unlock()
	return nil
}

// behind posts whether the active one's connections are still to be copied.
func (i *instance) behind(ctx context.Context, on bool) error {
	if s := i.node.Status(); s.State == ha.Active || s.Behind == on {
		return nil
	}
	return i.node.Post(ctx, ha.Behind{On: on})
}

// report posts what has changed, and tells whether anything has. A track is down
// until it is reported; ready comes last, when the others are known.
func (i *instance) report(ctx context.Context, up map[string]bool) (changed bool) {
	post := func(name string) {
		i.mu.Lock()
		before, known := i.tracks[name]
		i.mu.Unlock()
		if known && before == up[name] || i.node.Post(ctx, ha.Report{Name: name, Up: up[name]}) != nil {
			return
		}
		changed = true
		i.mu.Lock()
		i.tracks[name] = up[name]
		i.mu.Unlock()
	}
	for name := range up {
		if name != trackReady {
			post(name)
		}
	}
	post(trackReady)
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range i.tracks {
		if _, wanted := up[name]; !wanted {
			delete(i.tracks, name) // should it come again, the machine will have forgotten
		}
	}
	return changed
}

// inSync tells whether the kernel holds what is planned, or has not for a
// moment only, and whether the loop that sees to it goes on.
func (i *instance) inSync(h Health) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	switch {
	case now.Sub(h.Alive) > wedged:
		return false
	case h.InSync:
		i.outSince = time.Time{}
		return true
	case i.outSince.IsZero():
		i.outSince = now
	}
	return now.Sub(i.outSince) < outOfSync
}

func (m *Manager) underlayUp(ctx context.Context, e desired.Election) bool {
	l, ok := m.link(ctx, "", e.Link)
	if !ok || !l.Up || !l.Lower {
		return false
	}
	h, err := m.opts.Host.In("")
	if err != nil {
		return false
	}
	held, err := h.Addresses(ctx)
	if err != nil {
		return false
	}
	for _, a := range held {
		if a.Link == l.Index && a.Prefix.Addr() == e.Local {
			return true
		}
	}
	return false
}

// enisUp tells whether every attachment's interface is there and has a carrier.
// One that has never been so does not count for a while.
func (m *Manager) enisUp(ctx context.Context, i *instance, e desired.Election) bool {
	now := time.Now()
	next := map[string]sight{}
	all := true
	see := func(attachment string, up bool) {
		i.mu.Lock()
		s, known := i.enis[attachment]
		i.mu.Unlock()
		if !known {
			s.since = now
		}
		s.ever = s.ever || up
		next[attachment] = s
		if !up && (s.ever || now.Sub(s.since) > newcomer) {
			all = false
		}
	}
	for _, name := range e.Missing {
		see(name, false)
	}
	for _, v := range e.HaVips {
		if v.Attachment != "" {
			l, ok := m.link(ctx, v.Netns, v.Link)
			see(v.Attachment, ok && l.Up && l.Lower)
		}
	}
	i.mu.Lock()
	i.enis = next
	i.mu.Unlock()
	return all
}

// last returns what was last reported of a track, or looks if that is wanted, or
// nothing has been.
func (i *instance) last(track string, wanted bool, look func() bool) bool {
	i.mu.Lock()
	up, known := i.tracks[track]
	i.mu.Unlock()
	if wanted || !known {
		return look()
	}
	return up
}

// Yield hands a group's active role over and keeps this node from taking it
// back, until another hands it over or fails, or this agent starts anew. It
// returns when the adverts that say so have been sent.
func (m *Manager) Yield(ctx context.Context, group string) error {
	m.mu.Lock()
	i := m.instances[group]
	m.mu.Unlock()
	if i == nil {
		return fmt.Errorf("group %q: %w", group, ErrUnknown)
	}
	if s := i.node.Status(); s.State != ha.Active {
		active := "nobody is heard"
		if s.Active.IsValid() {
			active = "the active one is " + nameOf(i.current(), s.Active)
		}
		return fmt.Errorf("group %q: %w; %s", group, ErrNotActive, active)
	}
	return i.node.Post(ctx, ha.Yield{})
}

// ErrNotActive is for what only the active node can do.
var ErrNotActive = errors.New("this node is not active")

// nameOf returns the member with an address, or the address.
func nameOf(e desired.Election, addr netip.Addr) string {
	for _, p := range e.Peers {
		if p.Addr == addr {
			return p.Node
		}
	}
	return addr.String()
}
