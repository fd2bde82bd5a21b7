// Command benchha puts a pair of proxies through the faults that a pair is for,
// and loads it with connections: once made by the product, once by hand with
// keepalived and conntrackd, in the same guest. make bench-ha runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// sizes are what flags choose.
type sizes struct {
	flows     int // TCP connections during the faults
	faults    *regexp.Regexp
	intervals durations
	repeat    int     // of each fault
	entries   numbers // UDP flows during the measurement of CPU and memory
	rounds    int     // of the measurement of new connections
	hold      time.Duration
	parts     string
	trace     bool
	only      string // "": both stacks
}

type durations []time.Duration

func (d *durations) String() string { return fmt.Sprint(*d) }

// Set implements flag.Value.
func (d *durations) Set(list string) error {
	*d = nil
	for word := range strings.SplitSeq(list, ",") {
		each, err := time.ParseDuration(word)
		if err != nil {
			return err
		}
		*d = append(*d, each)
	}
	return nil
}

type numbers []int

func (n *numbers) String() string { return fmt.Sprint(*n) }

// Set implements flag.Value.
func (n *numbers) Set(list string) error {
	*n = nil
	for word := range strings.SplitSeq(list, ",") {
		each, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		*n = append(*n, each)
	}
	return nil
}

func main() {
	if err := traffic.RunPulse(); err != nil {
		fmt.Fprintln(os.Stderr, "benchha:", err)
		os.Exit(1)
	}
	s := sizes{intervals: durations{100 * time.Millisecond, 30 * time.Millisecond}, entries: numbers{10000, 100000}}
	flag.StringVar(&s.parts, "parts", "faults,rates,loads", "`what` to measure, of these three")
	flag.IntVar(&s.flows, "flows", 10000, "established TCP `connections` during the faults")
	faults := flag.String("faults", "", "only faults whose name matches this `expression`: power off, kill -9, stop")
	flag.Var(&s.intervals, "intervals", "`times` between adverts at which there are faults")
	flag.IntVar(&s.repeat, "repeat", 1, "`times` that each fault happens; the medians are printed")
	flag.IntVar(&s.rounds, "rounds", 5, "`times` that new connections are counted with and without replication")
	flag.Var(&s.entries, "entries", "`numbers` of UDP flows with which CPU and memory are measured")
	flag.DurationVar(&s.hold, "hold", 30*time.Second, "how long CPU is measured once all flows are there")
	flag.StringVar(&s.only, "stack", "", "measure this `stack` alone: vpcproxy or keepalived")
	flag.BoolVar(&s.trace, "trace", false, "print what the other proxy logs at each fault")
	quick := flag.Bool("quick", false, "a try: fewer flows")
	flag.Parse()
	if *quick {
		s.flows, s.entries, s.rounds, s.hold = 500, numbers{2000}, 1, 5*time.Second
	}
	var err error
	if s.faults, err = regexp.Compile(*faults); err != nil {
		fmt.Fprintln(os.Stderr, "benchha: -faults:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err = run(ctx, s)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchha:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s sizes) (err error) {
	if os.Getenv("VPCPROXY_BIN") == "" {
		return errors.New("VPCPROXY_BIN does not say where the built programs are; run make bench-ha")
	}
	files, err := os.MkdirTemp("", "vpcproxy-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	many := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &many); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	if err := makeRoom(); err != nil {
		return err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	fmt.Printf("kernel %s, %d processors; %d TCP connections and a UDP echo during the faults\n\n",
		strings.TrimSpace(string(release)), runtime.NumCPU(), s.flows)
	var all []*results
	var failed []error
	for _, kind := range []struct {
		name string
		make func(context.Context, string) (*stack, error)
	}{{"vpcproxy", product}, {"keepalived", peer}} {
		if s.only != "" && s.only != kind.name {
			continue
		}
		r, err := measure(ctx, filepath.Join(files, kind.name), s, kind.make)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", kind.name, err))
		}
		all = append(all, r)
	}
	print(all, s)
	return errors.Join(failed...)
}

// makeRoom lets the machines' tables hold all flows: the table is one for all
// namespaces, and its limit the initial one's.
func makeRoom() error {
	return errors.Join(
		os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_buckets", []byte("262144"), 0),
		os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_max", []byte("4000000"), 0),
	)
}

// results is what one stack achieved.
type results struct {
	stack  string
	faults []outcome
	rounds []round
	loads  []load
}

// measure returns what has been measured, also when something failed.
func measure(ctx context.Context, files string, s sizes, make func(context.Context, string) (*stack, error)) (r *results, err error) {
	r = &results{}
	st, err := make(ctx, files)
	if err != nil {
		return r, err
	}
	r.stack = st.name
	defer func() {
		if err != nil {
			st.explain(os.Stderr)
		}
		err = errors.Join(err, st.lab.Close())
	}()
	for _, part := range []struct {
		name string
		do   func(context.Context, *stack, *sizes) error
	}{{"faults", r.measureFaults}, {"rates", r.measureRates}, {"loads", r.measureLoads}} {
		if !slices.Contains(strings.Split(s.parts, ","), part.name) {
			continue
		}
		if err := part.do(ctx, st, &s); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *results) measureFaults(ctx context.Context, st *stack, s *sizes) error {
	for _, interval := range s.intervals {
		got, err := st.faults(ctx, interval, s)
		r.faults = append(r.faults, got...)
		if err != nil {
			return fmt.Errorf("adverts every %v: %w", interval, err)
		}
	}
	return nil
}

func (r *results) measureRates(ctx context.Context, st *stack, s *sizes) error {
	st.interval = relaxed
	for i := range s.rounds {
		var got round
		for _, replicated := range []bool{i%2 == 1, i%2 == 0} { // the machine becomes slower and faster meanwhile
			rates, err := st.newConnections(ctx, replicated)
			if err != nil {
				return err
			}
			st.progress("replicated %t: %.0f UDP flows/s, %.0f TCP connections/s", replicated, rates.udp, rates.tcp)
			if replicated {
				got.replicated = rates
			} else {
				got.alone = rates
			}
		}
		r.rounds = append(r.rounds, got)
	}
	return nil
}

func (r *results) measureLoads(ctx context.Context, st *stack, s *sizes) error {
	st.interval = relaxed
	for _, n := range s.entries {
		l, err := st.load(ctx, n, s.hold)
		if err != nil {
			return err
		}
		st.progress("%+v", l)
		r.loads = append(r.loads, l)
	}
	return nil
}
