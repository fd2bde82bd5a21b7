package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// table is lines of columns on standard output.
type table struct{ *tabwriter.Writer }

func newTable() table { return table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)} }

func (t table) line(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) }

// print prints all results, the stacks' beside each other.
func print(all []*results, s sizes) {
	t := newTable()
	if slices.ContainsFunc(all, func(r *results) bool { return len(r.faults) > 0 }) {
		printFaults(t, all, s)
	}
	if slices.ContainsFunc(all, func(r *results) bool { return len(r.rounds) > 0 }) {
		printRates(t, all)
	}
	if slices.ContainsFunc(all, func(r *results) bool { return len(r.loads) > 0 }) {
		printLoads(t, all, s)
	}
	_ = t.Flush()
}

func printFaults(t table, all []*results, s sizes) {
	t.line("FAULT\tADVERTS\tSTACK\tTIMES\tDETECTION\tWORST\tUDP STALL\tWORST\tBEFORE\tSILENCE\tTCP WAIT, MEDIAN\tLONGEST\tCONNECTIONS LOST\tRESET\tNOTE")
	for _, interval := range s.intervals {
		for _, kind := range kinds {
			for _, r := range all {
				var of []outcome
				for _, o := range r.faults {
					if o.fault == kind.name && o.interval == interval {
						of = append(of, o)
					}
				}
				if len(of) > 0 {
					printFault(t, r.stack, of)
				}
			}
		}
	}
}

// printFault prints what one fault did to one stack, as often as it happened.
func printFault(t table, stack string, of []outcome) {
	times := func(f func(o outcome) time.Duration) (middle, worst time.Duration) {
		var all []time.Duration
		for _, o := range of {
			all = append(all, f(o))
		}
		slices.Sort(all)
		return ms(all[len(all)/2]), ms(all[len(all)-1])
	}
	var flows, lost, resets, moved, anew, early int
	for _, o := range of {
		flows, lost, resets, early = flows+o.flows, lost+o.lost, resets+o.resets, early+o.early
		if o.moved {
			moved++
		}
		if o.anew {
			anew++
		}
	}
	detection, latest := times(func(o outcome) time.Duration { return o.detection })
	stall, longest := times(func(o outcome) time.Duration { return o.stall })
	before, _ := times(func(o outcome) time.Duration { return o.before })
	silence, _ := times(func(o outcome) time.Duration { return o.silence })
	median, _ := times(func(o outcome) time.Duration { return o.median })
	_, wait := times(func(o outcome) time.Duration { return o.longest })
	note := ""
	if moved > 0 {
		note += fmt.Sprintf("the role had moved without a fault %d times ", moved)
	}
	if anew > 0 {
		note += fmt.Sprintf("the pair had to be started anew %d times", anew)
	}
	if early > 0 {
		note += fmt.Sprintf(" %d connections were lost before the fault", early)
	}
	t.line("%s\t%v\t%s\t%d\t%v\t%v\t%v\t%v\t%v\t%v\t%v\t%v\t%d of %d\t%d\t%s",
		of[0].fault, of[0].interval, stack, len(of), detection, latest, stall, longest, before, silence, median, wait, lost, flows, resets, note)
}

func printRates(t table, all []*results) {
	t.line("\nNEW CONNECTIONS\tSTACK\tALONE\tREPLICATED\tRATIO")
	for _, kind := range []struct {
		name string
		of   func(rates) float64
	}{{"UDP flows of one packet", func(r rates) float64 { return r.udp }}, {"TCP, one request each", func(r rates) float64 { return r.tcp }}} {
		for _, r := range all {
			var with, without, ratio []float64
			for _, one := range r.rounds {
				a, b := kind.of(one.alone), kind.of(one.replicated)
				without, with, ratio = append(without, a), append(with, b), append(ratio, b/a)
			}
			if len(ratio) > 0 {
				t.line("%s\t%s\t%.0f/s\t%.0f/s\t%.2f", kind.name, r.stack, median(without), median(with), median(ratio))
			}
		}
	}
}

func printLoads(t table, all []*results, s sizes) {
	t.line("\nENTRIES\tSTACK\tCPU, TO REPLICATE THEM AND A MINUTE\tSTANDBY\tTO REPLICATE\tSTANDBY\tA MINUTE\tSTANDBY\tA MINUTE BEFORE\tSTANDBY\tMEMORY\tSTANDBY\tNO FILE'S\tSTANDBY\tWITHOUT ENTRIES\tENTRIES ON STANDBY")
	for i := range s.entries {
		for _, r := range all {
			if i < len(r.loads) {
				l := r.loads[i]
				t.line("%d\t%s\t%v\t%v\t%v\t%v\t%v\t%v\t%v\t%v\t%.1f MiB\t%.1f MiB\t%.1f MiB\t%.1f MiB\t%.1f MiB\t%d", l.entries, r.stack,
					ms(l.fill[0]+l.after[0]), ms(l.fill[1]+l.after[1]), ms(l.fill[0]), ms(l.fill[1]), ms(l.after[0]), ms(l.after[1]), ms(l.before[0]), ms(l.before[1]),
					l.memory[0], l.memory[1], l.own[0], l.own[1], l.idle, l.there[1])
			}
		}
	}
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// median is the middle one of values, of which there is one at least.
func median[T cmp.Ordered](values []T) T {
	v := slices.Sorted(slices.Values(values))
	return v[len(v)/2]
}
