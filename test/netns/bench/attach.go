package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// idle is how long an agent is left alone to see what it takes then.
const idle = 10 * time.Second

// attempts is how often the main job is timed; the median counts.
const attempts = 7

const group = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec: {members: [{node: proxy1}]}
`

// measureAttach times the main job: from the command to the first packet that
// is answered; and how large an idle function agent is.
func measureAttach(ctx context.Context, files string) error {
	files = filepath.Join(files, "attach")
	lab, err := topo.Build(ctx, files, small)
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	agent, err := startPlatform(ctx, lab, files)
	if err != nil {
		return err
	}
	var took []float64
	for range attempts {
		start := time.Now()
		answered := make(chan error, 1)
		go func() { answered <- awaitPing(ctx, lab.Hosts[0].Pods[0].Machine) }()
		_, err := lab.Control.Run(ctx, program("vpcproxyctl"), "attach", "--subnet", topo.Subnet.String(), "--vpc", "red",
			"--name", "red", "--group", "g1", "--eni", "name=eth1", "--pods", lab.Hosts[0].Pods[0].Address.String())
		if err := errors.Join(err, <-answered); err != nil {
			return err
		}
		took = append(took, time.Since(start).Seconds())
		if _, err := lab.Control.Run(ctx, program("vpcproxyctl"), "detach", "red", "--wait"); err != nil {
			return err
		}
	}
	fmt.Printf("attach, until the first packet is answered: %.2f s (the command's own start included)\n", median(took))
	return weighIdle(ctx, agent)
}

// weighIdle leaves an agent alone, and prints what it takes nevertheless.
func weighIdle(ctx context.Context, agent *topo.Process) error {
	before, err := agent.ProcessorTime()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle):
	}
	after, err := agent.ProcessorTime()
	if err != nil {
		return err
	}
	resident, err := agent.ResidentBytes()
	if err != nil {
		return err
	}
	fmt.Printf("an idle function agent: %d MiB of memory, %.1f %% of a processor\n", resident>>20, 100*(after-before).Seconds()/idle.Seconds())
	return nil
}

// startPlatform starts a controller and two agents that follow it by mutual
// TLS, and returns the function host's.
func startPlatform(ctx context.Context, lab *topo.Lab, files string) (*topo.Process, error) {
	pki := filepath.Join(files, "pki")
	control := topo.ControlAddress.String()
	for _, args := range [][]string{
		{"pki", "init", "--ca", pki},
		{"pki", "issue", "control", "--role", "controller", "--host", control, "--ca", pki},
		{"pki", "issue", "host1", "--ca", pki},
		{"pki", "issue", "proxy1", "--ca", pki},
	} {
		if _, err := lab.Control.Run(ctx, program("vpcproxyctl"), args...); err != nil {
			return nil, err
		}
	}
	follow := "controller: {address: 'https://" + control + ":9443'}"
	var agent *topo.Process
	for _, node := range []struct {
		on    *topo.Machine
		lines []string
	}{
		{lab.Control, []string{"roles: [controller]", "controller: {listen: ':9443'}"}},
		{lab.Proxies[0].Machine, []string{"roles: [proxy]", follow}},
		{lab.Hosts[0].Machine, []string{"roles: [function]", follow}},
	} {
		var err error
		agent, err = startAgent(node.on, files, append(node.lines, "tls: {directory: "+filepath.Join(pki, node.on.Name)+"}")...)
		if err != nil {
			return nil, err
		}
	}
	path := filepath.Join(files, "group.yaml")
	if err := os.WriteFile(path, []byte(group), 0o600); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"get", "nodes", "proxy1"}, {"get", "nodes", "host1"}, {"apply", "-f", path}} {
		if err := untilDone(ctx, lab.Control, args...); err != nil {
			return nil, err
		}
	}
	return agent, nil
}

// untilDone repeats a command until it succeeds.
func untilDone(ctx context.Context, m *topo.Machine, args ...string) error {
	for {
		_, err := m.Run(ctx, program("vpcproxyctl"), args...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
