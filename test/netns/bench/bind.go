package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	rpc "connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	// bindMode is the argument with which this program measures bindings,
	// callsMode the one for their time alone, which needs no tunnel and so any
	// kernel, and crowdsMode the one for what they cost a packet alone.
	bindMode, callsMode, crowdsMode = "bind", "bind-calls", "bind-crowds"
	// bindPatience bounds each half of it.
	bindPatience = 15 * time.Minute
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
metadata: {name: host2}
spec: {roles: [function], underlayAddress: 192.168.80.9, tunnelAddress: 100.64.0.81}
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

// metricsAddress is where the hosts' agents tell what they have measured.
const metricsAddress = "127.0.0.1:9464"

// boundHost is a host whose agent binds a crowd of pods.
type boundHost struct {
	*topo.Host
	agent vpcproxyv1alpha1connect.BindServiceClient
	http  *http.Client // at the agent's metrics
	// socket is the agent's, as it is seen from outside of the host's mounts.
	socket transport.Address
	bound  int // pods that are bound: the host's own, and those of the crowd
}

// buildBound makes a lab with intent for its machines; files are its own.
func buildBound(ctx context.Context, files string, layout topo.Layout) (*topo.Lab, string, error) {
	lab, err := topo.Build(ctx, files, layout)
	if err != nil {
		return nil, "", err
	}
	intent := filepath.Join(files, "intent")
	if err := errors.Join(os.MkdirAll(intent, 0o755), os.WriteFile(filepath.Join(intent, "all.yaml"), []byte(boundManifests), 0o644)); err != nil {
		return nil, "", errors.Join(err, lab.Close())
	}
	return lab, "intent: {directory: " + intent + "}", nil
}

// startBound starts a host's agent and binds the host's own pod.
func startBound(ctx context.Context, files, source string, host *topo.Host) (*boundHost, error) {
	pod := host.Pods[0]
	// The crowd's addresses are routed to the one pod there is.
	if err := errors.Join(
		host.Type(ctx, "ip route add 10.245.0.0/20 dev "+pod.Veth), pod.Type(ctx, "ip route add local 10.245.0.0/20 dev lo"),
	); err != nil {
		return nil, err
	}
	process, err := startAgent(host.Machine, files, "roles: [function]", source, "bind: {linger: 0s}", "metrics: {address: "+metricsAddress+"}")
	if err != nil {
		return nil, err
	}
	socket, err := transport.ParseAddress(fmt.Sprintf("unix:///proc/%d/root/run/vpcproxy/node.sock", process.Pid()))
	if err != nil {
		return nil, err
	}
	b := &boundHost{Host: host, socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dialFrom(host.Machine.InNetwork, "tcp", metricsAddress)}}}
	b.agent = vpcproxyv1alpha1connect.NewBindServiceClient(
		&http.Client{Transport: &http.Transport{DialContext: dialFrom(host.Do, "unix", "/run/vpcproxy/node.sock")}}, "http://node")
	for b.bind(ctx, pod.Address, "red") != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s binds no pod: %w", host.Name, ctx.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.bound = 1
	return b, nil
}

// dialFrom connects to one address, from within a machine.
func dialFrom(within func(func() error) error, network, address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = within(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

func (b *boundHost) bind(ctx context.Context, pod netip.Addr, attachment string) error {
	return bindBy(ctx, b.agent, pod, attachment)
}

// bindAnew binds by a connection of its own, as a plugin does that is started
// for each pod.
func (b *boundHost) bindAnew(ctx context.Context, pod netip.Addr, attachment string) error {
	c, err := transport.NewClient(b.socket, nil)
	if err != nil {
		return err
	}
	defer c.HTTP.CloseIdleConnections()
	return bindBy(ctx, vpcproxyv1alpha1connect.NewBindServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions()), pod, attachment)
}

func bindBy(ctx context.Context, agent vpcproxyv1alpha1connect.BindServiceClient, pod netip.Addr, attachment string) error {
	_, err := agent.Bind(ctx, rpc.NewRequest(&apiv1.BindRequest{PodIp: pod.String(), Attachments: []string{attachment}}))
	return err
}

func (b *boundHost) unbind(ctx context.Context, pod netip.Addr) (removed bool, err error) {
	resp, err := b.agent.Unbind(ctx, rpc.NewRequest(&apiv1.UnbindRequest{PodIp: pod.String()}))
	if err != nil {
		return false, err
	}
	return resp.Msg.GetRemoved(), nil
}

func crowdPod(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}) }

// gather binds or unbinds pods of the crowd until n are bound.
func (b *boundHost) gather(ctx context.Context, n int) error {
	for ; b.bound < n; b.bound++ {
		if err := b.bind(ctx, crowdPod(b.bound), "red"); err != nil {
			return err
		}
	}
	for ; b.bound > n; b.bound-- {
		if _, err := b.unbind(ctx, crowdPod(b.bound-1)); err != nil {
			return err
		}
	}
	return nil
}
