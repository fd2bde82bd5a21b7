package cli

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files and docs/cli.md anew")

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with `go test ./internal/cli -update`", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; if that is meant, write it anew with `go test ./internal/cli -update`:\n%s", path, diff)
	}
}

const attachOrders = "attach --subnet 172.16.101.0/24 --vpc acme --group blue --eni mac=02:42:ac:10:65:04 --pods 10.244.1.5"

func TestOutput(t *testing.T) {
	cases := []string{
		"get attachments", "get attachments -o wide", "get attachments -o json", "get attachments -o yaml", "get attachments -o name",
		"get attachment orders", "get attachment orders -o json",
		"get groups", "get groups -o wide", "get groups -o yaml",
		"get nodes", "get nodes -o wide", "get nodes -o json",
		"describe attachment orders", "describe attachment plain", "describe group blue",
		"describe node host-a", "describe node proxy-a",
		"status", "status -o json", "status -o yaml",
		"plan", "plan -o json", "resync",
		"bgp peers", "bgp peers -o json", "bgp paths", "bgp paths -o wide", "bgp paths -o json", "bgp explain 172.16.101.5", "bgp explain 10.9.9.9",
		"controller confirm-removal",
		attachOrders, attachOrders + " -o wide", attachOrders + " -o json", attachOrders + " -o yaml", attachOrders + " --dry-run",
		"detach orders", "detach orders --dry-run", "delete group blue", "delete node host-b",
		"status --node-socket SOCKET", "status --node-socket SOCKET -o json",
		"version", "version --client",
	}
	b := newBench(t)
	for _, line := range cases {
		name := strings.NewReplacer(" -- ", "_", " -o ", "_", " ", "_", "--", "", "/", "-", "=", "-", ":", "").Replace(line)
		if strings.HasPrefix(line, attachOrders) {
			name = "attach" + strings.NewReplacer(" -o ", "_", " --", "_").Replace(strings.TrimPrefix(line, attachOrders))
		}
		t.Run(name, func(t *testing.T) {
			code, out, stderr := b.run(strings.Fields(strings.ReplaceAll(line, "SOCKET", b.socket()))...)
			if code != codeOK {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			got := "$ vpcproxyctl " + line + "\n" + out
			if stderr != "" {
				got += "--- standard error\n" + stderr
			}
			golden(t, filepath.Join("testdata", name+".txt"), strings.ReplaceAll(got, b.dir, "/run"))
		})
	}
}
