package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/binding"
	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/echo"
	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/flow"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kube"
	"github.com/vpcproxy/vpcproxy/internal/meter"
	"github.com/vpcproxy/vpcproxy/internal/natlog"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/source"
	"github.com/vpcproxy/vpcproxy/internal/survey"
	"github.com/vpcproxy/vpcproxy/pkg/ha/notify"
	"github.com/vpcproxy/vpcproxy/pkg/nat/ipmasq"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// intentSource is where the node's intent comes from.
type intentSource interface {
	Run(ctx context.Context) error
	String() string
	// Problem is why intent is not followed now; nil if it is.
	Problem() error
}

// nodeTask is the roles function and proxy.
type nodeTask struct {
	cfg     *config.Config
	log     *slog.Logger
	version string
	host    kernel.Host
	node    *node.Node
	gate    *source.Gate
	source  intentSource
	follow  *source.Controller // source, if that is a controller
	socket  *transport.Listener
	masq    *ipmasq.Follower // nil without nat.masq.config
	metrics *metrics
	kube    *kube.Follower // nil without kubernetes.node
	// elections is nil without the role proxy, as are sessions.
	elections *election.Manager
	notify    *notify.Hook // nil without ha.notify
	sessions  *sessions
	meter     *meter.Meter // nil without metrics
	natLog    *natlog.Log  // nil without natLog.directory
	routing   *routing     // nil in static mode
	surveyor  *survey.Surveyor
	echo      *echo.Responder
}

// buildNode adds the task that keeps this machine's kernel.
func (a *Agent) buildNode(ctx context.Context, m *metrics) error {
	senders := &nft.Senders{}
	host, err := kernel.NewHost(kernel.HostOptions{Sysctls: a.cfg.SysctlDirectory, Overrun: m.overruns.Inc, OwnFirewall: senders.Own, Quiet: true})
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	a.close = append(a.close, host.Close)
	t := &nodeTask{cfg: a.cfg, log: a.log, version: a.version, host: host, metrics: m}
	if t.routing, err = newRouting(ctx, a.cfg, host, a.log); err != nil {
		return err
	}
	kinds, err := node.NewKinds(ctx, node.KindsOptions{Host: host, StateDirectory: a.cfg.StateDirectory, Backend: a.cfg.NAT.Backend,
		IPTables: a.cfg.NAT.IPTables, NeighborAge: a.cfg.Tunnel.NeighborAge, Senders: senders, Log: a.log})
	if err != nil {
		return err
	}
	a.close = append(a.close, kinds.Close)
	options := node.Options{
		Name:  a.cfg.Node,
		Host:  host,
		Kinds: kinds,
		Plan: plan.Config{
			MarkMask: a.cfg.Steering.MarkMask, RulePriority: a.cfg.Steering.RulePriority, TableBase: a.cfg.Steering.TableBase,
			Accounting: a.cfg.NATLog.Directory != "",
			Neighbors:  plan.Neighbors(a.cfg.Tunnel.Neighbors), ZoneBase: uint16(a.cfg.Steering.ZoneBase), //nolint:gosec // validated
		},
		Refresh:  a.cfg.Reconcile.Refresh,
		Log:      a.log,
		Observer: m,
		Changed: func() {
			t.report()
			if t.elections != nil {
				t.elections.Look()
			}
		},
	}
	t.echo = echo.NewResponder(host, a.log)
	options.Planned = t.planned
	if t.routing != nil {
		options.Kinds.Paths = bgp.NewPaths(t.routing.speaker)
		options.Plan.BGP, options.Plan.IdleSeconds = &t.routing.peering.BGP, uint32(a.cfg.BGP.FlowIdle/time.Second)
	}
	if a.cfg.HasRole(intent.RoleProxy) {
		if t.sessions, err = newSessions(ctx, a.cfg, a.credentials, t.report, a.log); err != nil {
			return err
		}
		a.close = append(a.close, t.sessions.Close)
		if err := a.buildElections(t, &options); err != nil {
			return err
		}
	}
	if a.cfg.HasRole(intent.RoleFunction) {
		store, err := binding.Open(filepath.Join(a.cfg.StateDirectory, "bindings"))
		if err != nil {
			return err
		}
		options.Bindings = node.BindingOptions{Store: store, Flows: flow.Open(""), Linger: a.cfg.Bind.Linger}
	}
	if t.node, err = node.New(options); err != nil {
		return err
	}
	return a.connectNode(ctx, t, kinds, m)
}

// connectNode gives the node its intent, and those who ask it their answers.
func (a *Agent) connectNode(ctx context.Context, t *nodeTask, kinds node.Kinds, m *metrics) error {
	accept := t.node.SetIntent
	if t.routing != nil {
		t.routing.node = t.node
		accept = func(set *intent.Set) {
			t.routing.setIntent(set)
			t.node.SetIntent(set)
		}
	}
	t.gate = source.NewGate(filepath.Join(a.cfg.StateDirectory, "intent.json"), a.log, accept)
	if err := t.choose(a.credentials); err != nil {
		return err
	}
	if q := a.cfg.NAT.Masq; q.Config != "" {
		t.masq = ipmasq.NewFollower(q.Config, filepath.Join(a.cfg.StateDirectory, "ip-masq-agent"),
			ipmasq.Options{IPv6: q.IPv6, AllReserved: q.AllReserved}, a.log, t.node.SetMasquerade)
	}
	if a.cfg.Metrics.Address != "" {
		t.meter = newMeter(t, kinds)
	}
	if err := t.keepNATLog(m); err != nil {
		return err
	}
	m.follow(t)
	m.routing(t.routing)
	t.surveyor = newSurveyor(t, kinds, func() *pki.Credentials { return a.creds })
	address, err := transport.ParseAddress("unix://" + a.cfg.Socket)
	if err != nil {
		return err
	}
	if t.socket, err = transport.Listen(ctx, address, nil, a.log); err != nil {
		return err
	}
	a.tasks = append(a.tasks, t)
	a.wedged = t.wedged
	return a.buildKubernetes(t, m)
}

// choose makes the source that the configuration names.
func (t *nodeTask) choose(load func() (*pki.Credentials, error)) error {
	if t.cfg.Intent.Directory != "" {
		t.source = source.NewDirectory(t.cfg.Intent.Directory, t.cfg.Tunnel.Pool, t.gate, t.log)
		return nil
	}
	address, err := transport.ParseAddress(t.cfg.Controller.Address)
	if err != nil {
		return fmt.Errorf("controller.address: %w", err)
	}
	var creds *pki.Credentials
	if !address.IsUnix() {
		if creds, err = load(); err != nil {
			return err
		}
	}
	client, err := transport.NewClient(address, creds)
	if err != nil {
		return err
	}
	rpc := vpcproxyv1alpha1connect.NewAgentServiceClient(client.HTTP, client.BaseURL, transport.ClientOptions())
	t.follow = source.NewController(rpc, address.String(), t.registration, t.gate, t.log)
	t.follow.OnQuestion(t.diagnose)
	if t.elections != nil {
		t.follow.OnYield(t.yield)
	}
	t.source = t.follow
	return nil
}

// String implements Task.
func (t *nodeTask) String() string { return t.node.String() }

// Ready implements Task.
func (t *nodeTask) Ready() <-chan struct{} { return t.node.Ready() }

// Run implements Task.
func (t *nodeTask) Run(ctx context.Context) error {
	if restored, err := t.gate.Restore(); err != nil {
		t.log.Warn("starting without the last intent", "err", err)
	} else if restored {
		t.log.Info("last intent restored", "revision", t.gate.Accepted().Revision)
	}
	if t.masq != nil {
		t.masq.Load() // before anything is compared with what it says
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		tasks sync.WaitGroup
		mu    sync.Mutex
		errs  []error
	)
	run := func(f func(context.Context) error) {
		tasks.Go(func() {
			defer cancel()
			if err := f(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	if t.routing != nil {
		t.routing.start(ctx, run)
		run(t.routing.follow)
	}
	run(func(ctx context.Context) error {
		t.echo.Run(ctx)
		return nil
	})
	run(t.source.Run)
	run(t.node.Run)
	run(t.serve)
	if t.masq != nil {
		run(t.masq.Run)
	}
	if t.elections != nil {
		run(t.runElections)
		run(t.sessions.Run)
	}
	if t.meter != nil {
		run(t.meter.Run)
	}
	if t.natLog != nil {
		run(t.natLog.Run)
	}
	tasks.Wait()
	return errors.Join(errs...)
}

// planned takes over a plan that asks for something else than the one before.
func (t *nodeTask) planned() {
	p, _ := t.node.Current()
	netns := map[string]bool{}
	for l := range p.State.Links {
		netns[l.Netns] = true
	}
	t.echo.Follow(netns)
	if t.natLog != nil {
		t.natLog.Look()
	}
	if t.routing != nil {
		t.routing.planned()
	}
}

// registration is the Node object that the configuration amounts to.
func (t *nodeTask) registration() (*structpb.Struct, error) {
	ctx, cancel := context.WithTimeout(context.Background(), registrationTimeout)
	defer cancel()
	n := &intent.Node{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode},
		Metadata: intent.Metadata{Name: t.cfg.Node},
		Spec: intent.NodeSpec{
			Roles: t.cfg.Roles, Zone: t.cfg.Zone, UnderlayAddress: t.cfg.Underlay.Address, TunnelAddress: t.cfg.Tunnel.Address, PodCIDRs: t.cfg.PodCIDRs,
		},
	}
	var subnet netip.Prefix
	if n.Spec.UnderlayAddress.IsValid() {
		var err error
		if subnet, err = node.UnderlaySubnet(ctx, t.host, n.Spec.UnderlayAddress); err != nil {
			return nil, err
		}
	} else {
		p, err := node.DefaultUnderlay(ctx, t.host, t.cfg.Underlay.Interface)
		if err != nil {
			return nil, err
		}
		n.Spec.UnderlayAddress, subnet = p.Addr(), p.Masked()
	}
	if subnet.IsValid() {
		n.Spec.UnderlayCIDRs = []netip.Prefix{subnet}
	}
	return toStruct(n)
}
