package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const nodes = `apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: host1}
spec: {roles: [function], underlayAddress: 192.168.80.8, tunnelAddress: 100.64.0.80}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: proxy1}
spec: {roles: [proxy], underlayAddress: 192.168.4.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: proxy2}
spec: {roles: [proxy], underlayAddress: 192.168.4.5}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: red}
spec:
  vpc: red
  cidrs: [172.16.101.0/24]
  group: g1
  greKey: 101
  haVip: ` + innerVip + `
  pods: [10.244.1.5/32]
  enis: [{node: proxy1, name: eth1}, {node: proxy2, name: eth1}]
`

const group = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec:
  members: [{node: proxy1, priority: 100}, {node: proxy2, priority: 100}]
  tunnelAddress: 100.64.0.4
  haVip: ` + outerVip + `
  vrid: 51
  preempt: false
  advertisementInterval: %v
`

// product is a pair made by the product, from static intent.
func product(ctx context.Context, files string) (*stack, error) {
	s, err := newStack(ctx, "vpcproxy", files)
	if err != nil {
		return nil, err
	}
	if err := s.makeProduct(ctx); err != nil {
		return nil, errors.Join(err, s.lab.Close())
	}
	return s, nil
}

func (s *stack) makeProduct(ctx context.Context) error {
	s.run = runAgent
	ca := filepath.Join(s.files, "ca")
	ctl := filepath.Join(os.Getenv("VPCPROXY_BIN"), "vpcproxyctl")
	if err := os.Mkdir(filepath.Join(s.files, "intent"), 0o755); err != nil {
		return err
	}
	if _, err := s.write("intent/nodes.yaml", nodes); err != nil {
		return err
	}
	if err := s.writeGroup(); err != nil {
		return err
	}
	for _, args := range [][]string{{"pki", "init", "--ca", ca}, {"pki", "issue", "proxy1", "--ca", ca}, {"pki", "issue", "proxy2", "--ca", ca}} {
		if _, err := s.lab.Control.Run(ctx, ctl, args...); err != nil {
			return err
		}
	}
	_, err := s.agent(s.lab.Hosts[0].Machine, "roles: [function]")
	return err
}

func (s *stack) writeGroup() error {
	_, err := s.write("intent/group.yaml", fmt.Sprintf(group, s.interval))
	return err
}

func (s *stack) agent(m *topo.Machine, lines ...string) (*topo.Process, error) {
	lines = append(lines, "intent: {directory: "+filepath.Join(s.files, "intent")+"}")
	path, err := s.write(m.Name+".yaml", strings.Join(lines, "\n")+"\n")
	if err != nil {
		return nil, err
	}
	return m.StartNice(foremost, nil, filepath.Join(os.Getenv("VPCPROXY_BIN"), "vpcproxyd"), "--config", path)
}

// runAgent starts a proxy's agent.
func runAgent(s *stack, i int, replicate bool) ([]*topo.Process, error) {
	if err := s.writeGroup(); err != nil {
		return nil, err
	}
	m := s.lab.Proxies[i].Machine
	lines := []string{"roles: [proxy]", "tls: {directory: " + filepath.Join(s.files, "ca", m.Name) + "}"}
	if !replicate {
		lines = append(lines, "ha: {sessionListen: off}")
	}
	p, err := s.agent(m, lines...)
	return []*topo.Process{p}, err
}
