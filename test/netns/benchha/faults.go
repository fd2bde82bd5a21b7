package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// askEvery is how often each TCP connection asks.
	askEvery = 20 * time.Second
	// echoEvery is how often a datagram is sent: the resolution of a stall.
	echoEvery = 10 * time.Millisecond
	// settle is the time to replicate before a fault, the same for all. Each
	// connection asks once meanwhile.
	settle = askEvery + 2*time.Second
	// gatherings is how often a crowd is made for one fault: it must be whole
	// when that comes.
	gatherings = 3
	// aftermath is how long after the other proxy has announced itself a time
	// without an echo still counts as the fault's: the guest has some of its own,
	// every now and then.
	aftermath = time.Second
	// given is how long a connection may take to go on before it counts as lost.
	given = 30 * time.Second
)

// outcome is what a fault did.
type outcome struct {
	fault    string
	interval time.Duration
	// before is the longest time without a UDP echo before the fault: what the
	// guest does by itself.
	before time.Duration
	// detection is the time until the other proxy announced the HaVip, stall
	// the longest time without a UDP echo, that began no later than aftermath
	// after that.
	detection, stall time.Duration
	// silence is the part of detection since the last advert that the other one
	// received, cut how long the fault itself took.
	silence, cut    time.Duration
	median, longest time.Duration // waits of TCP connections
	flows, lost     int           // TCP connections
	resets          int
	// moved: the role had moved without a fault. anew: the pair had to be
	// started anew before the fault, with empty tables. early is how many
	// connections were lost before it, with crowds that it then did not meet.
	moved, anew bool
	early       int
}

// kinds are the ways in which the active proxy can end.
var kinds = []struct {
	name   string
	inject func(s *stack, i int) error
}{{"power off", (*stack).powerOff}, {"kill -9", (*stack).kill}, {"stop", (*stack).terminate}}

// trial is what faults need meanwhile.
type trial struct {
	*stack
	flows int
	trace bool
	crowd *traffic.Crowd
	pulse *traffic.Pulse
	asker *traffic.Asker
	heard [2]*traffic.Adverts // by proxy
}

// faults has the active proxy end in every way that is asked for. It returns what
// has been measured, also when something failed.
func (s *stack) faults(ctx context.Context, interval time.Duration, z *sizes) (all []outcome, err error) {
	s.interval = interval
	if err := s.start(ctx, true); err != nil {
		return nil, err
	}
	t := &trial{stack: s, flows: z.flows, trace: z.trace}
	// It only listens: who has the address is asked once in an hour.
	if t.asker, err = traffic.StartAsker(s.lab.Router, "proxies", netip.MustParseAddr(outerVip), time.Hour); err != nil {
		return nil, err
	}
	defer t.asker.Stop()
	for i, p := range s.lab.Proxies {
		if t.heard[i], err = traffic.StartAdverts(p.Machine); err != nil {
			return nil, err
		}
		defer t.heard[i].Stop()
	}
	if t.pulse, err = traffic.StartPulse(s.pod(), s.server(), topo.ServerAddress, echoEvery, foremost); err != nil {
		return nil, err
	}
	defer t.pulse.Stop()
	defer t.disperse()
	for range z.repeat {
		for _, kind := range kinds {
			if !z.faults.MatchString(kind.name) {
				continue
			}
			var o outcome
			err := t.prepare(ctx, &o)
			if err == nil {
				err = t.fault(ctx, &o, kind.inject)
			}
			if err != nil {
				return all, fmt.Errorf("%s: %w", kind.name, err)
			}
			o.fault, o.interval = kind.name, interval
			s.progress("%+v", o)
			all = append(all, o)
			if o.lost > 0 { // the next fault gets a whole crowd, too
				t.disperse()
			}
		}
	}
	return all, nil
}

func (t *trial) disperse() {
	if t.crowd != nil {
		t.crowd.Stop()
		t.crowd = nil
	}
}

// gather makes a crowd if there is none. A pair by which it cannot be made is started
// anew, once.
func (t *trial) gather(ctx context.Context) (anew bool, err error) {
	if t.crowd != nil {
		return false, nil
	}
	for {
		t.crowd, err = traffic.StartCrowd(ctx, t.pod(), t.server(), topo.ServerAddress, t.flows, askEvery)
		if err == nil || anew {
			return anew, err
		}
		t.progress("starting the pair anew: %v", err)
		t.explain(os.Stderr)
		anew = true
		for i := range t.daemons {
			t.stop(i)
		}
		if err := errors.Join(t.forget(ctx), t.start(ctx, true)); err != nil {
			return anew, err
		}
	}
}

// prepare sees to a crowd of which every connection is answered.
func (t *trial) prepare(ctx context.Context, o *outcome) error {
	for i := range gatherings {
		anew, err := t.gather(ctx)
		if err != nil {
			return err
		}
		settling := time.Now()
		wait(ctx, settle)
		t.awaitAnswers(ctx, settling, t.flows)
		moved, err := t.findActive(ctx)
		if err != nil {
			return err
		}
		o.anew, o.moved = o.anew || anew, o.moved || moved
		r := t.crowd.Report()
		o.flows, o.resets = t.crowd.Answered(settling), r.Resets // so far
		lost := r.Flows - o.flows
		o.early += lost
		if lost > 0 {
			t.progress("%d connections are lost before the fault: %v", lost, r.FirstError)
		}
		if lost == 0 || i == gatherings-1 { // then the fault meets those that are left
			t.crowd.Forget()
			o.before, err = t.pulse.Longest(settling)
			return err
		}
		t.disperse()
	}
	return nil
}

func (t *trial) fault(ctx context.Context, o *outcome, inject func(*stack, int) error) error {
	from, to := t.active, 1-t.active
	logged := len(t.daemons[to][0].Log())
	// Right after an advert: the worst moment, and the same for all.
	if err := t.advert(ctx, from, to); err != nil {
		return err
	}
	start := time.Now()
	if err := inject(t.stack, from); err != nil {
		return err
	}
	o.cut = time.Since(start)
	err := until(ctx, "the other proxy to announce itself", func(context.Context) error {
		for _, c := range t.asker.Claims(start) {
			if c.MAC == t.mac(to) {
				o.detection = c.At.Sub(start)
				return nil
			}
		}
		return fmt.Errorf("%s is silent", t.lab.Proxies[to].Name)
	})
	if err != nil {
		return err
	}
	settled := start.Add(o.detection)
	if last, ok := t.heard[to].Last(t.lab.Proxies[from].Underlay, settled); ok {
		o.silence = settled.Sub(last.At)
	}
	if t.trace {
		before := t.spent(to)
		wait(ctx, 300*time.Millisecond)
		after := t.spent(to)
		t.progress("fault at %v, %v to inject, claimed at %v; processor time in the 0.3 s after: %v of the other proxy, %v here\n%s", start.Format(time.StampMicro), o.cut,
			settled.Format(time.StampMicro), after[0]-before[0], after[1]-before[1], t.daemons[to][0].Log()[logged:])
	}
	t.awaitAnswers(ctx, settled, o.flows)
	r := t.crowd.Report()
	o.lost, o.resets = o.flows-t.crowd.Answered(settled), r.Resets-o.resets
	o.median, o.longest = r.Median, r.Longest
	gaps, err := t.pulse.Gaps(start)
	if err != nil {
		return err
	}
	for _, g := range gaps {
		if g.Begin < o.detection+aftermath {
			o.stall = max(o.stall, g.Length)
		}
	}
	if t.trace {
		t.progress("no echo, since the fault: %v", gaps)
	}
	t.active = to
	return t.repair(from)
}

// awaitAnswers waits until so many connections have had an answer to what they asked
// after a moment, but no longer than it takes to be lost.
func (t *trial) awaitAnswers(ctx context.Context, asked time.Time, flows int) {
	for deadline := time.Now().Add(given); time.Now().Before(deadline) && t.crowd.Answered(asked) < flows; {
		wait(ctx, 50*time.Millisecond)
	}
}

// advert waits for the next advert of a proxy.
func (t *trial) advert(ctx context.Context, from, to int) error {
	for begin := time.Now(); ; wait(ctx, time.Millisecond) {
		if last, ok := t.heard[to].Last(t.lab.Proxies[from].Underlay, time.Now()); ok && last.At.After(begin) {
			return nil
		}
		if ctx.Err() != nil || time.Since(begin) > patience {
			return fmt.Errorf("%s sends no adverts", t.lab.Proxies[from].Name)
		}
	}
}

// spent is the processor time of a proxy's daemons so far, and this program's.
func (s *stack) spent(i int) (all [2]time.Duration) {
	if u, err := s.usage(i); err == nil {
		all[0] = u.cpu
	}
	var self unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &self) == nil {
		all[1] = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	}
	return all
}

// powerOff ends all of a proxy at once.
func (s *stack) powerOff(i int) error {
	for _, p := range s.daemons[i] {
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	return s.cables(i, false)
}

// kill ends what elects, as a crash would.
func (s *stack) kill(i int) error {
	return syscall.Kill(-s.daemons[i][0].Pid(), syscall.SIGKILL)
}

// terminate stops what elects in order.
func (s *stack) terminate(i int) error {
	return s.daemons[i][0].Signal(syscall.SIGTERM)
}

// repair has a proxy run again, on standby.
func (s *stack) repair(i int) error {
	s.stop(i)
	if err := s.cables(i, true); err != nil {
		return err
	}
	return s.launch(i, true)
}
