package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// crowdRounds is how often two hosts are compared; each round measures
	// both twice.
	crowdRounds = 25
	// crowdSample is how long a measurement takes there: the shorter, the more
	// alike is what else goes on during the two that are compared.
	crowdSample = 150 * time.Millisecond
)

// crowdBench compares two hosts that differ in the number of their pods.
type crowdBench struct {
	lab       *topo.Lab
	one, many *boundHost
}

// benchCrowds measures what a crowd of bound pods costs a packet. Two hosts that
// are alike are compared first: how far their ratio is from 1 tells how far the
// others can be trusted.
func benchCrowds(ctx context.Context, files string) error {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	files = filepath.Join(files, "crowds")
	lab, source, err := buildBound(ctx, files, topo.Layout{Hosts: 2, Pods: 1, Proxies: 1, VPCs: []string{"red", "cold"}})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	if _, err := startAgent(lab.Proxies[0].Machine, files, "roles: [proxy]", source); err != nil {
		return err
	}
	b := &crowdBench{lab: lab}
	for i, into := range []**boundHost{&b.one, &b.many} {
		if *into, err = startBound(ctx, files, source, lab.Hosts[i]); err != nil {
			return err
		}
		if err := awaitPing(ctx, lab.Hosts[i].Pods[0].Machine); err != nil {
			return err
		}
	}
	return b.compare(ctx)
}

// compare prints a line for each crowd, of bound pods and of policy rules, one
// for each pod (from POD to CIDR), instead.
func (b *crowdBench) compare(ctx context.Context) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\nON A HOST, TO ANOTHER WITH 1\tTHROUGHPUT\t\tREQUEST\t\tCONNECTIONS\t")
	var single []result
	line := func(name string) error {
		one, many, err := b.rounds(ctx)
		if err != nil {
			return err
		}
		single = append(single, one...)
		_, err = fmt.Fprintln(table, name+ratios(many, one))
		return err
	}
	for _, n := range crowds {
		name := fmt.Sprintf("%d bound pods", n)
		if n == b.one.bound {
			name = "1 bound pod (both alike)"
		}
		if err := errors.Join(b.many.gather(ctx, n), line(name)); err != nil {
			return err
		}
	}
	if err := b.many.gather(ctx, 1); err != nil {
		return err
	}
	for _, n := range crowds[1:] {
		if err := errors.Join(b.many.rules(ctx, n), line(fmt.Sprintf("%d rules", n)), b.many.rules(ctx, 0)); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprint(table, "the host with 1, medians")
	for _, f := range figures {
		_, _ = fmt.Fprintf(table, "\t%.0f %s\t", median(values(single, f.of))*f.scale, f.unit)
	}
	_, _ = fmt.Fprintf(table, "\n\n(medians of %d rounds of %v each, and where they are with 95 %% confidence; above 1 is better)\n", crowdRounds, crowdSample)
	return table.Flush()
}

// rounds measures both hosts, in the order one, many, many, one, so that what
// changes slowly changes both alike.
func (b *crowdBench) rounds(ctx context.Context) (one, many []result, err error) {
	for range crowdRounds {
		for _, turn := range []struct {
			host *boundHost
			into *[]result
		}{{b.one, &one}, {b.many, &many}, {b.many, &many}, {b.one, &one}} {
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			r, err := measure(turn.host.Pods[0].Machine, b.lab.VPCs["red"].Machine, topo.ServerAddress, crowdSample)
			if err != nil {
				return nil, nil, err
			}
			*turn.into = append(*turn.into, r)
		}
	}
	return one, many, nil
}

// ratios compares pairs of measurements that were made beside each other.
func ratios(of, to []result) string {
	var out strings.Builder
	for _, f := range figures {
		var all []float64
		for i := 0; i+1 < len(of); i += 2 {
			ratio := (f.of(of[i]) + f.of(of[i+1])) / (f.of(to[i]) + f.of(to[i+1]))
			if f.inverse {
				ratio = 1 / ratio
			}
			all = append(all, ratio)
		}
		low, high := medianWithin(all)
		fmt.Fprintf(&out, "\t%.3f\t%.3f to %.3f", median(all), low, high)
	}
	return out.String()
}

// medianWithin is where the median of what was sampled is, with a confidence of
// 95 %: between two values that are as far from the middle as 1.96 standard
// deviations of a binomial distribution.
func medianWithin(values []float64) (low, high float64) {
	slices.Sort(values)
	n := float64(len(values))
	away := 1.96 * math.Sqrt(n) / 2
	return values[max(0, int(n/2-away))], values[min(len(values)-1, int(math.Ceil(n/2+away)))]
}

func values(results []result, of func(result) float64) (out []float64) {
	for _, r := range results {
		out = append(out, of(r))
	}
	return out
}

// rules replaces the rules that stand for pods.
func (b *boundHost) rules(ctx context.Context, n int) error {
	lines := "rule del priority 9\n"
	if n > 0 {
		lines = ""
		for i := range n {
			lines += fmt.Sprintf("rule add priority 9 from %s to 172.16.101.0/24 table 9\n", crowdPod(i))
		}
		_, err := b.RunInput(ctx, lines, "ip", "-batch", "-")
		return err
	}
	for range crowds[len(crowds)-1] {
		lines += "rule del priority 9\n"
	}
	_, err := b.RunInput(ctx, lines, "ip", "-force", "-batch", "-")
	var exit *topo.ExitError
	if errors.As(err, &exit) { // fewer than that
		return nil
	}
	return err
}
