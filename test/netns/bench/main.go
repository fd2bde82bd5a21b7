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
	"time"

	"github.com/vpcproxy/vpcproxy/internal/timerslack"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// programMode is the argument with which this program measures the engine from
// within a machine.
const programMode = "program-large-state"

// threads is how many threads of ours may be in a system call at a time. With one
// for each processor, one that comes out of its call in a guest waits until the
// runtime finds that another will not soon.
const threads = 16

func main() {
	// As the agents do: what is measured shares the processor with us.
	if err := timerslack.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	runtime.GOMAXPROCS(max(threads, runtime.GOMAXPROCS(0)))
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
	case crowdsMode:
		err = run(ctx, benchCrowds)
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

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// onBareHost has this program do something else on a host without an agent, and
// reads the JSON that it prints.
func onBareHost(ctx context.Context, files, mode string, printed any) error {
	lab, err := topo.Build(ctx, filepath.Join(files, mode), topo.Layout{Hosts: 1})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := lab.Hosts[0].Run(ctx, self, mode)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), printed); err != nil {
		return fmt.Errorf("%s printed %q: %w", mode, out, err)
	}
	return nil
}

// measureEngine programs a large node's state in a machine of its own.
func measureEngine(ctx context.Context, files string) error {
	var p programming
	if err := onBareHost(ctx, files, programMode, &p); err != nil {
		return err
	}
	fmt.Printf("%d neighbors, %d routes, %d rules: programmed in %v, checked again in %v\n\n",
		manyNeighbors, manyRoutes, manyRules, p.First.Round(time.Millisecond), p.Again.Round(time.Millisecond))
	return nil
}
