package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// bursts are the times after a move at which the addresses are announced: at
// once, densely while switches and neighbors learn, and once more for who was
// not listening (keepalived's garp_master_delay is 5 s).
var bursts = []time.Duration{
	0, 10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
}

const (
	// refresh is the time between two announcements when nothing happens: less
	// than the 300 s after which a bridge forgets (IEEE 802.1D table 7-5).
	refresh = time.Minute
	// readyPoll is how often a link that is not ready is looked at again.
	readyPoll = 20 * time.Millisecond
)

// Options describes a Set.
type Options struct {
	Group  string // for logs
	Host   Host
	Wire   Wire
	Driver Driver // nil: the network follows ARP
	Log    *slog.Logger
}

// Set is the HaVips of one group. It implements ha.Mover. All methods are safe
// for concurrent use.
type Set struct {
	opts Options
	wake chan struct{} // buffered, 1: the schedule has changed
	look chan struct{} // buffered, 1: compare now

	mu        sync.Mutex
	addresses []Address // the underlay's first
	holding   bool
	marked    bool             // the kernel is known to keep the mark
	unready   map[Address]bool // held, and not announced since, because their links are not ready
	started   time.Time        // of the present schedule
	step      int              // of bursts that come next; len(bursts): refreshing
	kernel    []Discrepancy    // as last verified
	wire      []Discrepancy
	failing   map[string]bool // logged, and not over
}

// NewSet returns a Set that holds nothing. Run keeps it so, or otherwise.
func NewSet(o Options) *Set {
	o.Log = o.Log.With("group", o.Group)
	return &Set{opts: o, wake: make(chan struct{}, 1), look: make(chan struct{}, 1), unready: map[Address]bool{}, failing: map[string]bool{}}
}

// Replace changes which addresses there are, the underlay's first. If the set is
// held, new ones are taken and announced, and former ones are let go of; what
// fails is tried again by Run. A former address that is on another machine by
// now is not touched there.
func (s *Set) Replace(ctx context.Context, addresses []Address) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone, fresh []Address
	for _, a := range s.addresses {
		if !slices.Contains(addresses, a) {
			gone = append(gone, a)
			delete(s.unready, a)
		}
	}
	for _, a := range addresses {
		if !slices.Contains(s.addresses, a) {
			fresh = append(fresh, a)
		}
	}
	s.addresses = slices.Clone(addresses)
	for _, a := range gone {
		s.note(ctx, "remove "+a.String(), s.remove(ctx, a))
	}
	if !s.holding || len(fresh) == 0 {
		return
	}
	for _, a := range fresh {
		s.note(ctx, "add "+a.String(), absentLater(s.add(ctx, a)))
	}
	s.schedule()
}

// Addresses returns the present addresses.
func (s *Set) Addresses() []Address {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addresses)
}

// Activate implements ha.Mover. An address whose link does not exist stays
// pending; any other failure takes back what was done.
func (s *Set) Activate(ctx context.Context) error {
	addresses, err := s.take(ctx)
	if err != nil || s.opts.Driver == nil {
		return err
	}
	if err := s.opts.Driver.Claim(ctx, addresses); err != nil {
		return fmt.Errorf("claim the HaVips of group %s: %w", s.opts.Group, err)
	}
	return nil
}

// take puts all addresses in place and begins to announce them.
func (s *Set) take(ctx context.Context) ([]Address, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = true
	for _, a := range slices.Backward(s.addresses) {
		if err := absentLater(s.add(ctx, a)); err != nil {
			s.holding = false
			return nil, errors.Join(err, s.removeAll(context.WithoutCancel(ctx)))
		}
	}
	s.schedule()
	s.announce(ctx)
	return slices.Clone(s.addresses), nil
}

// Deactivate implements ha.Mover.
func (s *Set) Deactivate(ctx context.Context) error {
	s.mu.Lock()
	s.holding = false
	clear(s.unready)
	// Not with the caller's context: a wish that overtakes this one must not
	// leave half of the set behind.
	err := s.removeAll(context.WithoutCancel(ctx))
	addresses := slices.Clone(s.addresses)
	s.mu.Unlock()
	if err != nil || s.opts.Driver == nil {
		return err
	}
	if err := s.opts.Driver.Release(ctx, addresses); err != nil {
		return fmt.Errorf("release the HaVips of group %s: %w", s.opts.Group, err)
	}
	return nil
}

// Announce implements ha.Mover.
func (s *Set) Announce(ctx context.Context) error {
	s.mu.Lock()
	if !s.holding {
		s.mu.Unlock()
		return nil
	}
	s.schedule()
	s.announce(ctx)
	addresses := slices.Clone(s.addresses)
	s.mu.Unlock()
	if s.opts.Driver == nil {
		return nil
	}
	return s.opts.Driver.Claim(ctx, addresses)
}

// errLinkAbsent is for an address whose link or namespace is not there.
var errLinkAbsent = errors.New("its link is not there")

// absentLater takes an absent link for no failure: the election's track says
// so, and Run puts the address there when the link has come.
func absentLater(err error) error {
	if errors.Is(err, errLinkAbsent) {
		return nil
	}
	return err
}

func (s *Set) link(ctx context.Context, a Address) (kernel.Handle, kernel.Link, error) {
	if a.Link == "" {
		return nil, kernel.Link{}, fmt.Errorf("HaVip %s: %w", a, errLinkAbsent)
	}
	h, err := s.opts.Host.In(a.Netns)
	if err == nil {
		var l kernel.Link
		if l, err = h.LinkByName(ctx, a.Link); err == nil {
			return h, l, nil
		}
	}
	if errors.Is(err, kernel.ErrNotFound) {
		err = errors.Join(errLinkAbsent, err)
	}
	return nil, kernel.Link{}, fmt.Errorf("HaVip %s: %w", a, err)
}

func (s *Set) add(ctx context.Context, a Address) error {
	h, l, err := s.link(ctx, a)
	if err != nil {
		return err
	}
	s.unready[a] = true
	err = h.AddAddress(ctx, kernel.Address{Link: l.Index, Prefix: a.prefix(), Protocol: desired.HaVipProtocol})
	if err == nil && !s.marked {
		err = s.mark(ctx, h, l, a)
	}
	if err != nil {
		return fmt.Errorf("HaVip %s: %w", a, err)
	}
	return nil
}

// errUnmarked is for kernels on which nobody could tell whose a HaVip is.
var errUnmarked = errors.New("this kernel does not keep whose an address is (IFA_PROTO): HaVips need Linux 5.18 or later")

// mark looks, once, whether the kernel keeps the mark by which HaVips are known,
// and removed.
func (s *Set) mark(ctx context.Context, h kernel.Handle, l kernel.Link, a Address) error {
	held, err := h.Addresses(ctx)
	if err != nil {
		return err
	}
	for _, k := range held {
		if k.Link != l.Index || k.Prefix != a.prefix() {
			continue
		}
		if ours(k) {
			s.marked = true
			return nil
		}
		if k.Protocol == 0 {
			return errors.Join(errUnmarked, h.DeleteAddress(ctx, kernel.Address{Link: l.Index, Prefix: a.prefix()}))
		}
	}
	return nil
}

// removeAll takes the addresses away, the underlay's first: from then on
// nothing comes that would have to be translated to the others.
func (s *Set) removeAll(ctx context.Context) error {
	var errs []error
	for _, a := range s.addresses {
		errs = append(errs, s.remove(ctx, a))
	}
	return errors.Join(errs...)
}

// remove deletes an address if it is ours.
func (s *Set) remove(ctx context.Context, a Address) error {
	h, l, err := s.link(ctx, a)
	if errors.Is(err, errLinkAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	held, err := h.Addresses(ctx)
	if err != nil {
		return fmt.Errorf("HaVip %s: %w", a, err)
	}
	for _, k := range held {
		if k.Link == l.Index && k.Prefix.Addr() == a.Addr && ours(k) {
			if err := h.DeleteAddress(ctx, kernel.Address{Link: k.Link, Prefix: k.Prefix}); err != nil {
				return fmt.Errorf("HaVip %s: %w", a, err)
			}
		}
	}
	return nil
}

// schedule begins the bursts anew.
func (s *Set) schedule() {
	s.started, s.step = time.Now(), 0
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// announce announces what is held and ready.
func (s *Set) announce(ctx context.Context) {
	for _, a := range s.addresses {
		_, l, err := s.link(ctx, a)
		switch {
		case err != nil, l.MAC == "":
			continue // there is nobody to tell, or verify says what is wrong
		case !l.Up || !l.Lower:
			s.unready[a] = true
			continue
		}
		err = s.opts.Wire.Announce(ctx, a.Netns, l, a.Addr)
		s.note(ctx, "announce "+a.String(), err)
		if err == nil {
			delete(s.unready, a)
		}
	}
}

// note logs the first failure of something, and its recovery.
func (s *Set) note(ctx context.Context, what string, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !s.failing[what]:
		s.failing[what] = true
		s.opts.Log.Error("HaVip: cannot "+what, "err", err)
	case err == nil && s.failing[what]:
		delete(s.failing, what)
		s.opts.Log.Info("HaVip: recovered", "step", what)
	}
}
