package cli

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/pki"
)

const (
	// callTimeout bounds a call that only reads or writes intent.
	callTimeout = 15 * time.Second
	// kernelTimeout bounds a call that lists or repairs a node's kernel
	// state, which may be thousands of objects.
	kernelTimeout = 2 * time.Minute
	// askTimeout bounds a call whose answer is good to have.
	askTimeout = 2 * time.Second
)

// control returns a client of the controller.
func (a *app) control() (vpcproxyv1alpha1connect.ControlServiceClient, error) {
	address, err := transport.ParseAddress(a.controller)
	if err != nil {
		return nil, usagef("--controller: %w", err)
	}
	var creds *pki.Credentials
	if !address.IsUnix() {
		if creds, err = pki.Load(a.tls, slog.New(slog.NewTextHandler(a.Err, nil))); err != nil {
			return nil, usagef("--tls-directory: %w", err)
		}
	}
	c, err := transport.NewClient(address, creds)
	if err != nil {
		return nil, usagef("--controller: %w", err)
	}
	a.clients = append(a.clients, c)
	return vpcproxyv1alpha1connect.NewControlServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions()), nil
}

// controlError is callError for calls to the controller.
func (a *app) controlError(err error) error {
	where := "the controller at " + a.controller
	if unavailable(err) {
		where += " (--controller)"
	}
	return callError(where, err)
}

// node returns a client of this machine's node agent.
func (a *app) node() (vpcproxyv1alpha1connect.NodeServiceClient, error) {
	c, err := a.nodeTransport()
	if err != nil {
		return nil, err
	}
	return vpcproxyv1alpha1connect.NewNodeServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions()), nil
}

// binder returns a client of this machine's node agent, for bindings.
func (a *app) binder() (vpcproxyv1alpha1connect.BindServiceClient, error) {
	c, err := a.nodeTransport()
	if err != nil {
		return nil, err
	}
	return vpcproxyv1alpha1connect.NewBindServiceClient(c.HTTP, c.BaseURL, transport.ClientOptions()), nil
}

func (a *app) nodeTransport() (transport.Client, error) {
	address, err := transport.ParseAddress("unix://" + a.nodeSocket)
	if err != nil {
		return transport.Client{}, usagef("--node-socket: %w", err)
	}
	c, err := transport.NewClient(address, nil)
	if err != nil {
		return transport.Client{}, usagef("--node-socket: %w", err)
	}
	a.clients = append(a.clients, c)
	return c, nil
}

// nodeError is callError for calls to the node agent.
func (a *app) nodeError(err error) error {
	return callError("the node agent at "+a.nodeSocket+" (--node-socket)", err)
}

// disconnect lets servers that are being stopped know that nobody asks on.
func (a *app) disconnect() {
	for _, c := range a.clients {
		c.HTTP.CloseIdleConnections()
	}
}

func timeout(c *cobra.Command, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context(), d)
}

// write ends a command with its answer.
func (a *app) write(answer []byte, err error) error {
	if err != nil {
		return err
	}
	_, err = a.Out.Write(answer)
	return err
}
