package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

// diagnosed is what the fake agents have found out.
func diagnosed(node string, req *apiv1.DiagnoseRequest) (*connect.Response[apiv1.DiagnoseResponse], error) {
	peer := diagnose.Peer{Node: "proxy-a", Address: netip.MustParseAddr("192.168.4.100"), Sent: 20, Received: 18, RTT: 412 * time.Microsecond, MTU: 1500, Needed: 1500}
	evidence := diagnose.Evidence{
		Node: node, Time: now, Clock: diagnose.Clock{Synchronized: true}, Peers: []diagnose.Peer{peer},
		Tunnels: []diagnose.Tunnel{
			{Attachment: "orders", Node: "group blue", Address: peer.Address, Sent: 20, There: 19, Back: 17, RTT: 510 * time.Microsecond, MTUThere: 1472, MTUBack: 1472, Needed: 1472},
			{Attachment: "stock", Node: "proxy-b", Address: netip.MustParseAddr("192.168.4.5"), Sent: 20, There: -1, Needed: 1472},
			{Attachment: "users", Node: "proxy-b", Address: netip.MustParseAddr("192.168.4.5"), There: -1, Idle: "the tunnel is not there"},
		},
		Differences: []diagnose.Difference{{Kind: "routes", Op: "create", Key: "172.16.101.0/24", Reason: "missing", Attachment: "orders",
			Commands: []string{"ip route add 172.16.101.0/24 via 100.64.0.1 dev vpx-orders onlink table 17600000"}}},
	}
	var report any
	switch {
	case req.GetEvidence() != nil:
		report = evidence
	case req.GetTraffic() != nil:
		report = diagnose.Traffic{Node: node, Time: now, Attachments: []diagnose.AttachmentTraffic{{Attachment: "orders", InBytes: 1e6, Connections: 12,
			Busiest: []diagnose.PortUse{{Source: netip.MustParseAddr("172.16.101.9"), Destination: netip.MustParseAddrPort("172.16.101.4:3306"), Ports: 9, Limit: diagnose.PortLimit}}}}}
	default:
		report = side(node, req)
	}
	b, err := json.Marshal(report)
	return connect.NewResponse(&apiv1.DiagnoseResponse{Report: b}), err
}

// side is a probe that the proxy has not got.
func side(node string, req *apiv1.DiagnoseRequest) diagnose.Side {
	s := diagnose.Side{Node: node, Attachment: "orders", Tunnel: "vpx-orders", ENI: "eth1", Netns: "vpx-orders", Mark: 5, Rule: 17600, Table: 17600004,
		Lookup:  diagnose.Lookup{Link: "vpx-orders", Via: netip.MustParseAddr("100.64.0.1"), NBMA: netip.MustParseAddr("192.168.4.100")},
		Proxies: []string{"proxy-a"}, Translated: netip.MustParseAddr("100.64.0.8")}
	if req.GetSendProbe().GetProbe().GetFrom() == "10.244.1.6" {
		s.Proxies = []string{"proxy-a", "gone", "stuck"}
	}
	if req.GetSendProbe() != nil && !req.GetSendProbe().GetDryRun() {
		s.Seen = []diagnose.Sighting{
			{Kind: diagnose.Request, Out: true, Device: "vpx-orders"}, {Kind: diagnose.Request, Out: true, Device: "eth0", GRE: true},
		}
	}
	return s
}

func (*fakeNode) Diagnose(_ context.Context, req *connect.Request[apiv1.DiagnoseRequest]) (*connect.Response[apiv1.DiagnoseResponse], error) {
	return diagnosed("host-a", req.Msg)
}

func (*fakeControl) DiagnoseNode(ctx context.Context, req *connect.Request[apiv1.DiagnoseNodeRequest]) (*connect.Response[apiv1.DiagnoseResponse], error) {
	switch req.Msg.GetNode() {
	case "gone":
		return nil, connect.NewError(connect.CodeUnavailable, staticError("the agent of node \"gone\" is not connected"))
	case "stuck": // has just died, and nobody has noticed
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return diagnosed(req.Msg.GetNode(), req.Msg.GetRequest())
}

func TestDiagnoseOutput(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]int{
		"doctor": codeFound, "doctor -o json": codeFound, "doctor --node proxy-a": codeFound,
		"netcheck": codeOK, "netcheck -o json": codeOK, "top --interval 100ms": codeOK, "top --interval 100ms -o json": codeOK,
		"trace --from 10.244.1.5 --to 172.16.101.4:3306": codeFound, "trace --from 10.244.1.5 --to 172.16.101.4 -o json": codeFound,
	} {
		name := strings.NewReplacer(" -o ", "_", " ", "_", "--", "", ":", "", "/", "-").Replace(line)
		t.Run(name, func(t *testing.T) {
			code, out, stderr := b.run(strings.Fields(line)...)
			if code != want {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			golden(t, filepath.Join("testdata", name+".txt"), strings.ReplaceAll("$ vpcproxyctl "+line+"\n"+out, b.dir, "/run"))
		})
	}
}

// Proxies that do not answer do not hold up what another one says.
func TestTraceWithoutSomeProxies(t *testing.T) {
	b := newBench(t)
	start := time.Now()
	code, out, stderr := b.run("trace", "--from", "10.244.1.6", "--to", "172.16.101.4:3306")
	if code != codeFound || !strings.Contains(out, "proxy-a") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, want := range []string{"proxy gone was not asked: the agent of node \"gone\" is not connected\n", "proxy stuck was not asked: no answer within 3s of another's\n"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in:\n%s", want, stderr)
		}
	}
	if took := time.Since(start); took > 3*straggling {
		t.Errorf("it took %v", took)
	}
}

func TestDiagnoseUsage(t *testing.T) {
	b := newBench(t)
	for line, says := range map[string]string{
		"trace --to 172.16.101.4:3306":            "--from is missing",
		"trace --from 10.244.1.5":                 "--to is missing",
		"trace --from 10.244.1.5 --to mysql:3306": "not an address with a port",
		"netcheck --count 0":                      "--count: 0",
		"top --interval 1ms":                      "--interval: 1ms",
		"doctor --proxy-socket relative":          "--proxy-socket",
	} {
		if code, _, stderr := b.run(strings.Fields(line)...); code != codeUsage || !strings.Contains(stderr, says) {
			t.Errorf("%s: exit code %d: %s", line, code, stderr)
		}
	}
	t.Setenv(socketEnv, filepath.Join(b.dir, "nobody.sock"))
	for _, line := range []string{"doctor", "trace --from 10.244.1.5 --to 172.16.101.4:3306"} {
		if code, out, stderr := b.run(strings.Fields(line)...); code != codeFound || !strings.Contains(out, "agent-down") || !strings.Contains(out, "systemctl start vpcproxyd") {
			t.Errorf("%s: exit code %d: %s%s", line, code, out, stderr)
		}
	}
}

func TestSupportBundle(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.dir, "bundle.tar.gz")
	code, out, stderr := b.run("support-bundle", "-f", path)
	if code != codeOK || out != path+"\n" {
		t.Fatalf("exit code %d: %s%s", code, out, stderr)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if strings.Contains(string(content), "4026531841") { // the GRE key of the plan
			t.Errorf("%s has a GRE key in it:\n%s", h.Name, content)
		}
		if !json.Valid(content) {
			t.Errorf("%s is no JSON", h.Name)
		}
	}
	if want := []string{"evidence.json", "findings.json", "status.json", "plan.json", "traffic.json"}; !slices.Equal(names, want) {
		t.Errorf("parts %v, want %v", names, want)
	}
	if code, _, _ := b.run("support-bundle", "-f", path); code != codeFailed {
		t.Errorf("a file that is there was written over: exit code %d", code)
	}
}
