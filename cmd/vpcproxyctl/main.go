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
	code := cli.Run(ctx, cli.Deps{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now, Cleanup: cleanup}, os.Args[1:])
	stop()
	os.Exit(code)
}

func cleanup(ctx context.Context, stateDirectory string, out io.Writer) error {
	host, err := kernel.NewHost(kernel.HostOptions{})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	err = node.Cleanup(ctx, node.KindsOptions{Host: host, StateDirectory: stateDirectory, Backend: "auto", IPTables: "auto", Log: log}, out)
	return errors.Join(err, host.Close())
}
