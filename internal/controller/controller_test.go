package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// etcdDir is of the server that all tests share, each with a prefix of its own.
var etcdDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if etcdDir, err = os.MkdirTemp("", "ctl"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(etcdDir) }()
	s, err := store.Open(context.Background(), store.Embedded{Dir: etcdDir}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// logBuffer is a log that tests can read.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is a running controller and clients of it.
type rig struct {
	*Controller
	control vpcproxyv1alpha1connect.ControlServiceClient
	agent   vpcproxyv1alpha1connect.AgentServiceClient
	store   store.Store // another connection to the same records
	log     *logBuffer
	stop    func()
}

type option func(*Controller)

func withPool(s string) option {
	return func(c *Controller) {
		c.cfg.Pool = netip.MustParsePrefix(s)
		c.mirror = newMirror(c.cfg.Pool)
	}
}

func dialStore(t *testing.T, prefix string) store.Store {
	t.Helper()
	s, err := store.Dial(store.External{Endpoints: []string{"unix://" + store.Socket(etcdDir)}, Prefix: prefix}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs a controller on records of the test's own.
func start(t *testing.T, opts ...option) *rig {
	t.Helper()
	return startOn(t, "/"+strings.ReplaceAll(t.Name(), "/", "-")+"/", opts...)
}

func startOn(t *testing.T, prefix string, opts ...option) *rig {
	t.Helper()
	addr, err := transport.ParseAddress("unix://" + filepath.Join(t.TempDir(), "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{log: &logBuffer{}, store: dialStore(t, prefix)}
	r.Controller, err = New(Config{Listen: []transport.Address{addr}, Version: "test"}, Deps{
		OpenStore: func(context.Context) (store.Store, error) {
			return store.Dial(store.External{Endpoints: []string{"unix://" + store.Socket(etcdDir)}, Prefix: prefix}, slog.New(slog.DiscardHandler))
		},
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range opts {
		o(r.Controller)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	client, err := transport.NewClient(addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		client.HTTP.CloseIdleConnections() // a server says goodbye to them for a second
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run goes on after its context")
		}
		if err := r.store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("Run: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	r.control = vpcproxyv1alpha1connect.NewControlServiceClient(client.HTTP, client.BaseURL, transport.ClientOptions())
	r.agent = vpcproxyv1alpha1connect.NewAgentServiceClient(client.HTTP, client.BaseURL, transport.ClientOptions())
	return r
}

// object makes a request's object of JSON, with the apiVersion added.
func object(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	var s structpb.Struct
	if err := s.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if s.Fields["apiVersion"] == nil {
		s.Fields["apiVersion"] = structpb.NewStringValue(intent.APIVersion)
	}
	return &s
}

func request(t *testing.T, objects ...string) *apiv1.ApplyRequest {
	t.Helper()
	r := &apiv1.ApplyRequest{}
	for _, o := range objects {
		r.Objects = append(r.Objects, object(t, o))
	}
	return r
}

func (r *rig) apply(t *testing.T, objects ...string) *apiv1.ApplyResponse {
	t.Helper()
	resp, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, objects...)))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg
}

func (r *rig) delete(t *testing.T, kind intent.Kind, name string) {
	t.Helper()
	if _, err := r.control.Delete(t.Context(), connect.NewRequest(&apiv1.DeleteRequest{Kind: string(kind), Name: name})); err != nil {
		t.Fatal(err)
	}
}

func attachmentOf(t *testing.T, s *structpb.Struct) *intent.Attachment {
	t.Helper()
	return decoded[*intent.Attachment](t, s)
}

func decoded[O intent.Object](t *testing.T, s *structpb.Struct) O {
	t.Helper()
	o, err := intent.Decode(s.AsMap())
	if err != nil {
		t.Fatal(err)
	}
	got, ok := o.(O)
	if !ok {
		t.Fatalf("object is %T", o)
	}
	return got
}

func get[O intent.Object](t *testing.T, r *rig, kind intent.Kind, name string) O {
	t.Helper()
	resp, err := r.control.Get(t.Context(), connect.NewRequest(&apiv1.GetRequest{Kind: string(kind), Name: name}))
	if err != nil {
		t.Fatal(err)
	}
	return decoded[O](t, resp.Msg.GetObject())
}

func (r *rig) status(t *testing.T) *apiv1.StatusResponse {
	t.Helper()
	resp, err := r.control.Status(t.Context(), connect.NewRequest(&apiv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantCode checks an error's code and that its text has all of the parts.
func wantCode(t *testing.T, err error, code connect.Code, parts ...string) {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Fatalf("error %v; want one of code %v", err, code)
	}
	if ce.Code() != code {
		t.Errorf("code %v; want %v: %v", ce.Code(), code, err)
	}
	for _, p := range parts {
		if !strings.Contains(ce.Message(), p) {
			t.Errorf("message lacks %q:\n%s", p, ce.Message())
		}
	}
}

// Objects that most tests begin with.
const (
	nodeF1 = `{"kind":"Node","metadata":{"name":"f1"},"spec":{"roles":["function"],"underlayAddress":"192.168.80.8","underlayCIDRs":["192.168.0.0/16"],"podCIDRs":["10.244.1.0/24"]}}`
	nodeF2 = `{"kind":"Node","metadata":{"name":"f2"},"spec":{"roles":["function"],"underlayAddress":"192.168.80.9","podCIDRs":["10.244.2.0/24"]}}`
	nodeP1 = `{"kind":"Node","metadata":{"name":"p1"},"spec":{"roles":["proxy"],"underlayAddress":"192.168.4.100"}}`
	nodeP2 = `{"kind":"Node","metadata":{"name":"p2"},"spec":{"roles":["proxy"],"underlayAddress":"192.168.4.101"}}`
	groupG = `{"kind":"ProxyGroup","metadata":{"name":"g"},"spec":{"members":[{"node":"p1"}]}}`
	groupH = `{"kind":"ProxyGroup","metadata":{"name":"h"},"spec":{"members":[{"node":"p2"}]}}`
	orders = `{"kind":"Attachment","metadata":{"name":"orders"},"spec":{"vpc":"acme","cidrs":["172.16.101.0/24"],"group":"g","pods":["10.244.1.5"],"enis":[{"mac":"02:42:ac:10:65:04"}]}}`
)

// numbered returns the n-th of any number of attachments that do not collide.
func numberedAttachment(n int) string {
	return fmt.Sprintf(`{"kind":"Attachment","metadata":{"name":"a%03d"},"spec":{"vpc":"v%d","cidrs":["172.16.101.0/24"],"group":"g","pods":["10.244.1.%d"],"enis":[{"name":"eth%d"}]}}`, n, n, n, n)
}

func (r *rig) platform(t *testing.T) {
	t.Helper()
	r.apply(t, nodeF1, nodeF2, nodeP1, nodeP2, groupG, groupH)
}

// follower is an agent's stream.
type follower struct {
	t      *testing.T
	stream *connect.ServerStreamForClient[apiv1.WatchResponse]
	cancel context.CancelFunc
}

func (r *rig) watch(t *testing.T, node string, known ...string) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := r.agent.Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Node: object(t, node), Known: known}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = stream.Close() })
	return &follower{t, stream, cancel}
}

// next returns the next snapshot, skipping heartbeats.
func (f *follower) next() *intent.Set {
	f.t.Helper()
	timer := time.AfterFunc(patience, f.cancel)
	defer timer.Stop()
	for f.stream.Receive() {
		if b := f.stream.Msg().GetSnapshot(); len(b) > 0 {
			var s intent.Set
			if err := json.Unmarshal(b, &s); err != nil {
				f.t.Fatal(err)
			}
			return &s
		}
	}
	f.t.Fatalf("no snapshot: %v", f.stream.Err())
	return nil
}
