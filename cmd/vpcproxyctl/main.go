// Command vpcproxyctl is the operator's command: it attaches user VPCs to
// functions and shows how that goes.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/cli"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Deps{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now, Cleanup: onKernel(node.Cleanup), Release: onKernel(node.Release),
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// onKernel has a command work on this machine's kernel.
func onKernel(f func(context.Context, node.KindsOptions, io.Writer) error) func(context.Context, string, io.Writer) error {
	return func(ctx context.Context, stateDirectory string, out io.Writer) error {
		host, err := kernel.NewHost(kernel.HostOptions{})
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		err = f(ctx, node.KindsOptions{Host: host, StateDirectory: stateDirectory, Backend: "auto", IPTables: "auto", Log: log}, out)
		return errors.Join(err, host.Close())
	}
}
