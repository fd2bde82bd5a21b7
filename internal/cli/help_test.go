package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestReference keeps docs/cli.md, which is made here, as the commands are.
func TestReference(t *testing.T) {
	for _, name := range []string{controllerEnv, tlsEnv, socketEnv, stateEnv} {
		t.Setenv(name, "")
	}
	b := &bench{}
	root := New(Deps{Cleanup: b.cleanup, Release: b.cleanup})
	var out strings.Builder
	out.WriteString("# vpcproxyctl\n\nThis page is made of the command's own help by `go test ./internal/cli -update`.\n\n")
	out.WriteString(root.Long + "\n\n```text\n" + exitCodesHelp + "```\n\n## Flags of all commands\n\n" + flagTable(root.PersistentFlags()))
	for _, c := range root.Commands() {
		page(&out, c, 2)
	}
	golden(t, "../../docs/cli.md", out.String())
}

func page(out *strings.Builder, c *cobra.Command, level int) {
	if !c.IsAvailableCommand() {
		return
	}
	c.InitDefaultHelpFlag()
	fmt.Fprintf(out, "\n%s %s\n\n", strings.Repeat("#", level), c.CommandPath())
	about := c.Short + "."
	if c.Long != "" {
		about = c.Long
	}
	if c.Name() == "completion" || c.HasParent() && c.Parent().Name() == "completion" {
		about = c.Short + "."
	}
	out.WriteString(strings.TrimSpace(about) + "\n")
	if !c.HasSubCommands() {
		fmt.Fprintf(out, "\n```text\n%s\n```\n", c.UseLine())
	}
	if len(c.Aliases) > 0 {
		fmt.Fprintf(out, "\nAlso: %s.\n", strings.Join(c.Aliases, ", "))
	}
	if c.Example != "" {
		fmt.Fprintf(out, "\nFor example:\n\n```sh\n%s\n```\n", c.Example)
	}
	if f := flagTable(c.LocalNonPersistentFlags()); f != "" {
		out.WriteString("\n" + f)
	}
	if f := flagTable(c.PersistentFlags()); f != "" {
		out.WriteString("\n" + f)
	}
	for _, s := range c.Commands() {
		page(out, s, level+1)
	}
}

func flagTable(fs *pflag.FlagSet) string {
	var rows strings.Builder
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		flag := "--" + f.Name
		if f.Shorthand != "" {
			flag = "-" + f.Shorthand + ", " + flag
		}
		if name != "" {
			flag += " " + name
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && !strings.Contains(usage, "(default") {
			usage += fmt.Sprintf(" (default `%s`)", f.DefValue)
		}
		usage = strings.ReplaceAll(strings.ReplaceAll(usage, "\n", " "), "|", "\\|")
		fmt.Fprintf(&rows, "| `%s` | %s |\n", flag, usage)
	})
	if rows.Len() == 0 {
		return ""
	}
	return "| flag | meaning |\n|---|---|\n" + rows.String()
}

func TestHelpNamesTheExitCodes(t *testing.T) {
	b := newBench(t)
	code, out, stderr := b.exec("--help")
	if code != codeOK || !strings.Contains(out, exitCodesHelp) || stderr != "" {
		t.Errorf("exit code %d:\n%s\n%s", code, out, stderr)
	}
}

func TestCompletion(t *testing.T) {
	b := newBench(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, stderr := b.exec("completion", shell); code != codeOK || !strings.Contains(out, "vpcproxyctl") {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr)
		}
	}
	for line, want := range map[string]string{
		"get att":                        "attachments\tList attachments, or print one\n:4",
		"detach ":                        "orders\nplain\n:4",
		"detach orders ":                 ":4",
		"get nodes ":                     "host-a\nhost-b\nproxy-a\n:4",
		"describe group ":                "blue\n:4",
		"attach --group ":                "blue\n:4",
		"attach --scope ":                "pods\nhost\n:4",
		"get nodes -o ":                  "wide\njson\nyaml\nname\n:4",
		"pki issue x --role ":            "node\ncontroller\noperator\n:4",
		"detach --controller unix:///x ": ":1",
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		if !strings.Contains(line, "--controller") {
			args = append([]string{"__complete", "--controller", b.controller()}, strings.Split(line, " ")...)
		}
		code, out, stderr := b.exec(args...)
		if code != codeOK || strings.TrimSpace(out) != want {
			t.Errorf("%q: exit code %d, answer %q, want %q; %s", line, code, out, want, stderr)
		}
	}
}

func TestAge(t *testing.T) {
	a := &app{Deps: Deps{Now: func() time.Time { return now }}}
	for seconds, want := range map[int]string{
		-5: "0s", 0: "0s", 59: "59s", 60: "1m0s", 3599: "59m59s", 3600: "1h0m", 47*3600 + 59: "47h0m", 48 * 3600: "2d", 400 * 86400: "400d",
	} {
		if got := a.age(now.Add(-time.Duration(seconds) * time.Second)); got != want {
			t.Errorf("%d s is shown as %s, want %s", seconds, got, want)
		}
	}
}
