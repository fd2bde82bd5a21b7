package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// waitFlags are --wait and --timeout.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) add(fs *pflag.FlagSet, until string) {
	fs.BoolVar(&w.wait, "wait", false, "wait "+until+", and show progress")
	fs.DurationVar(&w.timeout, "timeout", time.Minute, "how long --wait waits")
}

// watcher is the part of the controller's client that waiting needs.
type watcher interface {
	WatchAttachment(context.Context, *connect.Request[apiv1.WatchAttachmentRequest]) (*connect.ServerStreamForClient[apiv1.WatchAttachmentResponse], error)
}

// awaited is the state that is waited for.
type awaited struct {
	name     string
	exists   bool
	revision int64 // of the attachment, at least; 0 if it is to be gone
}

func (w awaited) reached(m *apiv1.WatchAttachmentResponse) bool {
	return m.GetConverged() && m.GetExists() == w.exists && m.GetRevision() >= w.revision
}

// rewatch is the pause before a stream that broke is opened again.
const rewatch = time.Second

var errNotConverged = errors.New("not converged")

// await follows an attachment until it is as awaited, and returns the last
// state. A controller that is restarted meanwhile is asked again.
func (a *app) await(ctx context.Context, client watcher, want awaited, limit time.Duration) (*apiv1.WatchAttachmentResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNotConverged)
	defer cancel()
	p := &progress{app: a, want: want, start: time.Now(), shown: map[string]string{}}
	for {
		done, err := p.follow(ctx, client)
		if done {
			return p.last, nil
		}
		switch {
		// The controller knows the deadline too, and may be first to act on it.
		case errors.Is(context.Cause(ctx), errNotConverged), connect.CodeOf(err) == connect.CodeDeadlineExceeded:
			return nil, p.timedOut(limit)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("interrupted; what was asked for stays wanted: %w", ctx.Err())
		case err != nil && !unavailable(err):
			return nil, a.controlError(err)
		}
		p.say("controller", "does not answer; asking again")
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

// progress shows what changes, a line for each change of a node.
type progress struct {
	*app
	want  awaited
	start time.Time
	shown map[string]string
	last  *apiv1.WatchAttachmentResponse
}

// follow reads one stream until the awaited state (done) or its end.
func (p *progress) follow(ctx context.Context, client watcher) (done bool, err error) {
	stream, err := client.WatchAttachment(ctx, connect.NewRequest(&apiv1.WatchAttachmentRequest{Name: p.want.name}))
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		p.last = stream.Msg()
		for _, n := range p.last.GetNodes() {
			p.say(nodeLabel(n), p.nodeState(n))
		}
		if p.want.reached(p.last) {
			return true, nil
		}
	}
	return false, stream.Err()
}

func nodeLabel(n *apiv1.NodeProgress) string {
	return fmt.Sprintf("%s (%s)", n.GetNode(), n.GetRole())
}

func (p *progress) nodeState(n *apiv1.NodeProgress) string {
	switch {
	case n.GetReady() && p.want.exists:
		return "in place"
	case n.GetReady():
		return "removed"
	case n.GetMessage() != "":
		return n.GetMessage()
	case !n.GetConnected():
		return "is not connected to the controller"
	}
	return "working"
}

func (p *progress) say(who, state string) {
	if p.shown[who] == state {
		return
	}
	p.shown[who] = state
	p.message("%6.2fs  %s: %s", time.Since(p.start).Seconds(), who, state)
}

func (p *progress) timedOut(limit time.Duration) error {
	what := "in place"
	if !p.want.exists {
		what = "removed"
	}
	if p.last == nil {
		return &exitError{codeNotConverged, fmt.Errorf("the controller told nothing of attachment %s in %s; see `vpcproxyctl status`", p.want.name, limit)}
	}
	var waiting []string
	for _, n := range p.last.GetNodes() {
		if !n.GetReady() {
			waiting = append(waiting, fmt.Sprintf("\n  %s: %s", nodeLabel(n), p.nodeState(n)))
		}
	}
	return &exitError{codeNotConverged, fmt.Errorf(
		"attachment %s is not %s on %d of %s after %s; the nodes keep at it, see `vpcproxyctl describe attachment %s`%s",
		p.want.name, what, len(waiting), count(len(p.last.GetNodes()), "node"), limit, p.want.name, strings.Join(waiting, ""))}
}
