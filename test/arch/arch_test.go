// Package arch holds the tests of the code's structure: which package may
// import which, and how large a file may grow.
package arch

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vpcproxy/vpcproxy/"

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func load(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", module+"...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 10 {
		t.Fatalf("only %d packages found", len(pkgs))
	}
	return pkgs
}

// only lists who may import a library, and why nobody else may.
var only = []struct {
	library string // import path or its beginning
	allowed []string
	why     string
}{
	{"github.com/vishvananda/netlink", []string{"internal/kernel", "test/"},
		"one place knows the library's pitfalls: interrupted dumps, Local nil making ip6gre, LLIPAddr"},
	{"github.com/vishvananda/netns", []string{"internal/kernel", "test/"},
		"a thread that is left in another namespace poisons whatever goroutine runs on it next"},
	{"github.com/google/nftables", []string{"internal/nft", "pkg/nat/nftables"}, "each knows the layout of one table of ours"},
	{"github.com/osrg/gobgp", []string{"pkg/route/bgp/gobgp"}, "BGP is ours to describe; only one package knows who speaks it"},
	{"github.com/mdlayher/socket", []string{"internal/conntrack"}, "one place knows ctnetlink: translation that is not sent pins a flow untranslated"},
	{"go.etcd.io/etcd", []string{"internal/store"}, "the controller speaks to a store, not to etcd"},
	{"os/exec", []string{"pkg/nat/iptables", "pkg/ha/notify", "test/"},
		"a fork costs more than a thousand netlink messages; only iptables has no other interface, and operators' own programs are what they are"},
	{"k8s.io", []string{"internal/kube", "test/"}, "one place knows the API machinery, which is large"},
	{"github.com/containernetworking/cni", []string{"internal/cni", "cmd/", "test/"}, "the plugin is a client of the agent's, and nothing else speaks CNI"},
	{"github.com/spf13/viper", []string{"internal/config"}, "one place knows how keys are split and lower-cased"},
	{"github.com/spf13/cobra", []string{"internal/cli", "internal/config", "cmd/", "deploy/package/artifacts"}, "commands are built in the CLI"},
	{"connectrpc.com/connect", []string{"internal/api", "internal/agent", "internal/cli", "internal/cni", "internal/controller", "internal/source", "cmd/", "test/"},
		"the engine and the kernel packages know no API"},
}

func TestLibrariesAreConfined(t *testing.T) {
	for _, p := range load(t) {
		for _, imp := range p.Imports {
			for _, rule := range only {
				if imp != rule.library && !strings.HasPrefix(imp, rule.library+"/") {
					continue
				}
				if !slices.ContainsFunc(rule.allowed, func(a string) bool {
					return p.name() == a || strings.HasPrefix(p.name(), strings.TrimSuffix(a, "/")+"/")
				}) {
					t.Errorf("%s imports %s, which is for %v only: %s", p.name(), imp, rule.allowed, rule.why)
				}
			}
		}
	}
}

// leaves import nothing but the standard library.
var leaves = []string{"internal/intent", "internal/desired", "internal/reconcile"}

func TestLeavesImportOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range load(t) {
		if !slices.Contains(leaves, p.name()) {
			continue
		}
		for _, imp := range p.Imports {
			if strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s imports %s: it is a leaf, which everything may import and which drags nothing along", p.name(), imp)
			}
		}
	}
}

// forbidden lists directions that no import may take.
var forbidden = []struct {
	from, to string
	why      string
}{
	{"internal/plan", "internal/kernel", "planning is pure: facts come as values"},
	{"internal/plan", "internal/reconcile", "planning is pure: it does not know how its result is made true"},
	{"pkg/", "internal/intent", "the kernel packages make objects true; they do not know what they are for"},
	{"pkg/", "internal/plan", "the kernel packages make objects true; they do not know what they are for"},
	{"pkg/tunnel", "pkg/route", "siblings meet in package node"},
	{"pkg/tunnel", "pkg/nat", "siblings meet in package node"},
	{"pkg/route", "pkg/tunnel", "siblings meet in package node"},
	{"pkg/route", "pkg/nat", "siblings meet in package node"},
	{"pkg/nat", "pkg/tunnel", "siblings meet in package node"},
	{"pkg/nat", "pkg/route", "siblings meet in package node"},
	{"internal/cli", "internal/kernel", "the CLI asks; only the agent touches the kernel"},
	{"internal/cli", "internal/store", "the CLI speaks the API"},
	{"internal/kernel", "internal/desired", "the kernel package knows no intent"},
	{"internal/cni", "internal/node", "the plugin asks; only the agent touches the kernel"},
	{"internal/cni", "internal/kernel", "the plugin asks; only the agent touches the kernel"},
	{"internal/node", "internal/api", "the node knows no API: the agent translates"},
}

func TestDirections(t *testing.T) {
	under := func(name, dir string) bool {
		dir = strings.TrimSuffix(dir, "/")
		return name == dir || strings.HasPrefix(name, dir+"/")
	}
	for _, p := range load(t) {
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			for _, f := range forbidden {
				if under(p.name(), f.from) && under(to, f.to) && !strings.HasSuffix(p.name(), "test") {
					t.Errorf("%s imports %s: %s", p.name(), to, f.why)
				}
			}
			if strings.HasPrefix(to, "test/") && !strings.HasPrefix(p.name(), "test/") && !strings.HasSuffix(p.name(), "test") {
				t.Errorf("%s imports %s: production code needs no test code", p.name(), to)
			}
		}
		if slices.Contains(p.Imports, "net") && strings.HasPrefix(p.name(), "pkg/") && usesNetIP(t, p) {
			t.Errorf("%s uses net.IP: netip everywhere outside internal/kernel", p.name())
		}
	}
}

func usesNetIP(t *testing.T, p pkg) bool {
	for _, f := range p.GoFiles {
		b, err := os.ReadFile(filepath.Join(p.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "net.IP") {
			return true
		}
	}
	return false
}

// maxLines is where a file has two ideas.
const maxLines = 500

func TestFilesStaySmall(t *testing.T) {
	for _, p := range load(t) {
		if strings.Contains(p.name(), "vpcproxyv1alpha1") {
			continue // generated
		}
		for _, f := range p.GoFiles {
			if n := lines(t, filepath.Join(p.Dir, f)); n > maxLines {
				t.Errorf("%s/%s has %d lines, more than %d: split it by idea", p.name(), f, n, maxLines)
			}
		}
		for _, bad := range []string{"util", "utils", "common", "helpers", "misc"} {
			if filepath.Base(p.Dir) == bad {
				t.Errorf("%s: a package is named after its idea", p.name())
			}
		}
	}
}

func lines(t *testing.T, file string) int {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		n++
	}
	return n
}
