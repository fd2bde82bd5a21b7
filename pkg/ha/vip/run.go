package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
)

const (
	// verifyEvery is how often election and kernel are compared with nobody
	// asking for it.
	verifyEvery = 10 * time.Second
	// askEvery is how often it is asked on the links who answers.
	askEvery = 10 * time.Second
	// answerWithin is how long an answer is waited for: ten times what a
	// neighbor in the next building takes.
	answerWithin = 100 * time.Millisecond
	// asksAtOnce is for how many addresses it is asked at the same time.
	asksAtOnce = 16
	// askTwice is how many times in a row a discrepancy on the wire must be
	// seen: a question that meets a move tells nothing.
	askTwice = 2
)

// Run announces, verifies and repairs until the context ends. It leaves the
// addresses as they are.
func (s *Set) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { s.watchWire(ctx) })
	verify := time.NewTimer(rhythm.Until(verifyEvery))
	defer verify.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	s.prepare(ctx)
	for {
		if d, ok := s.due(); ok {
			timer.Reset(d)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
			s.tick(ctx)
		case <-s.look:
			s.prepare(ctx)
			s.repair(ctx)
		case <-verify.C:
			verify.Reset(rhythm.Until(verifyEvery))
			s.repair(ctx)
		}
	}
}

// prepare has all ready to announce the addresses. What fails is told when they are.
func (s *Set) prepare(ctx context.Context) {
	for _, a := range s.Addresses() {
		if _, l, err := s.link(ctx, a); err == nil && l.MAC != "" {
			_ = s.opts.Wire.Prepare(ctx, a.Netns, l)
		}
	}
}

// Look has Run compare election and kernel soon: an address or a link may have
// changed. It does not wait.
func (s *Set) Look() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// due returns how long it is to the next announcement.
func (s *Set) due() (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holding {
		return 0, false
	}
	if len(s.unready) > 0 {
		return readyPoll, true
	}
	return max(time.Until(s.started.Add(s.next())), 0), true
}

// next is when after the move the next announcement is.
func (s *Set) next() time.Duration {
	if s.step < len(bursts) {
		return bursts[s.step]
	}
	return bursts[len(bursts)-1] + time.Duration(s.step-len(bursts)+1)*refresh
}

func (s *Set) tick(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holding {
		return
	}
	if passed := time.Since(s.started); passed >= s.next() {
		for passed >= s.next() {
			s.step++
		}
		s.announce(ctx)
		return
	}
	waiting := len(s.unready)
	s.announceUnready(ctx)
	if len(s.unready) < waiting { // a link has come up: whoever is behind it has heard nothing
		s.schedule()
	}
}

// announceUnready announces only what has not been.
func (s *Set) announceUnready(ctx context.Context) {
	for a := range s.unready {
		_, l, err := s.link(ctx, a)
		if err != nil || l.MAC != "" && (!l.Up || !l.Lower) {
			continue
		}
		if l.MAC == "" || s.opts.Wire.Announce(ctx, a.Netns, l, a.Addr) == nil {
			delete(s.unready, a)
		}
	}
}

// repair compares, tells what is new, and makes the kernel hold what it should.
func (s *Set) repair(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.compare(ctx)
	s.note(ctx, "look for the HaVips of group "+s.opts.Group, err)
	if ctx.Err() != nil {
		return
	}
	s.tell(ctx, s.kernel, found)
	s.kernel = found
	for _, d := range found {
		switch d.Fault {
		case Lacking:
			err := absentLater(s.add(ctx, d.Address))
			s.note(ctx, "add "+d.Address.String(), err)
			if err == nil {
				s.schedule()
			}
		case Lingering:
			s.note(ctx, "remove "+d.Address.String(), s.remove(ctx, d.Address))
		}
	}
}

// tell logs discrepancies that are new, and those that are over. What this node
// itself is about to mend is no error: a link that has just been made lacks its
// address.
func (s *Set) tell(ctx context.Context, before, now []Discrepancy) {
	for _, d := range now {
		if !slices.Contains(before, d) {
			level := slog.LevelError
			if d.Fault == Lacking || d.Fault == Lingering {
				level = slog.LevelWarn
			}
			s.opts.Log.Log(ctx, level, "HaVip is not where it was elected to", "address", d.Address.String(), "fault", d.Fault, "detail", d.Detail)
		}
	}
	for _, d := range before {
		if !slices.Contains(now, d) {
			s.opts.Log.Info("HaVip is where it was elected to", "address", d.Address.String(), "was", d.Fault)
		}
	}
}

// compare returns the discrepancies between election and kernel. Links that
// are absent hold nothing, and lack nothing that could be given to them.
func (s *Set) compare(ctx context.Context) ([]Discrepancy, error) {
	var found []Discrepancy
	var errs []error
	for _, a := range s.addresses {
		h, l, err := s.link(ctx, a)
		if errors.Is(err, errLinkAbsent) {
			if s.holding {
				found = append(found, Discrepancy{a, Lacking, "no such link"})
			}
			continue
		}
		var held []kernel.Address
		if err == nil {
			held, err = h.Addresses(ctx)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if d, ok := judge(a, l, held, s.holding); ok {
			found = append(found, d)
		}
	}
	return found, errors.Join(errs...)
}

func judge(a Address, l kernel.Link, held []kernel.Address, holding bool) (Discrepancy, bool) {
	i := slices.IndexFunc(held, func(k kernel.Address) bool { return k.Link == l.Index && k.Prefix.Addr() == a.Addr })
	switch {
	case holding && i < 0:
		return Discrepancy{a, Lacking, ""}, true
	case holding || i < 0:
		return Discrepancy{}, false
	case ours(held[i]):
		return Discrepancy{a, Lingering, ""}, true
	}
	return Discrepancy{a, Foreign, fmt.Sprintf("address protocol %d", held[i].Protocol)}, true
}

// watchWire asks on the links who answers, again and again.
func (s *Set) watchWire(ctx context.Context) {
	seen := map[Discrepancy]int{}
	t := time.NewTimer(rhythm.Until(askEvery))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(rhythm.Until(askEvery))
		}
		now := map[Discrepancy]int{}
		var found []Discrepancy
		for _, d := range s.ask(ctx) {
			if now[d] = seen[d] + 1; now[d] >= askTwice {
				found = append(found, d)
			}
		}
		seen = now
		s.mu.Lock()
		if ctx.Err() == nil {
			s.tell(ctx, s.wire, found)
			s.wire = found
		}
		s.mu.Unlock()
	}
}

// ask asks for every address once, for some at the same time. It holds no lock while
// it waits.
func (s *Set) ask(ctx context.Context) (found []Discrepancy) {
	addresses := s.Addresses()
	for len(addresses) > 0 {
		some := addresses[:min(len(addresses), asksAtOnce)]
		addresses = addresses[len(some):]
		answers := make([]Fault, len(some))
		details := make([]string, len(some))
		var asking sync.WaitGroup
		for i, a := range some {
			asking.Go(func() { answers[i], details[i] = s.askFor(ctx, a) })
		}
		asking.Wait()
		for i, fault := range answers {
			if fault != "" {
				found = append(found, Discrepancy{some[i], fault, details[i]})
			}
		}
	}
	return found
}

// askFor returns what is wrong with an address, or "".
func (s *Set) askFor(ctx context.Context, a Address) (fault Fault, detail string) {
	_, l, err := s.link(ctx, a)
	if err != nil || l.MAC == "" || !l.Up || !l.Lower {
		return "", ""
	}
	before := s.Holding()
	waiting, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	mac, err := s.opts.Wire.Ask(waiting, a.Netns, l, a.Addr)
	switch after := s.Holding(); {
	case err != nil || before != after: // a move was under way
	case before && mac != "":
		return Contested, mac
	case !before && mac == "":
		return Unanswered, ""
	}
	return "", ""
}

// Holding tells whether the set was last told to be held.
func (s *Set) Holding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holding
}

// Discrepancies returns what was last found, by address.
func (s *Set) Discrepancies() []Discrepancy {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Concat(s.kernel, s.wire)
	slices.SortFunc(all, func(a, b Discrepancy) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// Verify compares the election with the kernel now, and changes nothing.
func (s *Set) Verify(ctx context.Context) ([]Discrepancy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compare(ctx)
}
