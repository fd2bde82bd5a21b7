package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	at          time.Time
	pid         int
	descriptors int
	goroutines  int // 0 if it serves no metrics
	memory      int64
}

// course is what a soak has met so far.
type course struct {
	drawn       map[string]int // faults, by area/name
	failed      int
	first, last map[string]weight // of each agent's running process
	heavy       []error
}

// soak draws faults at random for so long, and checks the invariants
// throughout. Faults that end an agent's process come like all others; what
// an agent takes is compared over the time that it ran.
func (p *platform) soak(ctx context.Context, out *report, faults []fault, d time.Duration, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, seed))
	c := &course{drawn: map[string]int{}, first: map[string]weight{}, last: map[string]weight{}}
	for end := time.Now().Add(d); time.Now().Before(end); {
		f := faults[random.IntN(len(faults))]
		name := f.area + "/" + f.name
		r, err := p.suffer(ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c.drawn[name]++
		if len(r.problems) > 0 {
			c.failed++
			out.printf("- **%s: %s**\n", name, strings.Join(r.problems, "; "))
		}
		c.heavy = append(c.heavy, p.weigh(ctx, c.first, c.last)...)
	}
	return p.conclude(out, c)
}

// conclude reports a soak, and fails if anything did not hold.
func (p *platform) conclude(out *report, c *course) error {
	total := 0
	out.printf("\n| fault | drawn |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(c.drawn)) {
		total += c.drawn[name]
		out.printf("| %s | %d |\n", name, c.drawn[name])
	}
	out.printf("\n| agent | has run for | goroutines | descriptors | memory, MiB |\n|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(c.first)) {
		then, now := c.first[name], c.last[name]
		out.printf("| %s | %v | %d, then %d | %d, then %d | %d, then %d |\n", name, now.at.Sub(then.at).Round(time.Second),
			then.goroutines, now.goroutines, then.descriptors, now.descriptors, then.memory>>20, now.memory>>20)
	}
	out.printf("\n")
	for _, err := range c.heavy {
		out.printf("- **%v**\n", err)
	}
	out.printf("\n%d faults, %d held\n", total, total-c.failed)
	if c.failed+len(c.heavy) == 0 {
		return nil
	}
	return errors.Join(errors.Join(c.heavy...), fmt.Errorf("%d of %d faults did more harm than they may", c.failed, total))
}

// weigh compares what agents take with what they took when they were weighed
// first.
func (p *platform) weigh(ctx context.Context, first, last map[string]weight) []error {
	var errs []error
	for name, a := range p.agents {
		now := weight{at: time.Now(), pid: a.process.Pid()}
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
		last[name] = now
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
