package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// nodeSocket is where an agent answers by default.
const nodeSocket = "/run/vpcproxy/node.sock"

// api is the node agent's own API, over its unix socket.
func (a *agent) api() vpcproxyv1alpha1connect.NodeServiceClient {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = a.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "unix", nodeSocket)
				return err
			})
			return c, err
		},
	}}
	return vpcproxyv1alpha1connect.NewNodeServiceClient(client, "http://node")
}

// status is what the agent says of itself.
func (a *agent) status(t *testing.T) *apiv1.NodeStatusResponse {
	t.Helper()
	response, err := a.api().NodeStatus(t.Context(), connect.NewRequest(&apiv1.NodeStatusRequest{}))
	if err != nil {
		t.Fatalf("%s: status: %v", a.Name, err)
	}
	return response.Msg
}

// resync makes the agent list everything again and returns how much it had to
// change.
func (a *agent) resync(t *testing.T) int {
	t.Helper()
	response, err := a.api().Resync(t.Context(), connect.NewRequest(&apiv1.ResyncRequest{}))
	if err != nil {
		t.Fatalf("%s: resync: %v", a.Name, err)
	}
	if len(response.Msg.Errors) > 0 {
		t.Errorf("%s: resync: %s", a.Name, strings.Join(response.Msg.Errors, "\n"))
	}
	return int(response.Msg.Changed)
}

// writes is how many kernel objects the agent has written since its start.
func (a *agent) writes(t *testing.T) int64 {
	t.Helper()
	var sum int64
	for _, k := range a.status(t).Kinds {
		sum += k.Writes
	}
	return sum
}

// settled waits until the agent has made its whole intent true.
func (a *agent) settled(t *testing.T) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		response, err := a.api().NodeStatus(ctx, connect.NewRequest(&apiv1.NodeStatusRequest{}))
		if err != nil {
			return err
		}
		report := response.Msg.Report
		if !report.InSync {
			return errors.New(a.Name + " is not in sync")
		}
		for _, at := range report.Attachments {
			if !at.Ready {
				return fmt.Errorf("%s: attachment %s: %s", a.Name, at.Name, at.Message)
			}
		}
		for _, k := range response.Msg.Kinds {
			if k.Pending > 0 {
				return fmt.Errorf("%s: %d %s pending: %s", a.Name, k.Pending, k.Kind, strings.Join(k.Errors, "; "))
			}
		}
		return nil
	})
}

// settle waits for every agent.
func (w *world) settle(t *testing.T) {
	t.Helper()
	for _, a := range w.agents {
		a.settled(t)
	}
}

// look runs a shell line that shows something and returns its lines.
func look(t *testing.T, m *topo.Machine, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := m.Run(ctx, "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// confirm waits until the agent holds a removal back, and confirms it.
func (a *agent) confirm(t *testing.T) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		_, err := a.api().ConfirmRemoval(ctx, connect.NewRequest(&apiv1.ConfirmRemovalRequest{}))
		return err
	})
}
