// Package netns tests the built programs on a real kernel with real packets,
// in labs of package topo. make test-netns runs it; RUN=TestName runs one.
package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// Patience: how long something that must happen may take in a guest whose
// processors are emulated, and how long to look for what must not happen.
const (
	soon  = time.Minute
	never = 1500 * time.Millisecond
)

// testLab is a lab with a server in every VPC and on the platform.
type testLab struct {
	*topo.Lab
	servers map[string]*traffic.Server
	mu      sync.Mutex
	watches []*traffic.Capture
}

// newLab builds a lab that ends with the test. If the test fails, the state of
// all machines, the logs and the captures are left beside its log.
func newLab(t *testing.T, layout topo.Layout) *testLab {
	t.Helper()
	lab.Require(t, lab.GRE, lab.NFTables, lab.IPTablesNFT, lab.Clsact)
	dir := t.TempDir()
	built, err := topo.Build(t.Context(), dir, layout)
	if err != nil {
		t.Fatal(err)
	}
	l := &testLab{Lab: built, servers: map[string]*traffic.Server{}}
	t.Cleanup(func() { l.close(t) })
	for name, vpc := range built.VPCs {
		l.serve(t, vpc.Machine, name)
	}
	l.serve(t, built.Router, "platform")
	return l
}

func (l *testLab) serve(t *testing.T, m *topo.Machine, name string) {
	t.Helper()
	server, err := traffic.Serve(m, name)
	if err != nil {
		t.Fatal(err)
	}
	l.servers[name] = server
}

func (l *testLab) close(t *testing.T) {
	if t.Failed() {
		l.preserve(t)
	}
	for _, s := range l.servers {
		if err := s.Close(); err != nil {
			t.Errorf("close a server: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("close the lab: %v", err)
	}
}

// preserve writes what helps to understand a failure.
func (l *testLab) preserve(t *testing.T) {
	artifacts := lab.Artifacts(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var ours []*topo.Machine
	for _, h := range l.Hosts {
		ours = append(ours, h.Machine)
	}
	for _, p := range l.Proxies {
		ours = append(ours, p.Machine)
	}
	for _, m := range ours {
		state, err := m.Dump(ctx)
		if err != nil {
			t.Logf("the state of %s is incomplete: %v", m.Name, err)
		}
		keep(t, filepath.Join(artifacts, m.Name+".txt"), []byte(state))
	}
	logs, _ := filepath.Glob(filepath.Join(l.Dir(), "*.log"))
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err == nil {
			keep(t, filepath.Join(artifacts, filepath.Base(path)), content)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.watches {
		var b strings.Builder
		if err := w.WritePcap(&b); err == nil {
			keep(t, filepath.Join(artifacts, w.Name+".pcap"), []byte(b.String()))
		}
	}
	t.Logf("state, logs and captures: %s", artifacts)
}

func keep(t *testing.T, path string, content []byte) {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Logf("keep %s: %v", filepath.Base(path), err)
	}
}

// watch captures on a device until the test ends; nothing may pass unseen.
func (l *testLab) watch(t *testing.T, m *topo.Machine, device string, filter func(traffic.Packet) bool) *traffic.Capture {
	t.Helper()
	c, err := traffic.StartCapture(m, device, filter)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.watches = append(l.watches, c)
	l.mu.Unlock()
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// typeLines types commands on a machine; each must succeed.
func typeLines(t *testing.T, m *topo.Machine, lines ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := m.Type(ctx, lines...); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check succeeds.
func eventually(t *testing.T, limit time.Duration, check func(ctx context.Context) error) {
	t.Helper()
	if err := within(t.Context(), limit, check); err != nil {
		t.Fatalf("not within %v: %v", limit, err)
	}
}

// within polls check until it succeeds and returns its last error otherwise.
func within(ctx context.Context, limit time.Duration, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, min(limit, 2*time.Second))
		err := check(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answeredBy waits until a machine's request is answered by the right server,
// which must have seen the right source. Any other server is a failure at
// once: tenants never meet, not even for a moment.
func answeredBy(t *testing.T, m *topo.Machine, address netip.Addr, server string, source netip.Addr) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		answer, err := traffic.Get(ctx, m, address)
		if err != nil {
			return err
		}
		if err := wrong(answer, server, source); err != nil {
			t.Fatalf("%s asked %s: %v", m.Name, address, err)
		}
		return nil
	})
}

// wrong says what is wrong with an answer.
func wrong(answer traffic.Answer, server string, source netip.Addr) error {
	if answer.Server != server {
		return fmt.Errorf("answered by %q (which saw %s), not by %q", answer.Server, answer.Client, server)
	}
	if source.IsValid() && answer.Client.Addr() != source {
		return fmt.Errorf("server %s saw source %s, want %s", server, answer.Client, source)
	}
	return nil
}

// unreachable checks that a machine gets no answer from an address.
func unreachable(t *testing.T, m *topo.Machine, address netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	if answer, err := traffic.Get(ctx, m, address); err == nil {
		t.Errorf("%s reached %s: answered by %q, which saw %s", m.Name, address, answer.Server, answer.Client)
	}
}

// askOnce is one request that must be answered by the right server, which must
// have seen the right source.
func askOnce(ctx context.Context, m *topo.Machine, server string, source netip.Addr) error {
	answer, err := traffic.Get(ctx, m, topo.ServerAddress)
	if err != nil {
		return err
	}
	return wrong(answer, server, source)
}
