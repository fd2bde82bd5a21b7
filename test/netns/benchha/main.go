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
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// sizes are what flags make smaller for a try.
type sizes struct {
	flows   int   // TCP connections during the faults
	entries []int // UDP flows during the measurement of CPU and memory
	rounds  int   // of the measurement of new connections
	hold    time.Duration
	only    string // "": both stacks
}

func main() {
	s := sizes{entries: []int{10000, 100000}}
	flag.IntVar(&s.flows, "flows", 10000, "established TCP `connections` during the faults")
	flag.IntVar(&s.rounds, "rounds", 5, "`times` that new connections are counted with and without replication")
	flag.DurationVar(&s.hold, "hold", 30*time.Second, "how long CPU is measured once all flows are there")
	only := flag.String("stack", "", "measure this `stack` alone: vpcproxy or keepalived")
	quick := flag.Bool("quick", false, "a try: fewer flows")
	flag.Parse()
	s.only = *only
	if *quick {
		s = sizes{flows: 500, only: s.only, entries: []int{2000}, rounds: 1, hold: 5 * time.Second}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, s)
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
	rates  []rates
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
	for _, interval := range []time.Duration{100 * time.Millisecond, 30 * time.Millisecond} {
		got, err := st.faults(ctx, interval, s.flows)
		r.faults = append(r.faults, got...)
		if err != nil {
			return r, err
		}
	}
	st.interval = relaxed
	for range s.rounds {
		for _, replicated := range []bool{false, true} {
			got, err := st.newConnections(ctx, replicated)
			if err != nil {
				return r, err
			}
			st.progress("replicated %t: %.0f UDP flows/s, %.0f TCP connections/s", replicated, got.udp, got.tcp)
			r.rates = append(r.rates, got)
		}
	}
	for _, n := range s.entries {
		l, err := st.load(ctx, n, s.hold)
		if err != nil {
			return r, err
		}
		st.progress("%+v", l)
		r.loads = append(r.loads, l)
	}
	return r, nil
}

// print prints all results, the stacks' beside each other.
func print(all []*results, s sizes) {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(table, format+"\n", args...) }
	line("FAULT\tADVERTS\tSTACK\tDETECTION\tUDP STALL\tTCP WAIT, MEDIAN\tLONGEST\tCONNECTIONS LOST")
	for i := range 6 {
		for _, r := range all {
			if i < len(r.faults) {
				o := r.faults[i]
				line("%s\t%v\t%s\t%v\t%v\t%v\t%v\t%d of %d", o.fault, o.interval, r.stack, ms(o.detection), ms(o.stall), ms(o.median), ms(o.longest), o.lost, s.flows)
			}
		}
	}
	line("\nNEW CONNECTIONS\tSTACK\tALONE\tREPLICATED\tRATIO")
	for _, kind := range []struct {
		name string
		of   func(rates) float64
	}{{"UDP flows of one packet", func(r rates) float64 { return r.udp }}, {"TCP, one request each", func(r rates) float64 { return r.tcp }}} {
		for _, r := range all {
			var with, without, ratio []float64
			for i := 0; i+1 < len(r.rates); i += 2 {
				without, with = append(without, kind.of(r.rates[i])), append(with, kind.of(r.rates[i+1]))
				ratio = append(ratio, kind.of(r.rates[i+1])/kind.of(r.rates[i]))
			}
			if len(ratio) > 0 {
				line("%s\t%s\t%.0f/s\t%.0f/s\t%.2f", kind.name, r.stack, median(without), median(with), median(ratio))
			}
		}
	}
	line("\nENTRIES\tSTACK\tCPU PER MINUTE BEFORE, ACTIVE\tSTANDBY\tTO REPLICATE, ACTIVE\tSTANDBY\tPER MINUTE AFTER, ACTIVE\tSTANDBY\tMEMORY, ACTIVE\tSTANDBY\tWITHOUT ENTRIES")
	for i := range s.entries {
		for _, r := range all {
			if i < len(r.loads) {
				l := r.loads[i]
				line("%d\t%s\t%v\t%v\t%v\t%v\t%v\t%v\t%.1f MiB\t%.1f MiB\t%.1f MiB", l.entries, r.stack, ms(l.before[0]), ms(l.before[1]), ms(l.fill[0]), ms(l.fill[1]), ms(l.after[0]), ms(l.after[1]), l.memory[0], l.memory[1], l.idle)
			}
		}
	}
	_ = table.Flush()
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
