package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/notify"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// atOnce is how many goroutines may run at the same time on a proxy at least. The task
// of an election is woken by the kernel; where there are no more than the
// processors, and all are taken by other goroutines, it would have to wait for one
// of them to be interrupted, which is after 10 ms (runtime.forcePreemptNS). With
// more, the kernel chooses, and prefers who has slept.
const atOnce = 4

// buildElections makes what a proxy elects with, and has the node tell it.
func (a *Agent) buildElections(t *nodeTask, o *node.Options) error {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < atOnce {
		runtime.GOMAXPROCS(atOnce)
	}
	// Handles of its own: a move must not wait for a lock that a reconcile holds.
	host, err := kernel.NewHost(kernel.HostOptions{Sysctls: a.cfg.SysctlDirectory})
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	wire := vip.NewEthernet(host)
	a.close = append(a.close, host.Close, wire.Close)
	options := election.Options{
		Host: host, Wire: wire, Health: t.health, Log: a.log,
		Copied: func(group string) bool { return t.sessions.copied(group) && (t.routing == nil || t.routing.told()) },
		Changed: func(groups []election.Group) {
			t.sessions.follow(groups)
			if t.routing != nil {
				t.routing.setElected(groups)
			}
			t.report()
		},
	}
	if err := a.electionPrograms(t, &options); err != nil {
		return err
	}
	t.elections = election.New(options)
	o.Elections, o.Hinted = t.elections.SetElections, t.elections.Hint
	return nil
}

// How long a program may take before it is killed: one that is told, and one
// that waits for a cloud.
const notifyTimeout, claimTimeout = 10 * time.Second, 30 * time.Second

// electionPrograms adds what the configuration says of keys and programs.
func (a *Agent) electionPrograms(t *nodeTask, o *election.Options) (err error) {
	cfg := a.cfg.HA
	if cfg.Keys != "" {
		if o.Keys, o.SendKey, err = vrrp.ReadKeys(cfg.Keys); err != nil {
			return fmt.Errorf("ha.keys: %w", err)
		}
		o.AuthOptional = cfg.Authentication == "optional"
	}
	if cfg.Notify != "" {
		t.notify = notify.NewHook(cfg.Notify, notifyTimeout, a.log)
		o.Notify = func(group string, s ha.State, priority uint8) { t.notify.Tell(group, notify.State(s), priority) }
	}
	if cfg.Claim != "" {
		o.Driver = func(group string, priority func() uint8) vip.Driver {
			return &notify.Driver{Program: cfg.Claim, Instance: group, Timeout: claimTimeout, Priority: priority}
		}
	}
	return nil
}

// runElections runs the elections, and what tells of them until they are over.
func (t *nodeTask) runElections(ctx context.Context) error {
	if t.notify == nil {
		return t.elections.Run(ctx)
	}
	telling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var told sync.WaitGroup
	told.Go(func() { t.notify.Run(telling) })
	err := t.elections.Run(ctx)
	cancel()
	told.Wait()
	return err
}

// health tells the elections how the rest of the agent is.
func (t *nodeTask) health() election.Health {
	s := t.node.Status()
	h := election.Health{InSync: s.InSync, Alive: t.node.Alive()}
	select {
	case <-t.node.Ready():
		h.Ready = true
	default:
	}
	return h
}

// yieldTimeout bounds the hand-over of a role, which waits for nothing but the
// election's own task.
const yieldTimeout = time.Second

// yield hands over a role because the controller wants it.
func (t *nodeTask) yield(ctx context.Context, group string) {
	ctx, cancel := context.WithTimeout(ctx, yieldTimeout)
	defer cancel()
	if err := t.elections.Yield(ctx, group); err != nil {
		t.log.Warn("role not handed over", "group", group, "err", err)
	}
}

// Yield implements NodeServiceHandler.
func (t *nodeTask) Yield(ctx context.Context, req *connect.Request[apiv1.YieldRequest]) (*connect.Response[apiv1.YieldResponse], error) {
	if t.elections == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("this node has not the role proxy"))
	}
	err := t.elections.Yield(ctx, req.Msg.GetGroup())
	switch {
	case errors.Is(err, election.ErrUnknown):
		return nil, connect.NewError(connect.CodeNotFound, err)
	case err != nil:
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return connect.NewResponse(&apiv1.YieldResponse{}), nil
}

// groupReports tells what this node is in each election.
func (t *nodeTask) groupReports() []*apiv1.GroupReport {
	if t.elections == nil {
		return nil
	}
	var out []*apiv1.GroupReport
	for _, s := range t.elections.Status() {
		r := &apiv1.GroupReport{Name: s.Election.Group, Problem: s.Problem}
		if len(s.Election.Peers) > 0 {
			r.Sessions = t.sessions.report(s.Election.Group)
		}
		if s.Problem == "" {
			r.State, r.Priority, r.Active = s.Node.State.String(), uint32(s.Node.Priority), s.ActiveNode(t.cfg.Node)
			r.Since, r.Reason, r.Down, r.Transitions = timestamppb.New(s.Since), s.Node.Why, s.Node.Down, s.Stats.Transitions
			for _, d := range s.Discrepancies {
				r.Discrepancies = append(r.Discrepancies, d.String())
			}
		}
		out = append(out, r)
	}
	return out
}

// electionMetrics reads the elections when it is asked for.
type electionMetrics struct{ elections *election.Manager }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vpcproxy_ha_"+name, help, append([]string{"group"}, labels...), nil)
}

var (
	haState         = desc("state", "1 for the state that the node has in the group's election, 0 for the others.", "state")
	haPriority      = desc("priority", "Priority in force, 1 to 255.")
	haTransitions   = desc("transitions_total", "Changes of state.")
	haTrack         = desc("track_up", "1 if what the priority depends on works.", "track")
	haSent          = desc("adverts_sent_total", "Adverts sent.")
	haSendErrors    = desc("advert_send_errors_total", "Adverts that could not be sent.")
	haReceived      = desc("adverts_received_total", "Adverts accepted, by form of checksum.", "checksum")
	haDiscarded     = desc("adverts_discarded_total", "Adverts discarded, by reason.", "reason")
	haDiscrepancies = desc("havip_discrepancies", "HaVips for which election, kernel and what answers on the link differ.", "fault")
	haMoveErrors    = desc("havip_move_errors_total", "Failed attempts to take the HaVips, to let go of them or to announce them.")
	haStarted       = desc("running", "1 if the election is under way, 0 if it cannot be started.")
)

// Describe implements prometheus.Collector.
func (electionMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{haState, haPriority, haTransitions, haTrack, haSent, haSendErrors, haReceived, haDiscarded,
		haDiscrepancies, haMoveErrors, haStarted} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m electionMetrics) Collect(out chan<- prometheus.Metric) {
	for _, s := range m.elections.Status() {
		metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(d, kind, v, append([]string{s.Election.Group}, labels...)...)
		}
		metric(haStarted, prometheus.GaugeValue, flag(s.Problem == ""))
		if s.Problem != "" {
			continue
		}
		for _, state := range []ha.State{ha.Initialize, ha.Backup, ha.Active, ha.Fault} {
			metric(haState, prometheus.GaugeValue, flag(s.Node.State == state), state.String())
		}
		metric(haPriority, prometheus.GaugeValue, float64(s.Node.Priority))
		metric(haTransitions, prometheus.CounterValue, float64(s.Stats.Transitions))
		metric(haSent, prometheus.CounterValue, float64(s.Stats.Sent))
		metric(haSendErrors, prometheus.CounterValue, float64(s.Stats.SendErrors))
		metric(haMoveErrors, prometheus.CounterValue, float64(s.Stats.MoverFailures))
		for name, up := range s.Tracks {
			metric(haTrack, prometheus.GaugeValue, flag(up), name)
		}
		for form, n := range s.Stats.Checksums {
			metric(haReceived, prometheus.CounterValue, float64(n), form)
		}
		for reason, n := range s.Stats.Discarded {
			metric(haDiscarded, prometheus.CounterValue, float64(n), reason)
		}
		for _, fault := range vip.Faults {
			n := 0
			for _, d := range s.Discrepancies {
				if d.Fault == fault {
					n++
				}
			}
			metric(haDiscrepancies, prometheus.GaugeValue, float64(n), string(fault))
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
