// Command faults breaks a running platform in every way that its table lists,
// one after the other (make faults) or at random (make soak), and checks what
// must hold meanwhile and afterwards. It prints a report in Markdown, and leaves
// it among the artifacts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

func main() {
	soak := flag.Duration("soak", 0, "draw faults at random for so long, instead of all of them once")
	only := flag.String("run", "", "regular expression: the faults to inject, by area/name")
	seed := flag.Uint64("seed", 0, "of what soak draws; 0 is another one each time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *soak, *only, *seed)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, soak time.Duration, only string, seed uint64) (err error) {
	choice, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	var chosen []fault
	for _, f := range faults() {
		if choice.MatchString(f.area + "/" + f.name) {
			chosen = append(chosen, f)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-run %q: no fault matches", only)
	}
	for seed == 0 {
		seed = rand.Uint64()
	}
	r, err := openReport(only, soak, seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	p, err := newPlatform(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.explain()
		}
		err = errors.Join(err, p.close())
	}()
	if soak > 0 {
		return p.soak(ctx, r, chosen, soak, seed)
	}
	return p.matrix(ctx, r, chosen)
}
