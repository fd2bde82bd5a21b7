package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
)

// elect has the fake platform's proxies report on the election of group blue.
func (b *bench) elect() {
	since := timestamppb.New(now.Add(-90 * time.Second))
	b.control.status = &apiv1.StatusResponse{Nodes: []*apiv1.NodeReport{
		{Node: "host-a", Connected: true},
		{Node: "proxy-a", Connected: true, Groups: []*apiv1.GroupReport{
			{Name: "blue", State: "Active", Priority: 200, Active: "proxy-a", Since: since, Reason: "no advert for the down interval", Transitions: 2,
				Sessions: &apiv1.SessionReport{Copies: []string{"proxy-b"}, Entries: 120, Pending: 3}},
			{Name: "red", Problem: "no interface has the underlay address 192.168.4.4"},
		}},
		{Node: "proxy-b", Groups: []*apiv1.GroupReport{
			{Name: "blue", State: "Fault", Priority: 1, Active: "proxy-a", Since: since, Down: []string{"eni"}, Reason: "drained",
				Sessions: &apiv1.SessionReport{Copies: []string{"proxy-a"}, Entries: 117}},
		}},
		{Node: "proxy-c", Connected: true, Groups: []*apiv1.GroupReport{
			{Name: "red", State: "Backup", Priority: 100, Active: "proxy-d", Since: since, Reason: "started",
				Sessions: &apiv1.SessionReport{Problem: "tls.directory is empty"}},
		}},
	}}
	b.node.status.Report.Groups = b.control.status.Nodes[1].Groups
}

func TestElectionOutput(t *testing.T) {
	b := newBench(t)
	b.elect()
	for _, line := range []string{
		"ha status", "ha status -o json", "ha status --node-socket SOCKET",
		"failover blue", "failover blue --node-socket SOCKET", "drain proxy-b", "uncordon proxy-b",
	} {
		name := strings.NewReplacer(" -o ", "_", " ", "_", "--", "").Replace(line)
		t.Run(name, func(t *testing.T) {
			code, out, stderr := b.run(strings.Fields(strings.ReplaceAll(line, "SOCKET", b.socket()))...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			if head, _, ok := strings.Cut(out, ", after "); ok { // as long as it took
				out = head + "\n"
			}
			golden(t, filepath.Join("testdata", name+".txt"), "$ vpcproxyctl "+line+"\n"+out)
		})
	}
}

func TestElectionErrors(t *testing.T) {
	b := newBench(t)
	b.elect()
	for _, tc := range []struct {
		line string
		code int
		says string
	}{
		{"failover blue --to proxy-a --node-socket " + b.socket(), codeUsage, "--to and --node-socket exclude each other"},
		{"failover", codeUsage, "GROUP"},
		{"drain proxy-a --timeout 500ms", codeNotConverged, "proxy-a is Active in group blue"},
	} {
		if code, _, stderr := b.run(strings.Fields(tc.line)...); code != tc.code || !strings.Contains(stderr, tc.says) {
			t.Errorf("%s: exit code %d, want %d, with %q: %s", tc.line, code, tc.code, tc.says, stderr)
		}
	}
	b = newBench(t) // the other may still be answering
	b.elect()
	b.control.status.Nodes[1].Groups[0].State = "Backup"
	if code, _, stderr := b.run("failover", "blue", "--timeout", "500ms"); code != codeNotConverged || !strings.Contains(stderr, "proxy-a is not active in group blue") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// What import writes can be applied as it is.
func TestHAImport(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	conf := func(name, priority string) string {
		path := filepath.Join(dir, name)
		text := "vrrp_instance VI_1 {\n version 3\n interface eth0\n virtual_router_id 51\n priority " + priority + "\n advert_int 0.1\n unicast_peer {\n 192.168.4.9\n }\n virtual_ipaddress {\n 192.168.4.100\n }\n}\nvirtual_server 10.0.0.1 80 {\n}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	code, out, stderr := b.exec("ha", "import", "proxy-a="+conf("a", "200"), "proxy-b="+conf("b", "100"))
	if code != 0 || !strings.Contains(stderr, "left out: "+filepath.Join(dir, "a")+":14: virtual_server") {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	golden(t, filepath.Join("testdata", "ha_import.txt"), out)
	docs, err := manifest.Parse("stdout", []byte(out))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d objects, %v", len(docs), err)
	}
	if err := docs[0].Object.Validate(); err != nil {
		t.Error(err)
	}
	if code, _, stderr := b.exec("ha", "import", filepath.Join(dir, "nowhere")); code != codeFailed || !strings.Contains(stderr, "nowhere") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
