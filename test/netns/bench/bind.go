package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	rpc "connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// bindMode is the argument with which this program measures bindings.
	bindMode = "bind"
	// warmBinds and coldBinds are how often a binding is timed at each number
	// of pods, and bindRounds how often the path is measured there.
	warmBinds, coldBinds, bindRounds = 500, 15, 7
)

// crowds are the numbers of bound pods.
var crowds = []int{1, 100, 2000}

// boundManifests have an attachment that the crowd uses, and one whose path is
// taken away as soon as nobody does.
const boundManifests = `apiVersion: vpcproxy.io/v1alpha1
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
kind: ProxyGroup
metadata: {name: g1}
spec: {members: [{node: proxy1}], tunnelAddress: 100.64.0.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: red}
spec: {vpc: red, cidrs: [172.16.101.0/24], group: g1, greKey: 101, enis: [{name: eth1}]}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: cold}
spec: {vpc: cold, cidrs: [172.16.102.0/24], group: g1, greKey: 102, enis: [{name: eth2}]}
`

// bindBench is a host with a crowd of pods.
type bindBench struct {
	path
	agent vpcproxyv1alpha1connect.BindServiceClient
	bound int // pods of the crowd that are bound
}

func benchBind(ctx context.Context, files string) error {
	patient, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	b, err := newBindBench(patient, files)
	if err != nil {
		return err
	}
	defer func() { _ = b.lab.Close() }()
	if err := b.timeBinds(patient); err != nil {
		return err
	}
	if err := b.comparePods(patient); err != nil {
		return err
	}
	return b.timeAlternatives(patient)
}

func newBindBench(ctx context.Context, files string) (*bindBench, error) {
	files = filepath.Join(files, "bind")
	lab, err := topo.Build(ctx, files, topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red", "cold"}})
	if err != nil {
		return nil, err
	}
	b := &bindBench{path: path{name: "bind", lab: lab}}
	host, pod := lab.Hosts[0], lab.Hosts[0].Pods[0]
	intent := filepath.Join(files, "intent")
	source := "intent: {directory: " + intent + "}"
	fail := func(err error) (*bindBench, error) { return nil, errors.Join(err, lab.Close()) }
	if err := errors.Join(
		os.MkdirAll(intent, 0o755), os.WriteFile(filepath.Join(intent, "all.yaml"), []byte(boundManifests), 0o644),
		// The crowd's addresses are routed to the one pod there is.
		host.Type(ctx, "ip route add 10.245.0.0/20 dev "+pod.Veth), pod.Type(ctx, "ip route add local 10.245.0.0/20 dev lo"),
	); err != nil {
		return fail(err)
	}
	_, hostErr := startAgent(host.Machine, files, "roles: [function]", source, "bind: {linger: 0s}")
	_, proxyErr := startAgent(lab.Proxies[0].Machine, files, "roles: [proxy]", source)
	if err := errors.Join(hostErr, proxyErr); err != nil {
		return fail(err)
	}
	b.agent = vpcproxyv1alpha1connect.NewBindServiceClient(&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = host.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "unix", "/run/vpcproxy/node.sock")
				return err
			})
			return c, err
		},
	}}, "http://node")
	// The pod that is measured from is bound throughout.
	for b.bind(ctx, pod.Address, "red") != nil {
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.bound = 1
	if err := awaitPing(ctx, b.client()); err != nil {
		return fail(err)
	}
	return b, nil
}

func (b *bindBench) bind(ctx context.Context, pod netip.Addr, attachment string) error {
	_, err := b.agent.Bind(ctx, rpc.NewRequest(&apiv1.BindRequest{PodIp: pod.String(), Attachments: []string{attachment}}))
	return err
}

func (b *bindBench) unbind(ctx context.Context, pod netip.Addr) error {
	_, err := b.agent.Unbind(ctx, rpc.NewRequest(&apiv1.UnbindRequest{PodIp: pod.String()}))
	return err
}

func crowdPod(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}) }

// gather binds or unbinds pods of the crowd until n are bound.
func (b *bindBench) gather(ctx context.Context, n int) error {
	for ; b.bound < n; b.bound++ {
		if err := b.bind(ctx, crowdPod(b.bound), "red"); err != nil {
			return err
		}
	}
	for ; b.bound > n; b.bound-- {
		if err := b.unbind(ctx, crowdPod(b.bound-1)); err != nil {
			return err
		}
	}
	return nil
}

// timeBinds times one more pod beside the crowd: on the crowd's attachment, and
// on one whose path is not there.
func (b *bindBench) timeBinds(ctx context.Context) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "BOUND PODS\tWARM BIND p50\tp99\tCOLD BIND p50\tp99\tUNBIND p50\tp99")
	// Each pod has an address of its own, as they come from a range in turn.
	turn := 0
	for _, n := range crowds {
		if err := b.gather(ctx, n); err != nil {
			return err
		}
		var took [3][]time.Duration
		timed := func(kind int, f func() error) error {
			start := time.Now()
			err := f()
			took[kind] = append(took[kind], time.Since(start))
			return err
		}
		for i := range warmBinds + coldBinds {
			kind, attachment := 0, "red"
			if i >= warmBinds {
				kind, attachment = 1, "cold"
			}
			turn++
			extra := crowdPod(crowds[len(crowds)-1] + turn%1000)
			if err := errors.Join(
				timed(kind, func() error { return b.bind(ctx, extra, attachment) }),
				timed(2, func() error { return b.unbind(ctx, extra) }),
			); err != nil {
				return err
			}
			if kind == 1 {
				if err := b.awaitGone(ctx, "vpx-cold"); err != nil {
					return err
				}
			}
		}
		_, _ = fmt.Fprintf(table, "%d", n)
		for _, all := range took {
			slices.Sort(all)
			_, _ = fmt.Fprintf(table, "\t%v\t%v", at(all, 50), at(all, 99))
		}
		_, _ = fmt.Fprintln(table)
	}
	return errors.Join(table.Flush(), ctx.Err())
}

// awaitGone waits until the host has no such device.
func (b *bindBench) awaitGone(ctx context.Context, device string) error {
	for ctx.Err() == nil {
		gone := false
		if err := b.lab.Hosts[0].InNetwork(func() error {
			_, err := net.InterfaceByName(device)
			gone = err != nil
			return nil
		}); err != nil || gone {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

// comparePods measures one pod's path beside crowds, in turn, and the same with
// one policy rule for each pod instead.
func (b *bindBench) comparePods(ctx context.Context) error {
	crowded := make([][]result, len(crowds))
	ruled := make([][]result, len(crowds))
	measured := func(into *[]result) error {
		r, err := measure(b.client(), b.server(), topo.ServerAddress)
		*into = append(*into, r)
		return err
	}
	for range bindRounds {
		for i, n := range crowds {
			if err := errors.Join(b.gather(ctx, n), measured(&crowded[i])); err != nil {
				return err
			}
		}
		if err := b.gather(ctx, 1); err != nil {
			return err
		}
		for i, n := range crowds {
			if err := errors.Join(b.rules(ctx, n), measured(&ruled[i]), b.rules(ctx, 0)); err != nil {
				return err
			}
		}
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\nPODS\tTHROUGHPUT\tREQUEST\tCONNECTIONS\tTHE SAME WITH A RULE FOR EACH POD\t\t")
	for i, n := range crowds {
		_, _ = fmt.Fprintf(table, "%d", n)
		for _, results := range [][]result{crowded[i], ruled[i]} {
			for _, f := range figures {
				_, _ = fmt.Fprintf(table, "\t%.0f %s", median(values(results, f.of))*f.scale, f.unit)
			}
		}
		_, _ = fmt.Fprintln(table)
	}
	for k, all := range [][][]result{crowded, ruled} {
		_, _ = fmt.Fprintf(table, "%d to 1, %s", crowds[len(crowds)-1], []string{"bound", "rules"}[k])
		for _, f := range figures {
			var ratios []float64
			for i, r := range all[len(crowds)-1] {
				ratio := f.of(r) / f.of(all[0][i])
				if f.inverse {
					ratio = 1 / ratio
				}
				ratios = append(ratios, ratio)
			}
			_, _ = fmt.Fprintf(table, "\t%.3f", median(ratios))
		}
		_, _ = fmt.Fprintln(table)
	}
	return table.Flush()
}

func values(results []result, of func(result) float64) (out []float64) {
	for _, r := range results {
		out = append(out, of(r))
	}
	return out
}

// rules replaces the rules that stand for pods.
func (b *bindBench) rules(ctx context.Context, n int) error {
	lines := "rule del priority 9\n"
	if n > 0 {
		lines = ""
		for i := range n {
			lines += fmt.Sprintf("rule add priority 9 from %s to 172.16.101.0/24 table 9\n", crowdPod(i))
		}
		_, err := b.lab.Hosts[0].RunInput(ctx, lines, "ip", "-batch", "-")
		return err
	}
	for range crowds[len(crowds)-1] {
		lines += "rule del priority 9\n"
	}
	_, err := b.lab.Hosts[0].RunInput(ctx, lines, "ip", "-force", "-batch", "-")
	var exit *topo.ExitError
	if errors.As(err, &exit) { // fewer than that
		return nil
	}
	return err
}

// timeAlternatives times what takes the place of a binding in other designs.
func (b *bindBench) timeAlternatives(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := b.lab.Hosts[0].Run(ctx, self, alternativesMode)
	if err != nil {
		return err
	}
	var list []alternative
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return fmt.Errorf("%s printed %q: %w", alternativesMode, out, err)
	}
	w := bufio.NewWriter(os.Stdout)
	_, _ = fmt.Fprintln(w)
	for _, a := range list {
		_, _ = fmt.Fprintf(w, "%s: p50 %v, p99 %v\n", a.Name, a.P50, a.P99)
	}
	return w.Flush()
}
