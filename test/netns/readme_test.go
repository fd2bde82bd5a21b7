package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// readmeCommands returns what the README shows typed at a root prompt.
func readmeCommands(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	console := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "```") {
			console = line == "```console"
			continue
		}
		if c, ok := strings.CutPrefix(line, "# "); ok && console {
			commands = append(commands, c)
		}
	}
	return commands
}

// TestReadme types every command of the README, on a platform as it describes.
func TestReadme(t *testing.T) {
	commands := readmeCommands(t)
	if len(commands) < 6 {
		t.Fatalf("only %d commands found in the README: %q", len(commands), commands)
	}
	p := newPlatform(t, topo.Layout{Hosts: 1, Pods: 2, Proxies: 1, VPCs: []string{"acme", "globex"}})
	dir := t.TempDir()
	group := "apiVersion: vpcproxy.io/v1alpha1\nkind: ProxyGroup\nmetadata: {name: blue}\nspec: {members: [{node: proxy1}]}\n"
	if err := os.WriteFile(filepath.Join(dir, "group.yaml"), []byte(group), 0o600); err != nil {
		t.Fatal(err)
	}
	programs := filepath.Dir(lab.Binary(t, "vpcproxyctl"))
	for _, c := range commands {
		if _, err := p.Control.Run(t.Context(), "sh", "-ec", fmt.Sprintf("cd %s; PATH=%s:$PATH; %s", dir, programs, c)); err != nil {
			t.Fatalf("README: %s: %v", c, err)
		}
	}
	for i, vpc := range []string{"acme", "globex"} {
		answeredBy(t, p.Hosts[0].Pods[i].Machine, topo.ServerAddress, vpc, p.Proxies[0].ENIs[vpc].Address.Addr())
	}
}
