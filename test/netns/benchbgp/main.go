//go:debug multipathtcp=0

// Command benchbgp measures what BGP takes: many attachments' routes into a
// function host's kernel, a thousand function hosts before one proxy, and a
// failover by withdrawal alone. make bench-bgp runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"net"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	asn = 65000
	// patience bounds each wait.
	patience = 10 * time.Minute
	// metricsAddress is where every agent has its metrics.
	metricsAddress = "127.0.0.1:9464"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchbgp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 && args[0] == announceMode {
		return announce(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == crowdMode {
		return crowd(ctx, args[1:])
	}
	flags := flag.NewFlagSet("benchbgp", flag.ContinueOnError)
	attachments := flags.Int("attachments", 10_000, "attachments whose routes are measured")
	hosts := flags.Int("hosts", 1_000, "function hosts that are simulated")
	only := flags.String("only", "", "routes, hosts or failover")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Getenv("VPCPROXY_BIN") == "" {
		return errors.New("VPCPROXY_BIN does not say where the built programs are; run make bench-bgp")
	}
	files, err := os.MkdirTemp("", "vpcproxy-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	for _, part := range []struct {
		name string
		run  func(context.Context, string) error
	}{
		{"routes", func(ctx context.Context, dir string) error { return measureRoutes(ctx, dir, *attachments) }},
		{"hosts", func(ctx context.Context, dir string) error { return measureHosts(ctx, dir, *hosts) }},
		{"failover", measureFailover},
	} {
		if *only != "" && *only != part.name {
			continue
		}
		if err := part.run(ctx, filepath.Join(files, part.name)); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// agent is a vpcproxyd on a machine.
type agent struct {
	*topo.Machine
	process *topo.Process
}

func startAgent(m *topo.Machine, lines ...string) (*agent, error) {
	const path = "/run/vpcproxyd.yaml"
	lines = append(lines, "metrics: {address: '"+metricsAddress+"'}")
	if err := m.WriteFile(path, strings.Join(lines, "\n")+"\n"); err != nil {
		return nil, err
	}
	p, err := m.Start(nil, filepath.Join(os.Getenv("VPCPROXY_BIN"), "vpcproxyd"), "--config", path)
	return &agent{m, p}, err
}

func startReflector(m *topo.Machine, address netip.Addr) (*agent, error) {
	return startAgent(m, "node: reflector", "roles: [reflector]", fmt.Sprintf(
		"bgp: {mode: reflector, address: %s, ranges: [192.168.0.0/16, 10.0.0.0/8], announcers: [192.168.4.0/24]}", address))
}

const clientOfReflector = "bgp: {mode: client, reflectors: [192.168.4.20]}"

// remember has an agent start with an intent, and with a controller that is
// away.
func remember(m *topo.Machine, set any) error {
	text, err := json.Marshal(set)
	if err != nil {
		return err
	}
	return m.WriteFile("/var/lib/vpcproxy/intent.json", string(text))
}

const awayController = "controller: {address: 'unix:///run/vpcproxy/controller.sock'}"

// metric reads the sum of a metric's samples that have all the labels.
func (a *agent) metric(ctx context.Context, name string, labels ...string) (float64, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return traffic.Dial(ctx, a.Machine, network, address)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var text strings.Builder
	if _, err := copyAll(&text, resp.Body); err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(text.String()) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		matches := true
		for _, l := range labels {
			matches = matches && strings.Contains(rest, l)
		}
		if !matches {
			continue
		}
		fields := strings.Fields(rest)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

// await polls until the metric has a value of at least want.
func (a *agent) await(ctx context.Context, want float64, name string, labels ...string) error {
	var last float64
	// Reading metrics costs the agent time, too.
	err := poll(ctx, 250*time.Millisecond, func() (bool, error) {
		v, err := a.metric(ctx, name, labels...)
		last = v
		return err == nil && v >= want, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %s%v is %v, want %v: %w\n%s", a.Name, name, labels, last, want, err, a.process.Log())
	}
	return nil
}

func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// weigh prints what a process has taken.
func (a *agent) weigh(what string) error {
	resident, err := a.process.ResidentBytes()
	if err != nil {
		return err
	}
	used, err := a.process.ProcessorTime()
	if err != nil {
		return err
	}
	fmt.Printf("  %-28s %4d MiB of memory, %6.2f s of a processor since its start\n", what, resident>>20, used.Seconds())
	return nil
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
