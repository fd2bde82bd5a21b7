package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// The flows are those between so many ports of the server and as many of
	// the pod as are needed.
	serverPorts     = 100
	firstServerPort = 8000
	firstPodPort    = 30000
	// ripe is after how long a UDP flow that is answered is assured
	// (net/netfilter/nf_conntrack_proto_udp.c: two seconds).
	ripe = 2500 * time.Millisecond
	// clockTicks is USER_HZ, the unit of times in /proc/PID/stat.
	clockTicks = 100
)

// load is what a stack takes to replicate.
type load struct {
	entries int
	// CPU of the daemons of the active proxy and of the standby: in a minute
	// without entries, from the first flow until all are replicated, and in
	// a minute after that.
	before, fill, after [2]time.Duration
	// Memory of the same at the end, in all and what is no file's, and without
	// entries, in MiB.
	memory, own [2]float64
	idle        float64
	// there is how many assured flows the kernels of both have.
	there [2]int
}

func (s *stack) load(ctx context.Context, entries int, hold time.Duration) (l load, err error) {
	l.entries = entries
	if err := s.start(ctx, true); err != nil {
		return l, err
	}
	if err := s.keepFlows(ctx); err != nil {
		return l, err
	}
	wait(ctx, settle)
	idle, err := s.both()
	if err != nil {
		return l, err
	}
	wait(ctx, hold)
	before, err := s.both()
	if err != nil {
		return l, err
	}
	f, err := s.newFlows(entries / serverPorts)
	if err != nil {
		return l, err
	}
	defer f.close()
	for range 2 { // assured by the second packet
		if err := f.round(ctx); err != nil {
			return l, err
		}
		wait(ctx, ripe)
	}
	if err := f.round(ctx); err != nil {
		return l, err
	}
	wait(ctx, settle)
	filled, err := s.both()
	if err != nil {
		return l, err
	}
	wait(ctx, hold)
	after, err := s.both()
	if err != nil {
		return l, err
	}
	l.idle = idle[0].memory
	minute := float64(time.Minute) / float64(hold)
	for i := range filled {
		l.before[i] = time.Duration(float64(before[i].cpu-idle[i].cpu) * minute)
		l.fill[i] = filled[i].cpu - before[i].cpu
		l.after[i] = time.Duration(float64(after[i].cpu-filled[i].cpu) * minute)
		l.memory[i], l.own[i] = after[i].memory, after[i].own
	}
	for at, i := range []int{s.active, 1 - s.active} {
		if l.there[at], err = s.assured(ctx, i); err != nil {
			return l, err
		}
	}
	if l.there[0] < entries*99/100 {
		return l, fmt.Errorf("%d of %d flows are there", l.there[0], entries)
	}
	return l, nil
}

// lasting is the time-out of UDP flows meanwhile, in seconds: making the flows may take
// longer here than they are kept for by default.
const lasting = 1200

func (s *stack) keepFlows(ctx context.Context) error {
	var errs []error
	for _, m := range s.lab.Machines() {
		for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			errs = append(errs, s.everywhere(ctx, m, fmt.Sprintf("sysctl -q -e -w net.netfilter.%s=%d", name, lasting)))
		}
	}
	return errors.Join(errs...)
}

// assured is how many assured flows a proxy's kernel has.
func (s *stack) assured(ctx context.Context, i int) (int, error) {
	netns := ""
	if s.name == "vpcproxy" {
		netns = "ip netns exec vpx-red "
	}
	out, err := s.lab.Proxies[i].Run(ctx, "sh", "-c", netns+"conntrack -L -p udp 2>/dev/null | grep -c ASSURED || true")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// usage is what the processes of a proxy, and their children, have used, and the
// memory that they have, in all and what is no file's, in MiB. Of processes that live,
// the time is what their own clocks say; of children that have ended, what /proc has,
// in ticks.
type usage struct {
	cpu         time.Duration
	memory, own float64
}

func (s *stack) both() (of [2]usage, err error) {
	for at, i := range []int{s.active, 1 - s.active} {
		if of[at], err = s.usage(i); err != nil {
			return of, err
		}
	}
	return of, nil
}

func (s *stack) usage(i int) (u usage, err error) {
	groups := map[int]bool{}
	for _, p := range s.daemons[i] {
		groups[p.Pid()] = true
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return u, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		// proc(5): the state is field 3, the process group 5, cutime 16,
		// cstime 17 and rss 24.
		fields := strings.Fields(rest)
		if len(fields) < 22 {
			continue
		}
		number := func(field int) int {
			n, _ := strconv.Atoi(fields[field-3])
			return n
		}
		if !groups[number(5)] {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return u, err
		}
		used, err := topo.ProcessorTime(pid)
		if errors.Is(err, unix.EINVAL) {
			continue // it has ended
		}
		if err != nil {
			return u, err
		}
		u.cpu += used + time.Duration(number(16)+number(17))*time.Second/clockTicks
		u.memory += float64(number(24)*os.Getpagesize()) / (1 << 20)
		u.own += anonymous(pid)
	}
	return u, nil
}

// anonymous is a process's memory that is no file's, in MiB; 0 if it has ended.
func anonymous(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	var kb float64
	_, _ = fmt.Sscan(rest, &kb) // a process that has ended has none
	return kb / (1 << 10)
}

// flows is many UDP flows that are answered.
type flows struct {
	servers, clients []*net.UDPConn
	answers          atomic.Int64
}

func (s *stack) newFlows(clients int) (*flows, error) {
	f := &flows{}
	open := func(m *topo.Machine, at netip.Addr, first, n int, to *[]*net.UDPConn) error {
		return m.InNetwork(func() error {
			for i := range n {
				c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, uint16(first+i))))
				if err != nil {
					return err
				}
				// A burst must not be lost for want of room.
				_ = c.SetReadBuffer(4 << 20)
				*to = append(*to, c)
			}
			return nil
		})
	}
	err := open(s.server(), topo.ServerAddress, firstServerPort, serverPorts, &f.servers)
	if err == nil {
		err = open(s.pod(), s.lab.Hosts[0].Pods[0].Address, firstPodPort, clients, &f.clients)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	for _, c := range f.servers {
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort(b[:n], from)
			}
		}()
	}
	for _, c := range f.clients {
		go func() {
			b := make([]byte, 64)
			for {
				if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
					return
				}
				f.answers.Add(1)
			}
		}()
	}
	return f, nil
}

// round has every flow ask once, and waits for nearly all answers.
func (f *flows) round(ctx context.Context) error {
	f.answers.Store(0)
	word := []byte{1}
	for i, c := range f.clients {
		for port := range serverPorts {
			if _, err := c.WriteToUDPAddrPort(word, netip.AddrPortFrom(topo.ServerAddress, uint16(firstServerPort+port))); err != nil {
				return err
			}
		}
		// No faster than it is answered: what is measured is not the loss of
		// a burst.
		err := until(ctx, "answers over UDP", func(context.Context) error {
			if behind := int64((i+1)*serverPorts) - f.answers.Load(); behind > 20*serverPorts {
				return fmt.Errorf("%d are missing", behind)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *flows) close() {
	for _, c := range append(f.servers, f.clients...) {
		_ = c.Close()
	}
}
