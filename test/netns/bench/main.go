// Command bench compares, in one run on one kernel, what the product makes
// with the same made by hand and with plain routing. make bench runs it. Only
// ratios say something: every guest is slow in its own way.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// rounds is how often each path is measured, in turn with the others so that
// a busy moment hits all of them; the median counts.
const rounds = 15

// programMode is the argument with which this program measures the engine from
// within a machine.
const programMode = "program-large-state"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	var err error
	switch mode := slices.Concat(os.Args[1:], []string{""})[0]; mode {
	case programMode:
		err = programLarge(ctx, os.Stdout)
	case alternativesMode:
		err = timeOthers(ctx, os.Stdout)
	case bindMode:
		err = run(ctx, benchCalls, benchAlternatives, benchCrowds)
	case callsMode:
		err = run(ctx, benchCalls)
	default:
		err = run(ctx, comparePaths, measureEngine, measureFirstPacket, measureAttach)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// program is the path of a built program.
func program(name string) string { return filepath.Join(os.Getenv("VPCPROXY_BIN"), name) }

func run(ctx context.Context, parts ...func(context.Context, string) error) (err error) {
	if os.Getenv("VPCPROXY_BIN") == "" {
		return errors.New("VPCPROXY_BIN does not say where the built programs are; run make bench")
	}
	files, err := os.MkdirTemp("", "vpcproxy-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	fmt.Printf("kernel %s, %d processors\n\n", strings.TrimSpace(string(release)), runtime.NumCPU())
	for _, part := range parts {
		if err := part(ctx, files); err != nil {
			return err
		}
	}
	return nil
}

func comparePaths(ctx context.Context, files string) error {
	var paths []*path
	defer func() {
		for _, p := range paths {
			_ = p.lab.Close()
		}
	}()
	for _, kind := range []struct {
		name  string
		build func(context.Context, *topo.Lab, string) error
	}{{"vpcproxy", ours}, {"by hand", typed(byHand)}, {"plain routing", typed(routed)}} {
		patient, cancel := context.WithTimeout(ctx, time.Minute)
		p, err := buildPath(patient, files, kind.name, kind.build)
		cancel()
		if err != nil {
			return err
		}
		paths = append(paths, p)
	}
	results := make(map[string][]result, len(paths))
	for range rounds {
		for _, p := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := measure(p.client(), p.server(), topo.ServerAddress, sample)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			results[p.name] = append(results[p.name], r)
		}
	}
	printPaths(paths, results)
	return nil
}

// figures are the columns, each with a ratio of which more is better.
var figures = []struct {
	head, unit string
	scale      float64
	of         func(result) float64
	inverse    bool
}{
	{"throughput", "Mbit/s", 1e-6, func(r result) float64 { return r.throughput }, false},
	{"request", "µs", 1e6, func(r result) float64 { return r.latency }, true},
	{"connections", "/s", 1, func(r result) float64 { return r.connections }, false},
}

// printPaths prints medians, and of every path the median of its ratios to the
// others, round by round.
func printPaths(paths []*path, results map[string][]result) {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprint(table, "PATH")
	for _, f := range figures {
		_, _ = fmt.Fprintf(table, "\t%s", strings.ToUpper(f.head))
	}
	_, _ = fmt.Fprintln(table)
	for _, p := range paths {
		_, _ = fmt.Fprint(table, p.name)
		for _, f := range figures {
			var all []float64
			for _, r := range results[p.name] {
				all = append(all, f.of(r)*f.scale)
			}
			_, _ = fmt.Fprintf(table, "\t%.0f %s", median(all), f.unit)
		}
		_, _ = fmt.Fprintln(table)
	}
	for _, other := range paths[1:] {
		_, _ = fmt.Fprintf(table, "%s to %s", paths[0].name, other.name)
		for _, f := range figures {
			var all []float64
			for i, r := range results[paths[0].name] {
				ratio := f.of(r) / f.of(results[other.name][i])
				if f.inverse {
					ratio = 1 / ratio
				}
				all = append(all, ratio)
			}
			_, _ = fmt.Fprintf(table, "\t%.2f", median(all))
		}
		_, _ = fmt.Fprintln(table)
	}
	_ = table.Flush()
	fmt.Printf("(medians of %d rounds in turn; a ratio above 1 is better)\n\n", rounds)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// measureEngine programs a large node's state in a machine of its own.
func measureEngine(ctx context.Context, files string) error {
	lab, err := topo.Build(ctx, filepath.Join(files, "engine"), topo.Layout{Hosts: 1})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := lab.Hosts[0].Run(ctx, self, programMode)
	if err != nil {
		return err
	}
	var p programming
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return fmt.Errorf("%s printed %q: %w", programMode, out, err)
	}
	fmt.Printf("%d neighbors, %d routes, %d rules: programmed in %v, checked again in %v\n\n",
		manyNeighbors, manyRoutes, manyRules, p.First.Round(time.Millisecond), p.Again.Round(time.Millisecond))
	return nil
}
