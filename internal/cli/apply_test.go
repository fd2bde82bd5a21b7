package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
)

const platformYAML = `apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata:
  name: orders
spec:
  vpc: acme
  cidrs: [172.16.101.0/24]
  group: blue
  pods: [10.244.1.5]
  enis: [{name: eth1}]
---
apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: blue}
spec:
  members: [{node: proxy-a}]
`

func TestApply(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.dir, "platform.yaml")
	if err := os.WriteFile(path, []byte(platformYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	want := "group/blue created\nattachment/orders created\n"
	if code, out, stderr := b.run("apply", "-f", path); code != codeOK || out != want {
		t.Errorf("file: exit code %d, answer %q: %s", code, out, stderr)
	}
	if b.control.applied.GetCreateOnly() || b.control.applied.GetDryRun() {
		t.Error("apply is neither create-only nor a dry run")
	}
	if code, out, stderr := b.run("apply", "-f", b.dir, "--dry-run"); code != codeOK || out != strings.ReplaceAll(want, "created", "created (dry run)") {
		t.Errorf("directory: exit code %d, answer %q: %s", code, out, stderr)
	}
	if !b.control.applied.GetDryRun() {
		t.Error("the dry run was none")
	}
	b.stdin = platformYAML
	if code, out, stderr := b.run("apply", "-f", "-", "-o", "name"); code != codeOK || out != "group/blue\nattachment/orders\n" {
		t.Errorf("standard input: exit code %d, answer %q: %s", code, out, stderr)
	}
}

// What `get` prints, `apply` takes.
func TestApplyTakesWhatGetPrints(t *testing.T) {
	b := newBench(t)
	for _, f := range []string{"yaml", "json"} {
		code, out, stderr := b.run("get", "attachments", "-o", f)
		if code != codeOK {
			t.Fatal(stderr)
		}
		b.stdin = out
		if code, out, stderr := b.run("apply", "-f", "-"); code != codeOK || out != "attachment/orders created\nattachment/plain created\n" {
			t.Errorf("%s: exit code %d, answer %q: %s", f, code, out, stderr)
		}
	}
}

func TestApplyErrorsNameTheLine(t *testing.T) {
	b := newBench(t)
	b.stdin = platformYAML
	b.control.err = refused(connect.CodeNotFound,
		problem("Attachment/orders", "spec.enis[0].name", "proxy-a has no interface eth1"), problem("ProxyGroup/blue", "", "is odd"), problem("Node/x", "spec", "is odd too"))
	code, out, stderr := b.run("apply", "-f", "-")
	want := "error: standard input:10: Attachment/orders: spec.enis[0].name: proxy-a has no interface eth1\n" +
		"standard input:12: ProxyGroup/blue: is odd\nNode/x: spec: is odd too\n"
	if code != codeNotFound || out != "" || stderr != want {
		t.Errorf("exit code %d, answer %q, message:\n%s\nwant:\n%s", code, out, stderr, want)
	}

	b.control.applied = nil
	b.stdin = strings.Replace(platformYAML, "172.16.101.0/24", "172.16.101.4/24", 1)
	code, _, stderr = b.run("apply", "-f", "-")
	if code != codeUsage || !strings.HasPrefix(stderr, "error: standard input:7: Attachment/orders: spec.cidrs[0]: 172.16.101.4/24 has host bits set") {
		t.Errorf("exit code %d, message:\n%s", code, stderr)
	}
	if b.control.applied != nil {
		t.Error("a bad manifest was sent")
	}
	b.stdin = "# nothing\n"
	if code, _, stderr := b.run("apply", "-f", "-"); code != codeUsage || !strings.Contains(stderr, "holds no object") {
		t.Errorf("exit code %d, message:\n%s", code, stderr)
	}
}
