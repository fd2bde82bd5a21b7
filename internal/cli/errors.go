package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/spell"
)

// The exit codes; exitCodesHelp documents them.
const (
	codeOK           = 0
	codeFailed       = 1
	codeUsage        = 2
	codeNotConverged = 3
	codeNotFound     = 4
	codeConflict     = 5
	codeFound        = 6
)

// exitError is an error with its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{codeUsage, fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &e):
		return e.code
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument:
		return codeUsage
	case connect.CodeNotFound:
		return codeNotFound
	case connect.CodeAlreadyExists, connect.CodeAborted, connect.CodeFailedPrecondition:
		return codeConflict
	}
	return codeFailed
}

// callError makes an operator's message of a failed call, and keeps its code.
func callError(where string, err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	switch ce.Code() {
	case connect.CodeUnavailable:
		if connect.IsWireError(err) { // it does answer: somebody behind it does not
			break
		}
		return fmt.Errorf("%s does not answer: %w", where, &plainError{ce})
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return fmt.Errorf("%s refuses: %w", where, &plainError{ce})
	case connect.CodeDeadlineExceeded:
		return fmt.Errorf("%s took too long: %w", where, &plainError{ce})
	case connect.CodeUnimplemented:
		return fmt.Errorf("%s does not know this request; its release is another one: %w", where, &plainError{ce})
	case connect.CodeCanceled:
		return fmt.Errorf("interrupted: %w", context.Canceled)
	}
	return &plainError{ce}
}

// plainError shows a call's error without the name of its code.
type plainError struct{ err *connect.Error }

func (e *plainError) Error() string { return e.err.Message() }

func (e *plainError) Unwrap() error { return e.err }

// unavailable tells whether nobody answered.
func unavailable(err error) bool { return connect.CodeOf(err) == connect.CodeUnavailable }

// fieldProblems returns what came with an error, one for each thing that is
// wrong.
func fieldProblems(err error) []*intent.FieldError {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	var out []*intent.FieldError
	for _, d := range ce.Details() {
		v, err := d.Value()
		p, ok := v.(*apiv1.FieldProblem)
		if err != nil || !ok {
			continue // of a later release; the message says it too
		}
		out = append(out, &intent.FieldError{Object: p.GetObject(), Field: p.GetField(), Problem: p.GetProblem()})
	}
	return out
}

// flagError adds what an unknown flag may have meant.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if name := spell.Nearest(strings.TrimLeft(unknown.GetSpecifiedName(), "-"), names); name != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, name)
	}
	return err
}

// group is a command that only holds others.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: runGroup}
}

func runGroup(c *cobra.Command, args []string) error {
	switch {
	case len(args) > 0:
		return usagef("%s", unknownCommand(c, args[0]))
	case !c.HasParent():
		return c.Help()
	}
	return usagef("%q needs one of: %s", c.CommandPath(), strings.Join(subcommands(c), ", "))
}

func subcommands(c *cobra.Command) []string {
	var names []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			names = append(names, s.Name())
		}
	}
	return names
}

func unknownCommand(c *cobra.Command, word string) string {
	var names []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			names = append(names, s.Name())
			names = append(names, s.Aliases...)
		}
	}
	msg := fmt.Sprintf("%q is not a command of %q", word, c.CommandPath())
	if name := spell.Nearest(word, names); name != "" {
		return msg + fmt.Sprintf("; did you mean %q?", name)
	}
	return msg + "; want one of: " + strings.Join(subcommands(c), ", ")
}

// noArgs refuses positional arguments and says that there is no place for
// them.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q takes no arguments, but got %q", c.CommandPath(), args[0])
	}
	return nil
}

// oneArg wants exactly one argument, named as in the usage line.
func oneArg(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return fmt.Errorf("%q needs %s", c.CommandPath(), name)
		case 1:
			return nil
		}
		return fmt.Errorf("%q takes one %s, but got %q too", c.CommandPath(), name, args[1])
	}
}

// maybeOneArg wants at most one argument.
func maybeOneArg(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return oneArg(name)(c, args)
	}
}
