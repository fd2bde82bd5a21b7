package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const (
	// retryMin and retryMax bound the wait between attempts to reach the
	// controller, but for jitter of half as much: short enough that its return is
	// noticed within ten seconds, its start included; long enough that a
	// thousand nodes do not keep it from starting.
	retryMin = 200 * time.Millisecond
	retryMax = 4 * time.Second
	// retryStarting is the longest wait for a controller that has answered
	// that it has only just started.
	retryStarting = time.Second
	// silence is how long a stream may say nothing before it counts as
	// lost: three of the controller's heartbeats.
	silence = 30 * time.Second
	// reportEvery repeats the node's report though nothing changed, so that
	// a controller that was restarted knows the node.
	reportEvery = 15 * time.Second
	// rpcTimeout bounds a call that is not a stream.
	rpcTimeout = 10 * time.Second
	// maxAsked is how many questions of the controller are worked on at a time.
	maxAsked = 4
)

// AgentClient is the part of the controller's API that a node uses;
// vpcproxyv1alpha1connect.AgentServiceClient implements it.
type AgentClient interface {
	Watch(context.Context, *connect.Request[apiv1.WatchRequest]) (*connect.ServerStreamForClient[apiv1.WatchResponse], error)
	Report(context.Context, *connect.Request[apiv1.ReportRequest]) (*connect.Response[apiv1.ReportResponse], error)
	Answer(context.Context, *connect.Request[apiv1.AnswerRequest]) (*connect.Response[apiv1.AnswerResponse], error)
}

// Controller is intent from a controller, and the way back of reports.
type Controller struct {
	client AgentClient
	addr   string
	node   func() (*structpb.Struct, error)
	gate   *Gate
	log    *slog.Logger
	yield  func(ctx context.Context, group string) // may be nil
	// diagnose answers the controller's questions; may be nil.
	diagnose func(ctx context.Context, r *apiv1.DiagnoseRequest) ([]byte, error)
	asked    chan struct{} // holds a token for each question in work

	mu      sync.Mutex
	problem error
	report  *apiv1.NodeReport
	wake    chan struct{}
}

// NewController returns a source that follows the controller at addr. node
// makes the Node object to register with, anew at every attempt, because the
// underlay address may have changed.
func NewController(client AgentClient, addr string, node func() (*structpb.Struct, error), gate *Gate, log *slog.Logger) *Controller {
	return &Controller{client: client, addr: addr, node: node, gate: gate, log: log, wake: make(chan struct{}, 1), asked: make(chan struct{}, maxAsked),
		problem: errors.New("not connected yet")}
}

// OnYield has f called when the controller wants a group's active role handed
// over. Call it before Run. f must not take long.
func (c *Controller) OnYield(f func(ctx context.Context, group string)) { c.yield = f }

// OnQuestion has f answer when the controller asks the node to diagnose. Call it
// before Run.
func (c *Controller) OnQuestion(f func(ctx context.Context, r *apiv1.DiagnoseRequest) ([]byte, error)) {
	c.diagnose = f
}

// answer works on a question and tells the controller what came of it.
func (c *Controller) answer(ctx context.Context, node string, q *apiv1.Question) {
	a := &apiv1.AnswerRequest{Node: node, Id: q.GetId()}
	select {
	case c.asked <- struct{}{}:
		report, err := c.diagnose(ctx, q.GetRequest())
		<-c.asked
		a.Report = report
		if err != nil {
			a.Error = err.Error()
		}
	default:
		a.Error = "the node's agent is busy with other questions; try again later"
	}
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	if _, err := c.client.Answer(ctx, connect.NewRequest(a)); err != nil && ctx.Err() == nil {
		c.log.Debug("answer not taken", "controller", c.addr, "err", err)
	}
}

// String names the source for status and logs.
func (c *Controller) String() string { return "controller " + c.addr }

// Problem is why the controller is not followed now; nil if it is.
func (c *Controller) Problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

// SetReport replaces the report that the controller gets; it is sent soon, and
// again from time to time.
func (c *Controller) SetReport(r *apiv1.NodeReport) {
	c.mu.Lock()
	c.report = r
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run follows the controller until the context ends. While it is away the last
// intent stays in force.
func (c *Controller) Run(ctx context.Context) error {
	wait := retryMin
	for ctx.Err() == nil {
		got, err := c.follow(ctx)
		if ctx.Err() == nil {
			c.lost(err)
		}
		switch {
		case got:
			wait = retryMin
		case connect.IsWireError(err) && connect.CodeOf(err) == connect.CodeUnavailable:
			wait = min(wait, retryStarting)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)): // jitter: ±50 %
		}
		wait = min(2*wait, retryMax)
	}
	return nil
}

func (c *Controller) lost(err error) {
	c.mu.Lock()
	first := c.problem == nil || c.problem.Error() != err.Error()
	c.problem = err
	c.mu.Unlock()
	if first {
		c.log.Warn("controller not reached; the last intent stays in force", "controller", c.addr, "err", err)
	}
}

func (c *Controller) found() {
	c.mu.Lock()
	was := c.problem
	c.problem = nil
	c.mu.Unlock()
	if was != nil {
		c.log.Info("following the controller", "controller", c.addr)
	}
}

// follow registers, then takes snapshots until the stream ends. got tells
// whether there was at least one.
func (c *Controller) follow(ctx context.Context) (got bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(fmt.Errorf("it said nothing for %v", silence)) })
	defer watchdog.Stop()

	node, err := c.node()
	if err != nil {
		return false, err
	}
	stream, err := c.client.Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Node: node, Known: c.known()}))
	if err != nil {
		return false, cause(ctx, err)
	}
	defer func() { _ = stream.Close() }()
	var reports sync.WaitGroup
	defer reports.Wait()
	defer cancel(nil)
	reports.Go(func() { c.sendReports(ctx) })
	for stream.Receive() {
		watchdog.Reset(silence)
		if q := stream.Msg().GetQuestion(); q != nil && c.diagnose != nil {
			reports.Go(func() { c.answer(ctx, nameOf(node), q) })
		}
		if group := stream.Msg().GetYield(); group != "" && c.yield != nil {
			c.yield(ctx, group)
		}
		b := stream.Msg().GetSnapshot()
		if len(b) == 0 {
			continue
		}
		set, err := intent.DecodeSet(b)
		if err != nil {
			return got, err
		}
		got = true
		c.found()
		c.gate.Offer(set)
	}
	if err := stream.Err(); err != nil {
		return got, cause(ctx, err)
	}
	return got, errors.New("the controller closed the stream")
}

// nameOf is a Node object's name.
func nameOf(node *structpb.Struct) string {
	return node.GetFields()["metadata"].GetStructValue().GetFields()["name"].GetStringValue()
}

// cause prefers the reason for which we gave up over what the transport made
// of it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

// known names the attachments that this node has in force. The controller
// tells which of them an operator took away.
func (c *Controller) known() []string {
	set := c.gate.Accepted()
	if set == nil {
		return nil
	}
	names := make([]string, 0, len(set.Attachments))
	for _, a := range set.Attachments {
		names = append(names, a.ObjectName())
	}
	return names
}

func (c *Controller) sendReports(ctx context.Context) {
	again := time.NewTicker(reportEvery)
	defer again.Stop()
	for {
		c.mu.Lock()
		r := c.report
		c.mu.Unlock()
		if r != nil {
			call, cancel := context.WithTimeout(ctx, rpcTimeout)
			_, err := c.client.Report(call, connect.NewRequest(&apiv1.ReportRequest{Report: r}))
			cancel()
			if err != nil && ctx.Err() == nil {
				c.log.Debug("report not taken", "controller", c.addr, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-again.C:
		}
	}
}
