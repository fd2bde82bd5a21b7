package kernel_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

const unprivileged = "VPCPROXY_TEST_UNPRIVILEGED"

// An agent in the function role has no CAP_SYS_ADMIN.
func TestOwnNamespaceNeedsNetAdminOnly(t *testing.T) {
	if os.Getenv(unprivileged) != "" { // the needs are met, and cannot be probed here
		withoutSysAdmin(t)
		return
	}
	lab.Require(t, lab.GRE, lab.Program("setpriv"))
	host := newMachine(t)
	err := host.Run(t.Context(), "", func() error {
		cmd := exec.Command("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all,+net_admin,+net_raw",
			os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), unprivileged+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "PASS: "+t.Name()) {
			t.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func withoutSysAdmin(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := unix.Unshare(unix.CLONE_NEWNET); !errors.Is(err, unix.EPERM) {
		t.Fatalf("CAP_SYS_ADMIN is still there: %v", err)
	}
	host, err := kernel.NewHost(kernel.HostOptions{NetnsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	own := in(t, host, "")
	hints, err := host.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	await(t, hints, kernel.HintAll)
	rule := kernel.Rule{Priority: 1, Mark: 1, Mask: 1, Table: 1000, Protocol: 176}
	_, errLinks := own.Links(ctx)
	err = errors.Join(errLinks,
		own.CreateGRE(ctx, "vpx-1", tunnel(7), 0),
		own.AddRules(ctx, []kernel.Rule{rule})[0],
		own.SetSysctl(ctx, "net/ipv4/ip_forward", "1"),
		host.Run(ctx, "", func() error { return nil }))
	if err != nil {
		t.Error(err)
	}
	await(t, hints, kernel.HintRules)
	missing := kernel.Probe(ctx).Missing()
	if len(missing) != 2 || missing[0].Name != "network namespaces" || missing[1].Name != "egress guard" {
		t.Errorf("missing: %+v", missing)
	}
	if err := host.CreateNamespace(ctx, "vpx-1"); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
		t.Errorf("got %v", err)
	}
}
