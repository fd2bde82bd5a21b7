// Command vpcproxyd is the node agent: on function hosts, on proxy nodes, and
// as the controller, in any mix.
//
// Listeners for Multipath TCP, Go's default, know no TCP MD5 signatures, which
// guard BGP sessions.
//
//go:debug multipathtcp=0
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/agent"
	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/timerslack"
	"github.com/vpcproxy/vpcproxy/internal/trim"
	"github.com/vpcproxy/vpcproxy/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := config.Root(version.Version, func(cmd *cobra.Command, cfg *config.Config) error {
		log := newLogger(cfg.Log)
		if err := timerslack.Err(); err != nil {
			log.Warn("the kernel will wake the agent more often than need be", "err", err)
		}
		return run(cmd, cfg, log)
	})
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vpcproxyd:", err)
		stop()
		os.Exit(1)
	}
}

func run(cmd *cobra.Command, cfg *config.Config, log *slog.Logger) error {
	a, err := agent.New(cmd.Context(), cfg, version.Version, log)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.Close(); err != nil {
			log.Warn("closing", "err", err)
		}
	}()
	log.Info("starting", "node", cfg.Node, "roles", cfg.Roles, "version", version.Version)
	return a.Run(cmd.Context(), func() {
		// Without NOTIFY_SOCKET this does nothing and says so by false, nil.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("systemd was not told that we are ready", "err", err)
		}
		go trim.Run(cmd.Context(), func(err error) { log.Warn("the agent takes more memory than need be", "err", err) })
	})
}

func newLogger(c config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
