package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// warmBinds, newBinds and coldBinds are how often a binding is timed at each
	// number of pods.
	warmBinds, newBinds, coldBinds = 1000, 200, 15
	// aim is what a warm binding should stay below in 99 of 100.
	aim = 2 * time.Millisecond
)

// The calls that are timed, in turn. An empty call is an unbind of a pod that is
// not bound: the same way there and back, with nothing to do at its end.
const (
	emptyCall = iota
	warmBind
	newBind // by a connection of its own
	unbindCall
	coldBind
	callKinds
)

// callTimes is what calls took.
type callTimes [callKinds][]time.Duration

// benchCalls times bindings. The host's agent is the only one in the guest: a
// function host runs no other.
func benchCalls(ctx context.Context, files string) error {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	// A client as any other: one call after the other, which nothing of ours is beside.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU()))
	files = filepath.Join(files, "calls")
	lab, source, err := buildBound(ctx, files, topo.Layout{Hosts: 1, Pods: 1, VPCs: []string{"red", "cold"}})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	b, err := startBound(ctx, files, source, lab.Hosts[0])
	if err != nil {
		return err
	}
	// An agent that has just started is still asking the kernel for memory, page by page.
	if err := b.timeWarm(ctx, &callTimes{}); err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "BOUND PODS\tEMPTY CALL p50\tp99\tWARM BIND p50\tp99\tWITHIN "+strings.ToUpper(aim.String())+"\tTHE AGENT'S PART p99\tWITHIN\tBY A NEW CONNECTION p50\tp99\tUNBIND p50\tp99\tCOLD BIND p50\tp99")
	for _, n := range crowds {
		if err := b.printCalls(ctx, table, n); err != nil {
			return err
		}
	}
	return table.Flush()
}

// printCalls times calls beside n bound pods and prints a line.
func (b *boundHost) printCalls(ctx context.Context, table *tabwriter.Writer, n int) error {
	if err := b.gather(ctx, n); err != nil {
		return err
	}
	// Our own garbage is not collected meanwhile: a plugin that binds a pod ends
	// long before it would.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var took callTimes
	before, err := b.bindHistogram(ctx)
	if err != nil {
		return err
	}
	if err := b.timeWarm(ctx, &took); err != nil {
		return err
	}
	after, err := b.bindHistogram(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(b.timeNew(ctx, &took), b.timeCold(ctx, &took)); err != nil {
		return err
	}
	for _, all := range took {
		slices.Sort(all)
	}
	inside := after.since(before)
	percentiles := func(kind int) string {
		if len(took[kind]) == 0 {
			return "-\t-"
		}
		return fmt.Sprintf("%v\t%v", at(took[kind], 50), at(took[kind], 99))
	}
	within, _ := slices.BinarySearch(took[warmBind], aim)
	_, err = fmt.Fprintf(table, "%d\t%s\t%s\t%.1f %%\t≤ %v\t%.1f %%\t%s\t%s\t%s\n", n, percentiles(emptyCall), percentiles(warmBind),
		100*float64(within)/warmBinds, inside.bound(0.99), 100*inside.within(aim), percentiles(newBind), percentiles(unbindCall), percentiles(coldBind))
	return err
}

// extraPod is one more pod than the crowd has. Each has an address of its own, as
// they come from a range in turn.
func extraPod(turn int) netip.Addr { return crowdPod(crowds[len(crowds)-1] + turn%1000) }

// time does something and notes what it took.
func (t *callTimes) time(kind int, f func() error) error {
	start := time.Now()
	err := f()
	t[kind] = append(t[kind], time.Since(start))
	return err
}

// timeWarm times one more pod beside the crowd, on the crowd's attachment.
func (b *boundHost) timeWarm(ctx context.Context, took *callTimes) error {
	unbind := func(pod netip.Addr, want bool) func() error {
		return func() error {
			removed, err := b.unbind(ctx, pod)
			if err == nil && removed != want {
				err = fmt.Errorf("unbind of pod %s: removed is %v", pod, removed)
			}
			return err
		}
	}
	for i := range warmBinds {
		pod := extraPod(i)
		if err := errors.Join(
			took.time(emptyCall, unbind(pod, false)),
			took.time(warmBind, func() error { return b.bind(ctx, pod, "red") }),
			took.time(unbindCall, unbind(pod, true)),
		); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// timeNew times one more pod, by a connection of its own.
func (b *boundHost) timeNew(ctx context.Context, took *callTimes) error {
	for i := range newBinds {
		pod := extraPod(i)
		if err := took.time(newBind, func() error { return b.bindAnew(ctx, pod, "red") }); err != nil {
			return err
		}
		if _, err := b.unbind(ctx, pod); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// timeCold times one more pod, on an attachment whose path is not there. On a
// kernel without GRE no path can be made, and nothing is timed.
func (b *boundHost) timeCold(ctx context.Context, took *callTimes) error {
	if made, err := b.hasDevice("vpx-red"); err != nil || !made {
		return err
	}
	for i := range coldBinds {
		pod := extraPod(i)
		if err := took.time(coldBind, func() error { return b.bind(ctx, pod, "cold") }); err != nil {
			return err
		}
		if _, err := b.unbind(ctx, pod); err != nil {
			return err
		}
		for {
			made, err := b.hasDevice("vpx-cold")
			if err != nil {
				return err
			}
			if !made {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// hasDevice tells whether the host has such a device.
func (b *boundHost) hasDevice(name string) (made bool, err error) {
	err = b.InNetwork(func() error {
		list, err := net.Interfaces()
		made = slices.ContainsFunc(list, func(i net.Interface) bool { return i.Name == name })
		return err
	})
	return made, err
}

// histogram is a histogram as Prometheus reads it: how many took no longer than
// each bound, in seconds.
type histogram map[float64]float64

// bindHistogram reads what the agent itself has measured of binds.
func (b *boundHost) bindHistogram(ctx context.Context) (histogram, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: metrics: %w", b.Name, err)
	}
	defer resp.Body.Close()
	h := histogram{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		// Labels come in the order of their names.
		rest, ok := strings.CutPrefix(lines.Text(), `vpcproxy_bind_duration_seconds_bucket{op="bind",outcome="ok",le="`)
		le, count, cut := strings.Cut(rest, `"} `)
		if !ok || !cut {
			continue
		}
		bound, err := strconv.ParseFloat(le, 64)
		n, err2 := strconv.ParseFloat(count, 64)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("%s: metrics: %w", b.Name, err)
		}
		h[bound] = n
	}
	if len(h) == 0 {
		return nil, errors.Join(fmt.Errorf("%s: metrics have no vpcproxy_bind_duration_seconds of binds", b.Name), lines.Err())
	}
	return h, lines.Err()
}

// since is what has been added to an older state.
func (h histogram) since(before histogram) histogram {
	out := histogram{}
	for bound, n := range h {
		out[bound] = n - before[bound]
	}
	return out
}

// within is the share that took no longer than a bound of the histogram.
func (h histogram) within(d time.Duration) float64 { return h[d.Seconds()] / h[math.Inf(1)] }

// bound is the smallest bound that a share stayed within.
func (h histogram) bound(share float64) time.Duration {
	least := math.Inf(1)
	for bound, n := range h {
		if n >= share*h[math.Inf(1)] {
			least = min(least, bound)
		}
	}
	if math.IsInf(least, 1) {
		return math.MaxInt64
	}
	return time.Duration(math.Round(least * float64(time.Second)))
}
