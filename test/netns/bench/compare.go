package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// How paths are compared. A round is a burst of each figure on every path, the
// paths in an order of its own: what takes the machine's time besides lasts longer
// than a burst, and hits all of them. All paths are made anew several times, because
// where the kernel happens to put a path's objects makes it faster or slower than
// its equal for as long as it lasts.
const (
	builds = 6
	rounds = 300 // on each build
)

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

// way is a path to be compared.
type way struct {
	name  string
	build func(context.Context, *topo.Lab, string) error
}

// ways are compared. The path by hand is there with the product's guards, which make
// it the same, and without, as the recipe has it; and without them once more, to
// show by how much two equal paths differ.
var ways = []way{
	{"vpcproxy", ours}, {"by hand", typed(byHand, guards)}, {"by hand, no guards", typed(byHand)},
	{"the same again", typed(byHand)}, {"plain routing", typed(routed)},
}

// comparisons are the ratios that are printed, by their index in ways.
var comparisons = [][2]int{{0, 1}, {0, 2}, {1, 2}, {3, 2}, {0, 4}}

func comparePaths(ctx context.Context, files string) error {
	results := make([][]result, len(ways))
	for i := range builds {
		if err := compareOnce(ctx, filepath.Join(files, strconv.Itoa(i)), results); err != nil {
			return err
		}
	}
	return printPaths(results)
}

// compareOnce makes all paths, in any order, and adds a build's rounds to the
// results.
func compareOnce(ctx context.Context, files string, results [][]result) (err error) {
	paths := make([]*path, len(ways))
	for _, i := range rand.Perm(len(ways)) {
		patient, cancel := context.WithTimeout(ctx, time.Minute)
		p, err := buildPath(patient, files, ways[i].name, ways[i].build)
		cancel()
		if err != nil {
			return err
		}
		defer func() { _ = p.lab.Close() }()
		paths[i] = p
	}
	stations := make([]*station, len(ways))
	for i, p := range paths {
		s, failed := newStation(p.client(), p.server(), firstPort)
		if failed != nil {
			return fmt.Errorf("%s: %w", p.name, failed)
		}
		defer func() { err = errors.Join(err, s.close()) }()
		stations[i] = s
	}
	for range rounds {
		round := make([]result, len(ways))
		for _, burst := range bursts {
			for _, i := range rand.Perm(len(ways)) {
				if err := errors.Join(ctx.Err(), burst(stations[i], &round[i])); err != nil {
					return fmt.Errorf("%s: %w", ways[i].name, err)
				}
			}
		}
		for i, r := range round {
			results[i] = append(results[i], r)
		}
	}
	return nil
}

// printPaths prints medians, and the medians of ratios, round by round.
func printPaths(results [][]result) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprint(table, "PATH")
	for _, f := range figures {
		_, _ = fmt.Fprintf(table, "\t%s", strings.ToUpper(f.head))
	}
	_, _ = fmt.Fprintln(table)
	for i, w := range ways {
		_, _ = fmt.Fprint(table, w.name)
		for _, f := range figures {
			_, _ = fmt.Fprintf(table, "\t%.0f %s", median(values(results[i], f.of))*f.scale, f.unit)
		}
		_, _ = fmt.Fprintln(table)
	}
	for _, c := range comparisons {
		_, _ = fmt.Fprintf(table, "%s to %s", ways[c[0]].name, ways[c[1]].name)
		for _, f := range figures {
			var ratios []float64
			for k, r := range results[c[0]] {
				ratio := f.of(r) / f.of(results[c[1]][k])
				if f.inverse {
					ratio = 1 / ratio
				}
				ratios = append(ratios, ratio)
			}
			low, high := medianWithin(ratios)
			_, _ = fmt.Fprintf(table, "\t%.3f ±%.3f", median(ratios), (high-low)/2)
		}
		_, _ = fmt.Fprintln(table)
	}
	_, err := fmt.Fprintf(table, "(medians of %d rounds in turn, on paths made %d times; a ratio above 1 is better; ± is for 95 %%)\n\n", builds*rounds, builds)
	if err != nil {
		return err
	}
	return table.Flush()
}

// medianWithin is where the median of what was sampled is, with a confidence of
// 95 %: between two values that are as far from the middle as 1.96 standard
// deviations of a binomial distribution (David and Nagaraja, Order Statistics, 7.1).
func medianWithin(values []float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := float64(len(sorted))
	away := 1.96 * math.Sqrt(n) / 2
	return sorted[max(0, int(n/2-away))], sorted[min(len(sorted)-1, int(math.Ceil(n/2+away)))]
}
