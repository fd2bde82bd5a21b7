// Package cli is vpcproxyctl: one file for each noun or verb. Standard output
// is the answer; everything else is on standard error.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
)

// Deps is what commands need of the outside.
type Deps struct {
	In       io.Reader
	Out, Err io.Writer
	// Now is the clock that ages are measured with.
	Now func() time.Time
	// Cleanup removes from this machine's kernel everything that is ours and
	// writes what it removes. It may run twice. The state directory is the
	// agent's.
	Cleanup func(ctx context.Context, stateDirectory string, out io.Writer) error
	// Release removes HaVips that an agent has left behind.
	Release func(ctx context.Context, stateDirectory string, out io.Writer) error
}

// Environment variables that stand for flags; the agent's configuration has some
// of them too.
const (
	controllerEnv = "VPCPROXY_CONTROLLER"
	tlsEnv        = "VPCPROXY_TLS_DIRECTORY"
	socketEnv     = "VPCPROXY_SOCKET"
	stateEnv      = "VPCPROXY_STATE_DIRECTORY"
)

// app is what all commands share.
type app struct {
	Deps
	controller string
	tls        string
	nodeSocket string
	// started is set once the command line has been accepted: errors before
	// that are usage errors.
	started bool
	clients []transport.Client
}

const rootLong = `vpcproxyctl makes user VPCs reachable from functions, and shows how that goes.

It asks the controller at --controller, or for commands about this machine the
node agent at --node-socket.`

const exitCodesHelp = `Exit codes:
  0  done
  1  failed
  2  usage: the command line, or an object that was given, is not valid
  3  not converged: --wait reached its --timeout; what was asked for stays wanted
  4  not found
  5  conflict with what exists
  6  doctor, trace or netcheck found something that does not work
`

// New returns the root command. Execute it with Run for exit codes.
func New(d Deps) *cobra.Command {
	root, _ := build(d)
	return root
}

// Run executes a command line, without the program's name, and returns the
// exit code. Errors are written to d.Err.
func Run(ctx context.Context, d Deps, args []string) int {
	root, a := build(d)
	defer a.disconnect()
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return codeOK
	}
	if !a.started {
		err = &exitError{codeUsage, err}
	}
	_, _ = fmt.Fprintf(d.Err, "error: %v\n", err)
	code := exitCode(err)
	if !a.started {
		_, _ = fmt.Fprintf(d.Err, "See `%s --help`.\n", c.CommandPath())
	}
	return code
}

func build(d Deps) (*cobra.Command, *app) {
	a := &app{Deps: d}
	root := group("vpcproxyctl", "Attach user VPCs to functions")
	root.Long = rootLong
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(d.In)
	root.SetOut(d.Out)
	root.SetErr(d.Err)
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(root.UsageTemplate() + "{{if not .HasParent}}\n" + exitCodesHelp + "{{end}}")
	root.PersistentPreRun = func(*cobra.Command, []string) { a.started = true }
	a.globalFlags(root.PersistentFlags())
	root.AddGroup(
		&cobra.Group{ID: groupPlatform, Title: "The platform (asks the controller):"},
		&cobra.Group{ID: groupNode, Title: "This machine (asks the node agent):"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	root.SetHelpCommand(helpCommand())
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	add := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add(groupPlatform, a.attachCommand(), a.detachCommand(), a.getCommand(), a.describeCommand(), a.applyCommand(),
		a.deleteCommand(), a.statusCommand(), a.failoverCommand(), a.drainCommand(), a.uncordonCommand(), a.haCommand(), a.controllerCommand())
	add(groupNode, a.bindCommand(), a.unbindCommand(), a.planCommand(), a.resyncCommand(), a.bgpCommand(), a.nodeCommand(),
		a.traceCommand(), a.doctorCommand(), a.netcheckCommand(), a.topCommand(), a.whoisCommand(), a.bundleCommand())
	add(groupOther, a.pkiCommand(), a.versionCommand())
	strictCompletion(root)
	return root, a
}

// helpCommand is cobra's, but refuses a command that does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return usagef("%s", unknownCommand(about, rest[0]))
			}
			return about.Help()
		},
	}
}

// strictCompletion makes `completion` refuse a shell that it does not know.
func strictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Args, c.RunE = cobra.ArbitraryArgs, runGroup
		}
	}
}

const (
	groupPlatform = "platform"
	groupNode     = "node"
	groupOther    = "other"
)

func (a *app) globalFlags(fs *pflag.FlagSet) {
	fs.StringVar(&a.controller, "controller", envOr(controllerEnv, "unix:///run/vpcproxy/controller.sock"),
		"`address` of the controller, unix:///PATH or https://HOST:PORT; environment "+controllerEnv)
	fs.StringVar(&a.tls, "tls-directory", envOr(tlsEnv, "/etc/vpcproxy/pki/operator"),
		"`directory` with an operator's ca.crt, tls.crt and tls.key, for https; environment "+tlsEnv)
	fs.StringVar(&a.nodeSocket, "node-socket", envOr(socketEnv, "/run/vpcproxy/node.sock"),
		"unix socket `path` of this machine's node agent; environment "+socketEnv)
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// message writes a line for the operator, beside the answer.
func (a *app) message(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Err, format+"\n", args...)
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		a.message("warning: %s", w)
	}
}
