package cli

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/controller"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// platform is a real controller with agents that have no kernel: they report
// everything to be in place as soon as they know of it.
type platform struct {
	*bench
	t    *testing.T
	tls  string // address
	unix transport.Address
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	for _, name := range []string{controllerEnv, tlsEnv, socketEnv, stateEnv} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	p := &platform{bench: &bench{t: t, dir: dir}, t: t}
	ca := filepath.Join(dir, "pki")
	p.must("pki", "init", "--ca", ca)
	p.must("pki", "issue", "ctl", "--ca", ca, "--role", "controller", "--host", "127.0.0.1")
	log := slog.New(slog.DiscardHandler)
	creds, err := pki.Load(filepath.Join(ca, "ctl"), log)
	if err != nil {
		t.Fatal(err)
	}
	if p.unix, err = transport.ParseAddress("unix://" + filepath.Join(dir, "c.sock")); err != nil {
		t.Fatal(err)
	}
	p.tls = "https://" + freePort(t)
	tcp, err := transport.ParseAddress(p.tls)
	if err != nil {
		t.Fatal(err)
	}
	c, err := controller.New(controller.Config{Listen: []transport.Address{p.unix, tcp}, Version: "test"}, controller.Deps{
		OpenStore: func(ctx context.Context) (store.Store, error) {
			return store.Open(ctx, store.Embedded{Dir: filepath.Join(dir, "etcd")}, log)
		},
		Credentials: creds, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.background(c.Run)
	select {
	case <-c.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("the controller is not ready")
	}
	p.agent(intent.RoleFunction, "host-a", "192.168.80.8")
	p.agent(intent.RoleProxy, "proxy-a", "192.168.4.100", "02:42:ac:10:65:04", "02:42:ac:10:65:05")
	return p
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// background runs until the test ends.
func (p *platform) background(run func(context.Context) error) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			p.t.Error(err)
		}
	})
}

// agent registers a node and reports as soon as it learns something.
func (p *platform) agent(role intent.Role, name, address string, macs ...string) {
	p.t.Helper()
	self := &intent.Node{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode}, Metadata: intent.Metadata{Name: name},
		Spec: intent.NodeSpec{Roles: []intent.Role{role}, UnderlayAddress: netip.MustParseAddr(address)},
	}
	self.Spec.UnderlayCIDRs = []netip.Prefix{netip.PrefixFrom(self.Spec.UnderlayAddress, 24).Masked()}
	object, err := toStruct(self)
	if err != nil {
		p.t.Fatal(err)
	}
	client, err := transport.NewClient(p.unix, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	api := vpcproxyv1alpha1connect.NewAgentServiceClient(client.HTTP, client.BaseURL)
	registered := make(chan struct{})
	register := sync.OnceFunc(func() { close(registered) })
	p.background(func(ctx context.Context) error {
		defer client.HTTP.CloseIdleConnections()
		stream, err := api.Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Node: object}))
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			report, err := reportOn(self, stream.Msg().GetSnapshot(), macs)
			if err != nil {
				return err
			}
			if report == nil {
				continue
			}
			if _, err := api.Report(ctx, connect.NewRequest(&apiv1.ReportRequest{Report: report})); err != nil {
				return err
			}
			register()
		}
		return stream.Err()
	})
	select {
	case <-registered:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s is not registered", name)
	}
}

// reportOn is what an agent says whose kernel does everything at once; nil for
// a heartbeat.
func reportOn(self *intent.Node, snapshot []byte, macs []string) (*apiv1.NodeReport, error) {
	if len(snapshot) == 0 {
		return nil, nil
	}
	var set intent.Set
	if err := json.Unmarshal(snapshot, &set); err != nil {
		return nil, err
	}
	r := &apiv1.NodeReport{Node: self.ObjectName(), Version: "test", Connected: true, Revision: set.Revision, PlannedRevision: set.Revision, InSync: true}
	for _, a := range set.Attachments {
		r.Attachments = append(r.Attachments, &apiv1.AttachmentReport{Name: a.ObjectName(), Role: string(self.Spec.Roles[0]), Ready: true})
	}
	for _, m := range macs {
		r.Interfaces = append(r.Interfaces, &apiv1.Interface{Name: "eth" + m[len(m)-1:], Mac: m})
	}
	return r, nil
}

// at runs a command line against the controller.
func (p *platform) at(line string) (code int, out, stderr string) {
	p.t.Helper()
	return p.exec(append(strings.Fields(line), "--controller", p.unix.String())...)
}

func (p *platform) must(args ...string) string {
	p.t.Helper()
	code, out, stderr := p.exec(args...)
	if code != codeOK {
		p.t.Fatalf("vpcproxyctl %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return out
}

const groupYAML = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: blue}
spec: {members: [{node: proxy-a}]}
`

func TestAgainstController(t *testing.T) {
	p := newPlatform(t)
	p.stdin = groupYAML
	const (
		attach  = "attach --vpc acme --group blue --eni mac=02:42:ac:10:65:04 --pods 10.244.1.5 "
		another = "attach --vpc beta --group blue --eni mac=02:42:ac:10:65:05 --pods 10.244.1.6 "
		name    = "acme-172-16-101-0-24"
	)
	for _, step := range []struct {
		line    string
		code    int
		out     string
		message string
	}{
		{attach + "--subnet 172.16.101.0/24", codeNotFound, "", `error: --group: no ProxyGroup is named "blue"`},
		{"get attachments", codeOK, "", "no attachments"},
		{"apply -f -", codeOK, "group/blue created\n", ""},
		{"apply -f -", codeOK, "group/blue unchanged\n", ""},
		{attach + "--subnet 172.16.101.0/24 --dry-run", codeOK, "attachment/" + name + " created (dry run)\n", ""},
		{"get attachments -o name", codeOK, "", ""},
		{attach + "--subnet 0.0.0.0/0", codeUsage, "", "error: --subnet: 0.0.0.0/0 is every address"},
		{attach + "--subnet 169.254.169.254", codeUsage, "", "metadata service"},
		{attach + "--subnet 100.64.3.0/24", codeConflict, "", "error: --subnet: 100.64.3.0/24 overlaps the tunnel address pool"},
		{attach + "--subnet 192.168.80.0/24", codeConflict, "", "(--allow-overlap)"},
		{strings.Replace(attach, "65:04", "65:09", 1) + "--subnet 172.16.101.0/24", codeNotFound, "", "error: --eni: proxy proxy-a has no interface mac=02:42:ac:10:65:09"},
		{strings.Replace(attach, "--pods 10.244.1.5", "--scope host --prewarm", 1) + "--subnet 172.16.101.0/24", codeUsage, "", "error: --prewarm: is set, but"},
		{"get attachments -o name", codeOK, "", ""}, // what was refused changed nothing
		{attach + "--subnet 172.16.101.0/24 --wait", codeOK, "attachment/" + name + " created\n", "is in place on 2 nodes, after "},
		{attach + "--subnet 172.16.101.0/24 --wait", codeOK, "attachment/" + name + " unchanged\n", "is in place on 2 nodes, after "},
		{attach + "--subnet 172.16.101.0/24 --snat-address 172.16.101.9", codeConflict, "", "error: --name " + name + ": is taken by another spec"},
		{another + "--subnet 172.16.101.0/24 --wait", codeOK, "attachment/beta-172-16-101-0-24 created\n", "in place"},
		{another + "--subnet 172.16.0.0/16", codeConflict, "", "--subnet: 172.16.0.0/16 overlaps 172.16.101.0/24"},
		{"detach beta-172-16-101-0-24", codeOK, "attachment/beta-172-16-101-0-24 deleted\n", ""},
		{another + "--subnet 192.168.80.0/24 --allow-overlap --wait", codeOK, "attachment/beta-192-168-80-0-24 created\n", "warning: 192.168.80.0/24 overlaps the underlay range"},
		{"get attachments -o name", codeOK, "attachment/" + name + "\nattachment/beta-192-168-80-0-24\n", ""},
		{"delete group blue", codeConflict, "", "refers to it"},
		{"detach " + name + " --dry-run", codeOK, "attachment/" + name + " deleted (dry run)\n", ""},
		{"detach " + name + " --wait", codeOK, "attachment/" + name + " deleted\n", "is gone from 2 nodes, after "},
		{"detach " + name, codeNotFound, "", "there is no such object"},
		{"describe attachment " + name, codeNotFound, "", "there is no such object"},
		{"detach beta-192-168-80-0-24 --wait", codeOK, "attachment/beta-192-168-80-0-24 deleted\n", "is gone"},
		{"delete group blue", codeOK, "group/blue deleted\n", ""},
		{"controller confirm-removal", codeConflict, "", "no loss of attachments is held back"},
	} {
		code, out, stderr := p.at(step.line)
		if code != step.code || out != step.out || !strings.Contains(stderr, step.message) {
			t.Errorf("$ vpcproxyctl %s\nexit code %d, answer %q, message %s\nwant %d, %q, … %s …", step.line, code, out, stderr, step.code, step.out, step.message)
		}
	}
}

func TestAgainstControllerOverTLS(t *testing.T) {
	p := newPlatform(t)
	operator := []string{"--controller", p.tls, "--tls-directory", filepath.Join(p.dir, "pki", pki.OperatorName)}
	out := p.must(append([]string{"get", "nodes", "-o", "name"}, operator...)...)
	if out != "node/host-a\nnode/proxy-a\n" {
		t.Errorf("nodes: %q", out)
	}
	out = p.must(append([]string{"status"}, operator...)...)
	if !strings.Contains(out, "Nodes:         2, of which 2 connected and 2 in sync\n") {
		t.Errorf("status:\n%s", out)
	}
	// A node is no operator.
	p.must("pki", "issue", "host-a", "--ca", filepath.Join(p.dir, "pki"))
	code, _, stderr := p.exec("get", "nodes", "--controller", p.tls, "--tls-directory", filepath.Join(p.dir, "pki", "host-a"))
	if code != codeFailed || !strings.Contains(stderr, "refuses: node/host-a may not call") {
		t.Errorf("as a node: exit code %d: %s", code, stderr)
	}
}
