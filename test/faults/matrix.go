package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// result is what became of the platform under a fault.
type result struct {
	fault    fault
	stall    time.Duration // the longest that a pod waited that is not spared
	injected time.Duration // what the injection took
	sound    time.Duration // from the end of the fault until all was in place
	problems []string
}

// matrix injects every fault once and reports.
func (p *platform) matrix(ctx context.Context, out *report, faults []fault) error {
	out.printf("| # | area | fault | injected by | must hold | longest wait | in place again after | |\n")
	out.printf("|---|---|---|---|---|---|---|---|\n")
	began := time.Now()
	failed := 0
	for i, f := range faults {
		r, err := p.suffer(ctx, f)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", f.area, f.name, err)
		}
		verdict := "held"
		if len(r.problems) > 0 {
			failed++
			verdict = "**" + strings.Join(r.problems, "; ") + "**"
		}
		out.printf("| %d | %s | %s | %s | %s | %v | %v | %s |\n", i+1, f.area, f.name, code(f.how()), f.holds,
			r.stall.Round(time.Millisecond), r.sound.Round(time.Millisecond), strings.NewReplacer("|", "\\|", "\n", " ").Replace(verdict))
	}
	out.printf("\n%d faults, %d held, %v\n", len(faults), len(faults)-failed, time.Since(began).Round(time.Second))
	if failed > 0 {
		return fmt.Errorf("%d of %d faults did more harm than they may", failed, len(faults))
	}
	return nil
}

func code(s string) string {
	if s == "" {
		return "signals and processes"
	}
	return "`" + strings.ReplaceAll(s, "|", "\\|") + "`"
}

// suffer injects one fault, ends it, waits until all is in place again, and
// judges. The error is the lab's; what the product did wrong is in the result.
func (p *platform) suffer(ctx context.Context, f fault) (result, error) {
	r := result{fault: f}
	if err := p.home(ctx); err != nil {
		return r, fmt.Errorf("before it was injected: %w", err)
	}
	for _, probe := range p.probes {
		probe.begin()
	}
	start := time.Now()
	// Between the lines of the agents' logs, to read them by.
	fmt.Fprintf(os.Stderr, "%s  %s/%s\n", start.Format(time.StampMilli), f.area, f.name)
	if err := within(ctx, p, f.inject); err != nil {
		return r, fmt.Errorf("inject: %w", err)
	}
	r.injected = time.Since(start)
	lasts := usual
	if f.lasts > 0 {
		lasts = f.lasts
	}
	if f.holds.check != nil {
		patient, cancel := context.WithTimeout(ctx, max(lasts, soundLimit))
		if err := p.until(patient, func(ctx context.Context) error { return f.holds.check(ctx, p) }); err != nil {
			r.problems = append(r.problems, err.Error())
		}
		cancel()
	}
	select {
	case <-ctx.Done():
		return r, context.Cause(ctx)
	case <-time.After(time.Until(start.Add(lasts))):
	}
	if err := within(ctx, p, f.end); err != nil {
		return r, fmt.Errorf("end: %w", err)
	}
	ended := time.Now()
	fmt.Fprintf(os.Stderr, "%s  over\n", ended.Format(time.StampMilli))
	var also []func(context.Context, *platform) error
	if f.holds.after != nil {
		also = append(also, f.holds.after)
	}
	limit := cmp.Or(f.holds.within, soundLimit)
	if err := p.awaitSound(ctx, limit, also...); err != nil {
		r.problems = append(r.problems, fmt.Sprintf("not in place again after %v: %v", limit, err))
	}
	r.sound = time.Since(ended)
	if !f.holds.stays {
		if err := p.awaitSound(ctx, homeLimit, preferred); err != nil {
			r.problems = append(r.problems, fmt.Sprintf("the preferred proxy has not the role back after another %v: %v", homeLimit, err))
		}
	}
	p.judge(&r, start)
	return r, nil
}

// home waits until all is in place and the preferred proxy active, which an
// operator orders where it does not come about by itself.
func (p *platform) home(ctx context.Context) error {
	const limit = time.Minute
	if err := p.awaitSound(ctx, limit); err != nil {
		return err
	}
	if preferred(ctx, p) == nil {
		return nil
	}
	if err := p.ctl(ctx, "failover", "g1", "--to", p.lab.Proxies[0].Name); err != nil {
		return err
	}
	return p.awaitSound(ctx, limit, preferred)
}

// preferred tells whether the preferred proxy has the HaVips.
func preferred(_ context.Context, p *platform) error { return p.watch.heldBy(p.lab.Proxies[0]) }

// typingLimit is what injecting a fault, or ending it, may take.
const typingLimit = 30 * time.Second

func within(ctx context.Context, p *platform, do func(context.Context, *platform) error) error {
	ctx, cancel := context.WithTimeout(ctx, typingLimit)
	defer cancel()
	return do(ctx, p)
}

// judge compares what was seen since a moment with what must hold.
func (p *platform) judge(r *result, since time.Time) {
	holds := r.fault.holds
	// While somebody is still at it, nothing that he breaks can hold.
	limit := max(holds.stall, unnoticed)
	if holds.stall > 0 {
		limit += r.injected
	}
	for _, probe := range p.probes {
		o := probe.outcome()
		spared := slices.Contains(holds.spared, o.tenant)
		if !spared {
			r.stall = max(r.stall, o.stall)
		}
		switch {
		case spared && o.stall > unnoticed:
			r.problems = append(r.problems, fmt.Sprintf("%s of %s waited %v", o.pod, o.tenant, o.stall.Round(time.Millisecond)))
		case !spared && !holds.refused && o.stall > limit:
			r.problems = append(r.problems, fmt.Sprintf("%s waited %v", o.pod, o.stall.Round(time.Millisecond)))
		}
		if o.broken != nil && (!holds.broken || spared) {
			r.problems = append(r.problems, fmt.Sprintf("the connection of %s: %v", o.pod, o.broken))
		}
		if o.wrong != nil {
			r.problems = append(r.problems, o.wrong.Error())
		}
	}
	if n, example := p.watch.leaks(); n > 0 {
		r.problems = append(r.problems, fmt.Sprintf("%d packets left an ENI that must not (%s)", n, example))
	}
	if both := p.watch.both(since); !holds.split && both > bothLimit {
		r.problems = append(r.problems, fmt.Sprintf("two answered for a HaVip for %v", both.Round(time.Millisecond)))
	}
	r.problems = append(r.problems, p.complaints(holds.logged)...)
}

// complaints returns the lines of level ERROR since it was asked last, but for
// those with a part that is expected.
func (p *platform) complaints(expected []string) []string {
	var out []string
	for name, a := range p.agents {
		news := a.process.Log()[a.read:]
		news = news[:strings.LastIndexByte(news, '\n')+1] // whole lines
		a.read += len(news)
		for line := range strings.Lines(news) {
			if !strings.Contains(line, "level=ERROR") || slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(line, e) }) {
				continue
			}
			_, line, _ = strings.Cut(strings.TrimSpace(line), "level=ERROR ")
			out = append(out, name+" logged: "+line)
		}
	}
	return out
}
