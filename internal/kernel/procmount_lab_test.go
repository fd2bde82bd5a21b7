package kernel

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
)

// TestProcOfItsOwn: a process that has a /proc of its own knows it.
func TestProcOfItsOwn(t *testing.T) {
	lab.Require(t)
	const inside = "VPCPROXY_TEST_OWN_PROC"
	if os.Getenv(inside) != "" {
		if procIsInits() {
			t.Error("this /proc is taken for init's")
		}
		return
	}
	for _, args := range [][]string{
		{"--mount", "sh", "-c", `mount -t proc proc /proc && exec "$@"`, "sh"},
		{"--pid", "--fork", "--mount-proc"},
	} {
		cmd := exec.CommandContext(t.Context(), "unshare", append(args, os.Args[0], "-test.v", "-test.run=^TestProcOfItsOwn$")...)
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: ") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}
