package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// What an agent may have more of after a soak than before, beside noise.
const (
	moreDescriptors = 16
	moreGoroutines  = 40
	moreMemory      = 24 << 20
)

// weight is what an agent takes.
type weight struct {
	pid         int
	descriptors int
	goroutines  int // 0 if it serves no metrics
	memory      int64
}

// soak draws faults at random for so long, and checks the invariants
// throughout. Faults that end an agent's process come like all others; what
// an agent takes is compared over the time that it ran.
func (p *platform) soak(ctx context.Context, faults []fault, d time.Duration, seed uint64) error {
	for seed == 0 {
		seed = rand.Uint64()
	}
	random := rand.New(rand.NewPCG(seed, seed))
	fmt.Printf("soak of %v, seed %d (-seed repeats it)\n\n", d, seed)
	count, failed := map[string]int{}, 0
	first := map[string]weight{}
	var heavy []error
	for end := time.Now().Add(d); time.Now().Before(end); {
		f := faults[random.IntN(len(faults))]
		name := f.area + "/" + f.name
		r, err := p.suffer(ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		count[name]++
		if len(r.problems) > 0 {
			failed++
			fmt.Printf("%s  %s: %v\n", time.Now().Format(time.TimeOnly), name, r.problems)
		}
		heavy = append(heavy, p.weigh(ctx, first)...)
	}
	names := make([]string, 0, len(count))
	total := 0
	for name, n := range count {
		names = append(names, fmt.Sprintf("%3d × %s", n, name))
		total += n
	}
	slices.Sort(names)
	for _, line := range names {
		fmt.Println(line)
	}
	complaints := p.complaints()
	for _, line := range complaints {
		fmt.Println("unexpected in the logs:", line)
	}
	fmt.Printf("\n%d faults, %d held; %d unexpected errors in the logs\n", total, total-failed, len(complaints))
	if err := errors.Join(heavy...); failed > 0 || len(complaints) > 0 || err != nil {
		p.explain()
		return errors.Join(err, fmt.Errorf("%d of %d faults did more harm than they may", failed, total))
	}
	return nil
}

// weigh compares what agents take with what they took when they had just
// started.
func (p *platform) weigh(ctx context.Context, first map[string]weight) []error {
	var errs []error
	for name, a := range p.agents {
		now := weight{pid: a.process.Pid()}
		entries, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(now.pid), "fd"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now.descriptors = len(entries)
		if now.memory, err = a.process.ResidentBytes(); err != nil {
			errs = append(errs, err)
			continue
		}
		if metrics, err := a.scrape(ctx); err == nil && len(metrics["go_goroutines"].GetMetric()) == 1 {
			now.goroutines = int(metrics["go_goroutines"].GetMetric()[0].GetGauge().GetValue())
		}
		then, ok := first[name]
		if !ok || then.pid != now.pid {
			first[name] = now
			continue
		}
		if now.descriptors > then.descriptors+moreDescriptors {
			errs = append(errs, fmt.Errorf("vpcproxyd on %s has %d descriptors open, and had %d", name, now.descriptors, then.descriptors))
			first[name] = now
		}
		if then.goroutines > 0 && now.goroutines > then.goroutines+moreGoroutines {
			errs = append(errs, fmt.Errorf("vpcproxyd on %s has %d goroutines, and had %d", name, now.goroutines, then.goroutines))
			first[name] = now
		}
		if now.memory > 2*then.memory+moreMemory {
			errs = append(errs, fmt.Errorf("vpcproxyd on %s has %d MiB, and had %d", name, now.memory>>20, then.memory>>20))
			first[name] = now
		}
	}
	return errs
}
