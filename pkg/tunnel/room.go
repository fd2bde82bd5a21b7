package tunnel

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
)

// room is a Responder's work in one namespace, in one goroutine.
type room struct {
	r       *Responder
	netns   string
	names   map[int]string      // of tunnel devices, by index
	used    map[entry]time.Time // when an entry was last seen in use
	present int64               // entries counted in the Responder's stats
	window  time.Time           // begin of the current second
	looked  int                 // requests in it
	unknown int                 // of these, for unknown addresses
	failing bool                // the last answers were not taken
}

// entry is a neighbor of the kernel.
type entry struct {
	link int
	addr netip.Addr
}

func newRoom(r *Responder, netns string) *room {
	return &room{r: r, netns: netns, used: map[entry]time.Time{}}
}

// serve answers until the requests end.
func (m *room) serve(ctx context.Context, requests <-chan kernel.NeighborRequest) {
	defer m.count(0)
	// Often enough that an entry ages by a quarter too much at most.
	sweep := time.NewTicker(max(m.r.opts.Age/4, followRetry))
	defer sweep.Stop()
	batch := make([]kernel.NeighborRequest, 0, batchSize)
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			m.report(ctx, m.sweep(ctx))
		case q, open := <-requests:
			if !open {
				return
			}
			batch = append(batch[:0], q)
			for more := true; more && len(batch) < batchSize; {
				select {
				case q, open := <-requests:
					if !open {
						return
					}
					batch = append(batch, q)
				default:
					more = false
				}
			}
			m.report(ctx, m.answer(ctx, batch))
			m.pace(ctx, len(batch))
		}
	}
}

// report logs the first failure and the recovery. A link or a namespace that is
// gone is no failure.
func (m *room) report(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil || errors.Is(err, kernel.ErrNotFound):
	case err != nil && !m.failing:
		m.failing = true
		m.r.opts.Log.Error("neighbors cannot be answered", "netns", m.netns, "err", err)
	case err == nil && m.failing:
		m.failing = false
		m.r.opts.Log.Info("neighbors are answered again", "netns", m.netns)
	}
}

// pace waits for the next second when this one's requests are used up.
func (m *room) pace(ctx context.Context, n int) {
	now := time.Now()
	if now.Sub(m.window) >= time.Second {
		m.window, m.looked, m.unknown = now, 0, 0
	}
	m.looked += n
	// A tenth of the rate goes in a tenth of the second: known hosts wait
	// for no longer than that.
	if due := time.Duration(m.looked) * time.Second / requestRate; due > now.Sub(m.window)+100*time.Millisecond {
		wait(ctx, due-now.Sub(m.window))
	}
}

// answer answers a batch. Zero requests stand for what was lost.
func (m *room) answer(ctx context.Context, batch []kernel.NeighborRequest) error {
	h, err := m.r.opts.Host.In(m.netns)
	if err != nil {
		return err
	}
	asked := make(map[entry]bool, len(batch))
	for _, q := range batch {
		if q.Link != 0 {
			asked[entry{q.Link, q.Addr}] = true
			continue
		}
		open, err := h.Neighbors(ctx)
		if err != nil {
			return err
		}
		for _, n := range open {
			if !n.NBMA.IsValid() && n.State == kernel.NeighborIncomplete {
				asked[entry{n.Link, n.Addr}] = true
			}
		}
	}
	var answers, strangers []kernel.Neighbor
	for e := range asked {
		nbma, ok, err := m.resolve(ctx, h, e)
		if err != nil {
			return err
		}
		if n := (kernel.Neighbor{Link: e.link, Addr: e.addr, NBMA: nbma}); ok {
			answers = append(answers, n)
		} else {
			strangers = append(strangers, n)
		}
	}
	return errors.Join(m.tell(ctx, h, answers), m.turnAway(ctx, h, strangers))
}

// resolve finds where a neighbor is.
func (m *room) resolve(ctx context.Context, h kernel.Handle, e entry) (netip.Addr, bool, error) {
	name, ok := m.names[e.link]
	if !ok {
		var err error
		if _, m.names, err = owned.Indexes(ctx, h, owned.Tunnel); err != nil {
			return netip.Addr{}, false, err
		}
		if name, ok = m.names[e.link]; !ok {
			m.names[e.link] = "" // not ours: not to be looked for at each request
		}
	}
	if name == "" {
		return netip.Addr{}, false, nil
	}
	nbma, ok := m.r.opts.Resolver.Resolve(desired.NeighborKey{Netns: m.netns, Link: name, Addr: e.addr})
	return nbma, ok, nil
}

// tell gives answers to the kernel. A host may move while that goes on: then the
// reconciler may have looked before the outdated answer was there.
func (m *room) tell(ctx context.Context, h kernel.Handle, answers []kernel.Neighbor) error {
	if len(answers) == 0 {
		return nil
	}
	var failed []error
	now := time.Now()
	for i, err := range h.AnswerNeighbors(ctx, answers) {
		if err != nil {
			m.r.stats.failed.Add(1)
			failed = append(failed, err)
			continue
		}
		m.r.stats.answered.Add(1)
		m.used[entry{answers[i].Link, answers[i].Addr}] = now
	}
	m.count(len(m.used))
	var outdated []kernel.Neighbor
	for _, n := range answers {
		nbma, ok, err := m.resolve(ctx, h, entry{n.Link, n.Addr})
		if err == nil && (!ok || nbma != n.NBMA) {
			outdated = append(outdated, kernel.Neighbor{Link: n.Link, Addr: n.Addr, NBMA: nbma})
		}
	}
	if len(outdated) > 0 {
		failed = append(failed, h.AnswerNeighbors(ctx, outdated)...)
	}
	return first(failed)
}

// turnAway deals with addresses that nobody has.
func (m *room) turnAway(ctx context.Context, h kernel.Handle, strangers []kernel.Neighbor) error {
	if len(strangers) == 0 {
		return nil
	}
	m.r.strangers(m.netns, kernel.NeighborRequest{Link: strangers[0].Link, Addr: strangers[0].Addr}, len(strangers))
	if m.unknown += len(strangers); m.unknown <= tolerated {
		return nil
	}
	m.r.stats.cleared.Add(uint64(len(strangers)))
	return first(h.AnswerNeighbors(ctx, strangers))
}

// sweep deletes the entries that no connection has needed for the time given.
// Permanent entries carry no sign of use (neigh_connected_output leaves none), but
// whatever passes here is tracked.
func (m *room) sweep(ctx context.Context) error {
	h, err := m.r.opts.Host.In(m.netns)
	if err != nil {
		return err
	}
	all, err := h.Neighbors(ctx)
	if err != nil {
		return err
	}
	m.names = nil // a link may have got its name back
	now, used := time.Now(), make(map[entry]time.Time, len(m.used))
	var old []kernel.Neighbor
	for _, n := range all {
		e := entry{n.Link, n.Addr}
		if n.State != kernel.NeighborPermanent {
			continue
		}
		if _, ok, err := m.resolve(ctx, h, e); err != nil {
			return err
		} else if !ok {
			continue // wanted in advance, or by nobody: the reconciler's
		}
		seen, ok := m.used[e]
		if !ok {
			seen = now
		}
		used[e] = seen
		if now.Sub(seen) >= m.r.opts.Age {
			old = append(old, kernel.Neighbor{Link: n.Link, Addr: n.Addr})
		}
	}
	m.used = used
	err = m.age(ctx, h, now, old)
	m.count(len(m.used))
	return err
}

func (m *room) age(ctx context.Context, h kernel.Handle, now time.Time, old []kernel.Neighbor) error {
	if len(old) == 0 {
		return nil
	}
	flows, err := h.Flows(ctx)
	if err != nil {
		return err
	}
	unused := old[:0]
	for _, n := range old {
		if _, ok := flows[n.Addr]; ok {
			m.used[entry{n.Link, n.Addr}] = now
		} else {
			unused = append(unused, n)
		}
	}
	if len(unused) == 0 {
		return nil
	}
	var failed []error
	for i, err := range h.AnswerNeighbors(ctx, unused) {
		if err != nil {
			failed = append(failed, err)
			continue
		}
		m.r.stats.aged.Add(1)
		delete(m.used, entry{unused[i].Link, unused[i].Addr})
	}
	return first(failed)
}

// make makes all entries.
func (m *room) make(ctx context.Context, known map[desired.NeighborKey]netip.Addr) error {
	h, err := m.r.opts.Host.In(m.netns)
	if err != nil {
		return err
	}
	links, _, err := owned.Indexes(ctx, h, owned.Tunnel)
	if err != nil {
		return err
	}
	all := make([]kernel.Neighbor, 0, len(known))
	for k, nbma := range known {
		if index, ok := links[k.Link]; ok {
			all = append(all, kernel.Neighbor{Link: index, Addr: k.Addr, NBMA: nbma})
		}
	}
	return first(h.AnswerNeighbors(ctx, all))
}

// count corrects the sum of entries over all namespaces.
func (m *room) count(n int) {
	m.r.stats.present.Add(int64(n) - m.present)
	m.present = int64(n)
}

// first returns the first error of a batch: the others are like it.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
