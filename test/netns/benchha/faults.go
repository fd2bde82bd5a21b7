package main

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// askEvery is how often each TCP connection asks.
	askEvery = 5 * time.Second
	// echoEvery is how often a datagram is sent: the resolution of a stall.
	echoEvery = 2 * time.Millisecond
	// settle is the time to replicate before a fault, the same for all.
	settle = 10 * time.Second
	// given is how long a connection may take to go on before it counts as lost.
	given = 20 * time.Second
)

// outcome is what a fault did.
type outcome struct {
	fault    string
	interval time.Duration
	// detection is the time until the other proxy announced the HaVip, stall
	// the longest time without a UDP echo.
	detection, stall time.Duration
	median, longest  time.Duration // waits of TCP connections
	lost             int           // TCP connections
}

// faults has the active proxy end in every way.
func (s *stack) faults(ctx context.Context, interval time.Duration, flows int) (all []outcome, err error) {
	s.interval = interval
	if err := s.start(ctx, true); err != nil {
		return nil, err
	}
	server, err := traffic.Serve(s.server(), "red")
	if err != nil {
		return nil, err
	}
	defer func() { _ = server.Close() }()
	// It only listens: who has the address is asked once in an hour.
	asker, err := traffic.StartAsker(s.lab.Router, "proxies", netip.MustParseAddr(outerVip), time.Hour)
	if err != nil {
		return nil, err
	}
	defer asker.Stop()
	var crowd *traffic.Crowd
	defer func() {
		if crowd != nil {
			crowd.Stop()
		}
	}()
	for _, f := range []struct {
		name   string
		inject func(ctx context.Context, i int) error
	}{{"power off", s.powerOff}, {"kill -9", s.kill}, {"stop", s.terminate}} {
		if crowd == nil {
			if crowd, err = traffic.StartCrowd(ctx, s.pod(), s.server(), topo.ServerAddress, flows, askEvery); err != nil {
				return nil, err
			}
		}
		o, err := s.fault(ctx, crowd, asker, f.inject)
		if err != nil {
			return all, fmt.Errorf("%s: %w", f.name, err)
		}
		o.fault, o.interval = f.name, interval
		s.progress("%+v", o)
		all = append(all, o)
		if o.lost > 0 { // the next fault gets a whole crowd, too
			crowd.Stop()
			crowd = nil
		}
	}
	return all, nil
}

func (s *stack) fault(ctx context.Context, crowd *traffic.Crowd, asker *traffic.Asker, inject func(context.Context, int) error) (o outcome, err error) {
	echo, err := traffic.StartStream(ctx, s.pod(), topo.ServerAddress, echoEvery)
	if err != nil {
		return o, err
	}
	defer echo.Stop(0)
	wait(ctx, settle)
	if moved, err := s.findActive(ctx); err != nil {
		return o, err
	} else if moved {
		s.progress("the role moved without a fault")
	}
	crowd.Forget()
	echo.Gap()
	start, from, to := time.Now(), s.active, 1-s.active
	if err := inject(ctx, from); err != nil {
		return o, err
	}
	err = until(ctx, "the other proxy to announce itself", func(context.Context) error {
		for _, c := range asker.Claims(start) {
			if c.MAC == s.mac(to) {
				o.detection = c.At.Sub(start)
				return nil
			}
		}
		return fmt.Errorf("%s is silent", s.lab.Proxies[to].Name)
	})
	if err != nil {
		return o, err
	}
	total := crowd.Report().Flows
	for deadline := time.Now().Add(given); time.Now().Before(deadline) && crowd.Answered(start.Add(o.detection)) < total; {
		wait(ctx, 50*time.Millisecond)
	}
	r := crowd.Report()
	o.lost = total - crowd.Answered(start.Add(o.detection))
	o.median, o.longest, o.stall = r.Median, r.Longest, echo.Gap()
	s.active = to
	return o, s.repair(ctx, from)
}

// powerOff ends all of a proxy at once.
func (s *stack) powerOff(ctx context.Context, i int) error {
	err := s.cables(ctx, i, "down")
	for _, p := range s.daemons[i] {
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	return err
}

// kill ends what elects, as a crash would.
func (s *stack) kill(_ context.Context, i int) error {
	return syscall.Kill(-s.daemons[i][0].Pid(), syscall.SIGKILL)
}

// terminate stops what elects in order.
func (s *stack) terminate(_ context.Context, i int) error {
	return s.daemons[i][0].Signal(syscall.SIGTERM)
}

// repair has a proxy run again, on standby.
func (s *stack) repair(ctx context.Context, i int) error {
	s.stop(i)
	if err := s.cables(ctx, i, "up"); err != nil {
		return err
	}
	return s.launch(i, true)
}
