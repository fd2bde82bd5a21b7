package cli

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

type sender = func(*apiv1.WatchAttachmentResponse) error

// states sends each state at once and then nothing.
func states(list ...*apiv1.WatchAttachmentResponse) func(context.Context, int, sender) error {
	return func(ctx context.Context, _ int, send sender) error {
		for _, s := range list {
			if err := send(s); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func working(host string) *apiv1.WatchAttachmentResponse {
	s := inPlace()
	s.Converged = false
	s.Nodes[0].Ready, s.Nodes[0].Message = false, host
	return s
}

var seconds = regexp.MustCompile(`(?m)^ *[0-9]+\.[0-9]{2}s  |after [0-9.]+m?s$`)

// untimed makes progress comparable.
func untimed(s string) string {
	return seconds.ReplaceAllStringFunc(s, func(m string) string {
		if strings.HasPrefix(m, "after") {
			return "after T"
		}
		return "T  "
	})
}

func TestAttachWait(t *testing.T) {
	b := newBench(t)
	stale := inPlace()
	stale.Revision = 16 // of before the change
	b.control.watch = states(stale, working("waits for link vpx-orders"), working("waits for link vpx-orders"), inPlace())
	code, out, stderr := b.run(strings.Fields(attachOrders + " --wait --timeout 30s")...)
	if code != codeOK || out != "attachment/acme-172-16-101-0-24 created\n" {
		t.Errorf("exit code %d, answer %q", code, out)
	}
	want := `T  host-a (function): in place
T  proxy-a (proxy): in place
T  host-a (function): waits for link vpx-orders
T  host-a (function): in place
attachment acme-172-16-101-0-24 is in place on 2 nodes, after T
Next: connect from a pod in 10.244.1.5/32 to an address in 172.16.101.0/24
`
	if got := untimed(stderr); got != want {
		t.Errorf("progress:\n%s\nwant:\n%s", got, want)
	}
}

func TestAttachWaitTimesOut(t *testing.T) {
	b := newBench(t)
	away := working("")
	away.Nodes[1].Ready, away.Nodes[1].Connected = false, false
	b.control.watch = states(away)
	code, _, stderr := b.run(strings.Fields(attachOrders + " --wait --timeout 1s")...)
	if code != codeNotConverged {
		t.Errorf("exit code %d, want %d", code, codeNotConverged)
	}
	want := `error: attachment acme-172-16-101-0-24 is not in place on 2 of 2 nodes after 1s; the nodes keep at it, see ` +
		"`vpcproxyctl describe attachment acme-172-16-101-0-24`" + `
  host-a (function): working
  proxy-a (proxy): is not connected to the controller
`
	if !strings.HasSuffix(stderr, want) {
		t.Errorf("got:\n%s\nwant at the end:\n%s", stderr, want)
	}
}

func TestAttachWaitNobodyCarries(t *testing.T) {
	b := newBench(t)
	alone := inPlace()
	alone.Nodes = alone.Nodes[1:]
	b.control.watch = states(alone)
	code, _, stderr := b.run(strings.Fields(attachOrders + " --wait")...)
	if code != codeOK || !strings.Contains(stderr, "warning: no function host carries it") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}

// A controller that is restarted during the wait is asked again.
func TestWaitSurvivesRestart(t *testing.T) {
	b := newBench(t)
	b.control.watch = func(ctx context.Context, call int, send sender) error {
		if call == 1 {
			return connect.NewError(connect.CodeUnavailable, staticError("ends"))
		}
		return states(inPlace())(ctx, call, send)
	}
	code, _, stderr := b.run(strings.Fields(attachOrders + " --wait")...)
	if code != codeOK || !strings.Contains(stderr, "controller: does not answer; asking again") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}

func TestWaitEndsWithItsError(t *testing.T) {
	b := newBench(t)
	b.control.watch = func(context.Context, int, sender) error {
		return refused(connect.CodeNotFound, &apiv1.FieldProblem{Object: "Attachment/x", Problem: "there is no such object"})
	}
	code, _, stderr := b.run(strings.Fields(attachOrders + " --wait")...)
	if code != codeNotFound || !strings.HasSuffix(stderr, "error: Attachment/x: there is no such object\n") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}

func TestWaitInterrupted(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.control.watch = func(ctx context.Context, _ int, send sender) error {
		if err := send(working("")); err != nil {
			return err
		}
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	var stderr strings.Builder
	code := Run(ctx, Deps{Out: &strings.Builder{}, Err: &stderr, Now: time.Now},
		append(strings.Fields(attachOrders+" --wait"), "--controller", b.controller()))
	if code != codeFailed || !strings.Contains(stderr.String(), "interrupted; what was asked for stays wanted") {
		t.Errorf("exit code %d:\n%s", code, stderr.String())
	}
}

func TestDetachWait(t *testing.T) {
	b := newBench(t)
	removing := working("still removes it")
	removing.Exists, removing.Revision = false, 21
	gone := inPlace()
	gone.Exists, gone.Revision = false, 21
	// The first state is of before the deletion.
	b.control.watch = states(inPlace(), removing, gone)
	code, out, stderr := b.run("detach", "orders", "--wait")
	if code != codeOK || out != "attachment/orders deleted\n" {
		t.Errorf("exit code %d, answer %q", code, out)
	}
	if !strings.Contains(untimed(stderr), "T  host-a (function): still removes it\nT  host-a (function): removed\nattachment orders is gone from 2 nodes, after T\n") {
		t.Errorf("progress:\n%s", stderr)
	}
	b.control.watch = states(removing)
	if code, _, stderr := b.run("detach", "orders", "--wait", "--timeout", "1s"); code != codeNotConverged || !strings.Contains(stderr, "is not removed on 1 of 2 nodes") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}
