package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// patience is how long something may take that must happen.
const patience = time.Minute

// The addresses that move.
const (
	outerVip = "192.168.4.100"
	innerVip = "172.16.101.100"
)

// foremost is the nice value that daemons of proxies are started with, and what
// measures them: proxies share their processor here with pods, servers and the measurement.
const foremost = -20

// relaxed is the interval between adverts while faults are not what is measured:
// a guest with one processor, under all the load that it can take, starves
// daemons for longer than three short ones.
const relaxed = time.Second

// stack is a pair of proxies and what makes it one.
type stack struct {
	name     string
	lab      *topo.Lab
	files    string
	interval time.Duration
	active   int
	// daemons are what runs on each proxy.
	daemons [2][]*topo.Process
	// run starts the daemons of a proxy.
	run func(s *stack, i int, replicate bool) ([]*topo.Process, error)
}

func newStack(ctx context.Context, name, files string) (*stack, error) {
	lab, err := topo.Build(ctx, files, topo.Layout{Hosts: 1, Pods: 1, Proxies: 2, VPCs: []string{"red"}, OneLink: true})
	if err != nil {
		return nil, err
	}
	return &stack{name: name, lab: lab, files: files, interval: relaxed}, nil
}

func (s *stack) pod() *topo.Machine    { return s.lab.Hosts[0].Pods[0].Machine }
func (s *stack) server() *topo.Machine { return s.lab.VPCs["red"].Machine }

// start has both proxies run anew, the first one active.
func (s *stack) start(ctx context.Context, replicate bool) error {
	for i := range s.daemons {
		s.stop(i)
	}
	s.active = 0
	for i := range s.daemons {
		if err := s.launch(i, replicate); err != nil {
			return err
		}
		if i == 0 {
			if err := s.awaitActive(ctx, 0); err != nil {
				return err
			}
		}
	}
	return s.awaitServed(ctx)
}

// launch starts a proxy's daemons.
func (s *stack) launch(i int, replicate bool) (err error) {
	s.daemons[i], err = s.run(s, i, replicate)
	return err
}

// stop ends a proxy's daemons, whatever their state.
func (s *stack) stop(i int) {
	for _, p := range s.daemons[i] {
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
		<-p.Ended()
	}
	s.daemons[i] = nil
}

// until polls.
func until(ctx context.Context, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		}
		wait(ctx, 20*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// forget empties the tables of connections of all machines: what a fault has left
// there must not be in the way of the next crowd.
func (s *stack) forget(ctx context.Context) error {
	var errs []error
	for _, m := range s.lab.Machines() {
		errs = append(errs, s.everywhere(ctx, m, "conntrack -F"))
	}
	return errors.Join(errs...)
}

// everywhere runs a command line in a machine and in each of its namespaces.
func (s *stack) everywhere(ctx context.Context, m *topo.Machine, line string) error {
	_, err := m.Run(ctx, "sh", "-ec", line+"; for n in $(ip netns list | cut -d' ' -f1); do ip netns exec $n "+line+"; done")
	return err
}

// awaitActive waits until a proxy has the outer HaVip.
func (s *stack) awaitActive(ctx context.Context, i int) error {
	return until(ctx, s.lab.Proxies[i].Name+" to be active", func(ctx context.Context) error {
		out, err := s.lab.Proxies[i].Run(ctx, "ip", "-o", "address", "show", "to", outerVip)
		if err == nil && !strings.Contains(out, outerVip) {
			err = errors.New("it has no HaVip")
		}
		return err
	})
}

// findActive waits until one proxy alone has the outer HaVip, whichever it is:
// under load a pair may have changed roles unasked. It tells whether it has.
func (s *stack) findActive(ctx context.Context) (moved bool, err error) {
	err = until(ctx, "one proxy to be active alone", func(ctx context.Context) error {
		var holders []int
		for i, p := range s.lab.Proxies {
			out, err := p.Run(ctx, "ip", "-o", "address", "show", "to", outerVip)
			if err != nil {
				return err
			}
			if strings.Contains(out, outerVip) {
				holders = append(holders, i)
			}
		}
		if len(holders) != 1 {
			return fmt.Errorf("%d proxies have the HaVip", len(holders))
		}
		moved, s.active = s.active != holders[0], holders[0]
		return nil
	})
	return moved, err
}

func (s *stack) awaitServed(ctx context.Context) error {
	return until(ctx, "the pod to be served", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		return traffic.Ping(ctx, s.pod(), topo.ServerAddress, 64)
	})
}

// cables sets the other ends of a proxy's cables up or down.
func (s *stack) cables(i int, up bool) error {
	name := s.lab.Proxies[i].Name
	return errors.Join(s.lab.Router.SetLink(name, up), s.server().SetLink(name, up))
}

// mac is a proxy's MAC address on the underlay.
func (s *stack) mac(i int) string {
	b := s.lab.Proxies[i].Underlay.As4()
	return fmt.Sprintf("02:00:00:%02x:%02x:%02x", b[1], b[2], b[3])
}

// write writes a file of the stack.
func (s *stack) write(name, content string) (string, error) {
	path := filepath.Join(s.files, name)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// writeScript is write of a program.
func (s *stack) writeScript(name, content string) (string, error) {
	path, err := s.write(name, content)
	return path, errors.Join(err, os.Chmod(path, 0o700))
}

// explain writes what helps to understand a failure.
func (s *stack) explain(w io.Writer) {
	for i := range s.daemons {
		for _, p := range s.daemons[i] {
			_, _ = fmt.Fprintf(w, "== %s, which has ended: %t\n%s\n", filepath.Base(p.LogPath), !p.Running(), p.Log())
		}
	}
}

// progress says what has been measured: all of it takes a quarter of an hour.
func (s *stack) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stderr, s.name+": "+format+"\n", args...)
}
