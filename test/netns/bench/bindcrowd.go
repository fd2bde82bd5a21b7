package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// crowdRounds is how often two hosts are compared; each round measures both twice.
const crowdRounds = 1000

// crowdBench compares two hosts that differ in the number of their pods.
type crowdBench struct {
	lab       *topo.Lab
	one, many *boundHost
}

// benchCrowds measures what a crowd of bound pods costs a packet on its way from
// one of them. Two hosts that are alike are compared first, for one of them is
// always a little faster, by where the kernel has put what it needs; and once more
// at the end, which tells how far the others can be trusted.
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
	_, _ = fmt.Fprintln(table, "\nON A HOST, TO ANOTHER WITH 1\tTHROUGHPUT\tREQUEST\tCONNECTIONS")
	var single []result
	alike := make([]float64, len(figures))
	line := func(name string) error {
		one, many, err := b.rounds(ctx)
		if err != nil {
			return err
		}
		single = append(single, one...)
		_, _ = fmt.Fprint(table, name)
		for i, f := range figures {
			all := ratios(many, one, f.of, f.inverse)
			low, high := medianWithin(all)
			unit := 1.0
			if alike[i] == 0 {
				alike[i] = median(all)
			} else {
				unit = alike[i]
			}
			_, _ = fmt.Fprintf(table, "\t%.3f ±%.3f", median(all)/unit, (high-low)/2/unit)
		}
		_, err = fmt.Fprintln(table)
		return err
	}
	if err := line("1 bound pod, before: the hosts themselves"); err != nil {
		return err
	}
	for _, n := range crowds[1:] {
		if err := errors.Join(b.many.gather(ctx, n), line(fmt.Sprintf("%d bound pods", n))); err != nil {
			return err
		}
	}
	if err := errors.Join(b.many.gather(ctx, 1), line("1 bound pod, again")); err != nil {
		return err
	}
	for _, n := range crowds[1:] {
		if err := errors.Join(b.many.rules(ctx, n), line(fmt.Sprintf("%d rules", n)), b.many.rules(ctx, 0)); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprint(table, "the host with 1, medians")
	for _, f := range figures {
		_, _ = fmt.Fprintf(table, "\t%.0f %s", median(values(single, f.of))*f.scale, f.unit)
	}
	_, _ = fmt.Fprintf(table, "\n\n(medians of %d rounds in turn, ± is for 95 %%; all but the first as parts of the first; above 1 is better)\n", crowdRounds)
	return table.Flush()
}

// rounds measures both hosts, in the order one, many, many, one, so that what
// changes slowly changes both alike.
func (b *crowdBench) rounds(ctx context.Context) (one, many []result, err error) {
	var stations [2]*station
	for i := range stations {
		s, failed := newStation(b.lab.Hosts[i].Pods[0].Machine, b.lab.VPCs["red"].Machine, firstPort+i*stationPorts)
		if failed != nil {
			return nil, nil, failed
		}
		defer func() { err = errors.Join(err, s.close()) }()
		stations[i] = s
	}
	for range crowdRounds {
		var round [4]result
		for _, burst := range bursts {
			for turn, of := range []int{0, 1, 1, 0} {
				if err := errors.Join(ctx.Err(), burst(stations[of], &round[turn])); err != nil {
					return nil, nil, err
				}
			}
		}
		one, many = append(one, round[0], round[3]), append(many, round[1], round[2])
	}
	return one, many, nil
}

// ratios compares pairs of measurements that were made beside each other.
func ratios(of, to []result, figure func(result) float64, inverse bool) (all []float64) {
	for i := 0; i+1 < len(of); i += 2 {
		ratio := (figure(of[i]) + figure(of[i+1])) / (figure(to[i]) + figure(to[i+1]))
		if inverse {
			ratio = 1 / ratio
		}
		all = append(all, ratio)
	}
	return all
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
