package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// problem is how the controller says what is wrong.
func problem(object, field, text string) *apiv1.FieldProblem {
	return &apiv1.FieldProblem{Object: object, Field: field, Problem: text}
}

func TestUsageErrors(t *testing.T) {
	b := newBench(t)
	b.control.err = connect.NewError(connect.CodeInternal, staticError("a usage error must not get here"))
	attach := strings.Fields(attachOrders)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"atach"}, `"atach" is not a command of "vpcproxyctl"; did you mean "attach"?`},
		{"unknown noun", []string{"get", "nodess"}, `"nodess" is not a command of "vpcproxyctl get"; did you mean "nodes"?`},
		{"far off", []string{"get", "widgets"}, `want one of: attachments, bindings, groups, nodes`},
		{"no noun", []string{"describe"}, `"vpcproxyctl describe" needs one of: attachment, group, node`},
		{"no name", []string{"describe", "node"}, `"vpcproxyctl describe node" needs NAME`},
		{"two names", []string{"detach", "a", "b"}, `takes one NAME, but got "b" too`},
		{"argument", append([]string{"attach", "orders"}, attach[1:]...), `"vpcproxyctl attach" takes no arguments, but got "orders"`},
		{"unknown flag", append(attach, "--podds", "10.0.0.1"), "unknown flag: --podds; did you mean --pods?"},
		{"unknown short flag", []string{"status", "-x"}, "unknown shorthand flag"},
		{"no subnet", []string{"attach", "--vpc", "a"}, "--subnet is missing"},
		{"no eni", []string{"attach", "--vpc", "a", "--subnet", "172.16.1.0/24", "--group", "g"}, "--eni is missing"},
		{"malformed CIDR", append(attach, "--subnet", "172.16.101.0/33"), `for "--subnet" flag: "172.16.101.0/33" is not an address or a CIDR`},
		{"host bits", append(attach, "--subnet", "172.16.101.4/24"), `for "--subnet" flag: 172.16.101.4/24 has host bits set; did you mean 172.16.101.0/24?`},
		{"pods", append(attach, "--pods", "10.244.1.0/24,x"), `for "--pods" flag: "x" is not`},
		{"eni word", append(attach, "--eni", "02:42:ac:10:65:04"), `for "--eni" flag: "02:42:ac:10:65:04" is not understood: want [NODE:]mac=…`},
		{"eni key", append(attach, "--eni", "mac=02:42:ac:10:65:04,name=eth1"), `"name=eth1" is not understood`},
		{"eni address", append(attach, "--eni", "name=eth1,address=172.16.101.4"), `address "172.16.101.4" is not an address with its prefix length`},
		{"eni gateway", append(attach, "--eni", "name=eth1,gateway=x"), `gateway "x" is not an IP address`},
		{"snat", append(attach, "--snat-address", "1.2.3"), `for "--snat-address" flag: "1.2.3" is not an IP address`},
		{"key", append(attach, "--gre-key", "4294967296"), `for "--gre-key" flag: "4294967296" is not a key`},
		{"key zero", append(attach, "--gre-key", "0"), `"0" is not a key`},
		{"scope", append(attach, "--scope", "vm"), `for "--scope" flag: "vm" is not a format; want pods, host`},
		{"wait and dry run", append(attach, "--wait", "--dry-run"), "--wait and --dry-run exclude each other"},
		{"format", []string{"get", "nodes", "-o", "xml"}, `"xml" is not a format; want wide, json, yaml, name`},
		{"no file", []string{"apply"}, "-f is missing"},
		{"shell", []string{"completion", "tcsh"}, `"tcsh" is not a command of "vpcproxyctl completion"`},
		{"help", []string{"help", "get", "nodess"}, `did you mean "nodes"?`},
		{"controller", []string{"status", "--controller", "http://c:1"}, `--controller: address "http://c:1" is plaintext`},
		{"tls", []string{"status", "--controller", "https://c:1", "--tls-directory", "/nonexistent"}, "--tls-directory: "},
		{"socket", []string{"plan", "--node-socket", "relative"}, "--node-socket: "},
		{"days", []string{"pki", "init", "--days", "ten"}, `"ten" is not a number of days`},
		{"cleanup unasked", []string{"node", "cleanup", "--node-socket", "/nonexistent/n.sock"}, "is not a terminal, so nobody can be asked; give --yes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, stderr := b.run(tt.args...)
			if code != codeUsage || out != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, answer %q, message:\n%s\nwant %d and … %s …", code, out, stderr, codeUsage, tt.want)
			}
			if !strings.HasPrefix(stderr, "error: ") {
				t.Errorf("message %q", stderr)
			}
		})
	}
	if len(b.cleaned) > 0 {
		t.Error("cleaned up without a yes")
	}
}

func TestExitCodes(t *testing.T) {
	orders := "Attachment/acme-172-16-101-0-24"
	for _, tt := range []struct {
		name    string
		line    string
		err     error
		code    int
		message string
	}{
		{"invalid", attachOrders, refused(connect.CodeInvalidArgument, problem(orders, "spec.cidrs[0]", "0.0.0.0/0 is every address")), codeUsage,
			"error: --subnet: 0.0.0.0/0 is every address\n"},
		{"unknown group", attachOrders, refused(connect.CodeNotFound, problem(orders, "spec.group", `no ProxyGroup is named "blue"`)), codeNotFound,
			"error: --group: no ProxyGroup is named \"blue\"\n"},
		{"unknown ENI", attachOrders, refused(connect.CodeNotFound, problem(orders, "spec.enis[0].mac", "no interface of proxy-a has it")), codeNotFound,
			"error: --eni: no interface of proxy-a has it\n"},
		{"two problems", attachOrders, refused(connect.CodeNotFound, problem(orders, "spec.group", "unknown"), problem(orders, "", "and odd")), codeNotFound,
			"error: --group: unknown\n" + orders + ": and odd\n"},
		{"another spec", attachOrders, refused(connect.CodeAlreadyExists, problem(orders, "spec", "differs")), codeConflict, "error: " + orders + ": spec: differs\n"},
		{"changed meanwhile", "detach orders", refused(connect.CodeAborted, problem("Attachment/orders", "", "has changed")), codeConflict, "error: Attachment/orders: has changed\n"},
		{"in use", "delete group blue", refused(connect.CodeFailedPrecondition, problem("ProxyGroup/blue", "", "Attachment/orders refers to it")), codeConflict,
			"error: ProxyGroup/blue: Attachment/orders refers to it\n"},
		{"not found", "get node none", nil, codeNotFound, "error: Node/none: there is no such object\n"},
		{"nothing held", "node confirm-removal", nil, codeConflict, "error: no removal is held back\n"},
		{"refused", "status", connect.NewError(connect.CodePermissionDenied, staticError("node/host-a is no operator")), codeFailed, "refuses: node/host-a is no operator\n"},
		{"broken", "get nodes", connect.NewError(connect.CodeInternal, staticError("the store is broken")), codeFailed, "error: the store is broken\n"},
		{"other release", "get nodes", connect.NewError(connect.CodeUnimplemented, staticError("what?")), codeFailed, "its release is another one: what?\n"},
		{"nobody there", "get nodes --controller unix:///nonexistent/c.sock", nil, codeFailed, "(--controller) does not answer: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.control.err = tt.err
			code, out, stderr := b.run(strings.Fields(tt.line)...)
			if code != tt.code || out != "" || !strings.Contains(stderr, tt.message) {
				t.Errorf("exit code %d, answer %q, message:\n%s\nwant %d and … %s", code, out, stderr, tt.code, tt.message)
			}
		})
	}
}

func TestResyncReportsErrors(t *testing.T) {
	b := newBench(t)
	b.node.resync = &apiv1.ResyncResponse{Changed: 1, Errors: []string{"routes: network is down"}}
	code, out, stderr := b.run("resync")
	if code != codeFailed || out != "1 object changed\n" || stderr != "error: routes: network is down\n" {
		t.Errorf("exit code %d, answer %q, message %q", code, out, stderr)
	}
}

func TestStatusWithoutController(t *testing.T) {
	b := newBench(t)
	// The default socket is not there: the node agent answers.
	t.Setenv(controllerEnv, "")
	if _, err := os.Stat("/run/vpcproxy/controller.sock"); err == nil {
		t.Fatal("this machine runs a controller; the test needs one that does not")
	}
	code, out, stderr := b.exec("status")
	if code != codeOK || !strings.HasPrefix(out, "Node:               host-a\n") {
		t.Errorf("exit code %d: %s\n%s", code, out, stderr)
	}
	// One that was asked for by name is not replaced.
	code, out, stderr = b.exec("status", "--controller", "unix:///nonexistent/c.sock")
	if code != codeFailed || out != "" || !strings.Contains(stderr, "does not answer") {
		t.Errorf("exit code %d: %s\n%s", code, out, stderr)
	}
}

func TestStatusTellsWhatIsHeld(t *testing.T) {
	b := newBench(t)
	b.control.status.Held = "2 of 3 attachments are gone from the store"
	b.control.status.Nodes[0].Held = "2 of 3 attachments are gone from the intent"
	b.control.status.Nodes[2].InSync = false
	_, out, _ := b.run("status")
	for _, want := range []string{
		"Held:          2 of 3 attachments are gone from the store; `vpcproxyctl controller confirm-removal` accepts it\n",
		"  host-a    function           holding        ",
		"  proxy-a   proxy,controller   working        ",
		"  host-a: 2 of 3 attachments are gone from the intent; `vpcproxyctl node confirm-removal` on that machine accepts it\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestNeverSeenNode(t *testing.T) {
	b := newBench(t)
	b.control.status.Nodes[1] = &apiv1.NodeReport{Node: "host-b"}
	if _, out, _ := b.run("get", "node", "host-b"); !strings.Contains(out, "host-b   function   never seen   192.168.80.9   -\n") {
		t.Errorf("got\n%s", out)
	}
}

func TestRelease(t *testing.T) {
	b := newBench(t)
	code, out, stderr := b.exec("node", "release", "--state-directory", "/s")
	if code != 0 || out != "removed 3 links\n" || len(b.cleaned) != 1 || b.cleaned[0] != "/s" {
		t.Errorf("exit code %d, %q, %q, %v", code, out, stderr, b.cleaned)
	}
}

func TestCleanup(t *testing.T) {
	b := newBench(t)
	code, _, stderr := b.run("node", "cleanup", "--yes")
	if code != codeConflict || !strings.Contains(stderr, "stop it first") || len(b.cleaned) > 0 {
		t.Errorf("beside an agent: exit code %d, cleaned %v: %s", code, b.cleaned, stderr)
	}
	code, out, stderr := b.run("node", "cleanup", "--yes", "--node-socket", filepath.Join(b.dir, "none.sock"), "--state-directory", "/state")
	if code != codeOK || out != "removed 3 links\n" || len(b.cleaned) != 1 || b.cleaned[0] != "/state" {
		t.Errorf("exit code %d, answer %q, cleaned %v: %s", code, out, b.cleaned, stderr)
	}
}

func TestPKI(t *testing.T) {
	b := newBench(t)
	ca := filepath.Join(b.dir, "pki")
	code, out, stderr := b.run("pki", "init", "--ca", ca)
	if code != codeOK || out != filepath.Join(ca, "operator")+"\n" {
		t.Fatalf("init: exit code %d, answer %q: %s", code, out, stderr)
	}
	code, out, stderr = b.run("pki", "issue", "host-a", "--ca", ca, "--days", "30")
	if code != codeOK || out != filepath.Join(ca, "host-a")+"\n" {
		t.Fatalf("issue: exit code %d, answer %q: %s", code, out, stderr)
	}
	for _, f := range []string{"ca.crt", "tls.crt", "tls.key"} {
		if _, err := os.Stat(filepath.Join(ca, "host-a", f)); err != nil {
			t.Error(err)
		}
	}
	if code, _, stderr := b.run("pki", "issue", "host-a", "--ca", ca); code != codeConflict || !strings.Contains(stderr, "--force replaces it") {
		t.Errorf("again: exit code %d: %s", code, stderr)
	}
	if code, _, stderr := b.run("pki", "issue", "c1", "--ca", ca, "--role", "cook"); code != codeFailed || !strings.Contains(stderr, `"cook" is not known`) {
		t.Errorf("role: exit code %d: %s", code, stderr)
	}
}
