package config

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	c := Command()
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&bytes.Buffer{})
	c.SilenceUsage = true
	err := c.Execute()
	return out.String(), err
}

var update = flag.Bool("update", false, "write docs/config.md anew")

// TestDocumentation keeps docs/config.md, which is made here, as the table is.
func TestDocumentation(t *testing.T) {
	const path = "../../docs/config.md"
	got := "# vpcproxyd's configuration\n\nThis page is made of `vpcproxyd config reference` by `go test ./internal/config -update`.\n" +
		"`vpcproxyd config minimal` prints the least that a node needs, and `vpcproxyd config check` what is in\n" +
		"force and where each value comes from.\n\n```yaml\n" + Reference() + "```\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; write it anew with `go test ./internal/config -update`:\n%s", path, diff)
	}
}

func TestFlagsNameTheirValue(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(fs)
	for name, want := range map[string]string{"tls-directory": "path", "socket": "path", "log-format": "text|json", "config": "file"} {
		if got, _ := pflag.UnquoteUsage(fs.Lookup(name)); got != want {
			t.Errorf("--%s %s, want %s", name, got, want)
		}
	}
}

func TestMinimalIsValid(t *testing.T) {
	clean(t)
	for _, set := range [][]string{
		nil, {"function"}, {"proxy"}, {"controller"}, {"function", "proxy"}, {"controller", "function", "proxy"},
	} {
		text, err := run(t, append([]string{"minimal"}, set...)...)
		if err != nil {
			t.Fatal(err)
		}
		c, err := load(t, "--config", file(t, text))
		if err != nil {
			t.Errorf("%v: %v in\n%s", set, err, text)
			continue
		}
		if len(set) == 0 {
			set = []string{"function"}
		}
		for _, r := range set {
			if !c.HasRole(intent.Role(r)) {
				t.Errorf("%v: role %s is missing in\n%s", set, r, text)
			}
		}
	}
	if _, err := run(t, "minimal", "cook"); err == nil {
		t.Error("an unknown role is accepted")
	}
}

func TestReferenceSaysTheDefaults(t *testing.T) {
	clean(t)
	text, err := run(t, "reference")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		if !strings.Contains(text, "# --"+s.flag()+", "+s.env()+"\n") {
			t.Errorf("%s is not documented", s.key)
		}
	}
	args := []string{"--roles", "function,controller"}
	want, err := load(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	path := file(t, text)
	got, err := load(t, append(args, "--config", path)...)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var is, should bytes.Buffer
	if err := got.print(&is); err != nil {
		t.Fatal(err)
	}
	if err := want.print(&should); err != nil {
		t.Fatal(err)
	}
	values := func(s string) (out []string) {
		for line := range strings.Lines(s) {
			f := strings.Fields(line)
			out = append(out, strings.Join(f[:len(f)-1], " "))
		}
		return out
	}
	if diff := cmp.Diff(values(should.String()), values(is.String()), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	for line := range strings.Lines(text) {
		if len(line) > 81 {
			t.Errorf("line is longer than 80: %s", line)
		}
	}
}

func TestCheck(t *testing.T) {
	clean(t)
	path := file(t, "roles: [proxy]\nnode: p1\ncontroller:\n  address: https://c:9443\n")
	text, err := run(t, "check", "--config", path, "--log-level", "warn")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"node                   p1                             " + path + ":2",
		"controller.address     https://c:9443                 " + path + ":4",
		"log.level              warn                           flag --log-level",
		"steering.markMask      0x3fff                         default",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	_, err = run(t, "check", "--config", file(t, "roles: [proxy]\n"))
	if err == nil || !strings.Contains(err.Error(), "controller.address (default): is missing") {
		t.Errorf("got %v", err)
	}
}
