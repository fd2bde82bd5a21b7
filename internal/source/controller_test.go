package source

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// turnedAway is a controller that gives nothing but an error.
type turnedAway struct {
	AgentClient
	err   error
	calls int
}

func (c *turnedAway) Watch(context.Context, *connect.Request[apiv1.WatchRequest]) (*connect.ServerStreamForClient[apiv1.WatchResponse], error) {
	c.calls++
	return nil, c.err
}

// A controller that is away is tried again after 6 s at most, one that says that
// it has only just started after 1.5 s.
func TestControllerIsTriedAgain(t *testing.T) {
	away := errors.New("connection refused")
	for name, test := range map[string]struct {
		err         error
		least, most int // attempts in a minute
	}{
		"away":     {connect.NewError(connect.CodeUnavailable, away), 12, 40},
		"starting": {connect.NewWireError(connect.CodeUnavailable, errors.New("not read yet")), 41, 130},
		"refusing": {connect.NewWireError(connect.CodePermissionDenied, errors.New("not your node")), 12, 40},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := &turnedAway{err: test.err}
				gate := NewGate(filepath.Join(t.TempDir(), "intent.json"), slog.New(slog.DiscardHandler), func(*intent.Set) {})
				c := NewController(client, "https://192.168.4.20:9443", func() (*structpb.Struct, error) { return nil, nil }, gate, slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := c.Run(ctx); err != nil {
					t.Fatal(err)
				}
				if client.calls < test.least || client.calls > test.most {
					t.Errorf("%d attempts in a minute, want %d to %d", client.calls, test.least, test.most)
				}
			})
		})
	}
}
