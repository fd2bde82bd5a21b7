package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// firstPackets is how many first packets are timed, each followed by a second
// one: a hundredth of them is still a handful.
const firstPackets = 500

// measureFirstPacket times packets whose answer makes the proxy's kernel ask for
// a neighbor, and packets whose answer does not, in turn.
func measureFirstPacket(ctx context.Context, files string) error {
	patient, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p, err := buildPath(patient, files, "neighbors on demand", func(_ context.Context, lab *topo.Lab, files string) error {
		return oursWith(lab, files, "tunnel: {neighbors: on-demand}")
	})
	if err != nil {
		return err
	}
	defer func() { _ = p.lab.Close() }()
	var first, second []time.Duration
	for range firstPackets {
		forget := "ip -n vpx-red neigh del 100.64.0.80 dev vpx-red"
		if err := p.lab.Proxies[0].Type(ctx, forget); err != nil {
			return err
		}
		for _, all := range []*[]time.Duration{&first, &second} {
			took, err := timedPing(ctx, p.client())
			if err != nil {
				return fmt.Errorf("after %s: %w", forget, err)
			}
			*all = append(*all, took)
		}
	}
	for _, kind := range []struct {
		name string
		took []time.Duration
	}{{"first packet, its neighbor unknown", first}, {"second packet", second}} {
		slices.Sort(kind.took)
		fmt.Printf("%s: median %v, p99 %v, worst of %d %v\n", kind.name, at(kind.took, 50), at(kind.took, 99), len(kind.took), at(kind.took, 100))
	}
	fmt.Println()
	return nil
}

// at is a percentile of sorted times.
func at(sorted []time.Duration, percent int) time.Duration {
	return sorted[max(0, len(sorted)*percent/100-1)].Round(time.Microsecond)
}

// timedPing is a ping that must not be lost.
func timedPing(ctx context.Context, m *topo.Machine) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	start := time.Now()
	err := traffic.Ping(ctx, m, topo.ServerAddress, 64)
	return time.Since(start), err
}

// oursWith makes the path by the product, from static intent; the lines are added
// to the proxy's configuration.
func oursWith(lab *topo.Lab, files string, lines ...string) error {
	intent, err := writeIntent(files)
	if err != nil {
		return err
	}
	source := "intent: {directory: " + intent + "}"
	_, hostErr := startAgent(lab.Hosts[0].Machine, files, "roles: [function]", source)
	_, proxyErr := startAgent(lab.Proxies[0].Machine, files, append([]string{"roles: [proxy]", source}, lines...)...)
	return errors.Join(hostErr, proxyErr)
}
