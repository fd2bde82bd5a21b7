// Package kube tests what concerns Kubernetes against a real API server and a
// real etcd, without nodes. make test-kube runs it.
package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// program returns what a variable of scripts/test-kube names. Where nothing has been
// built a test is skipped, and says for want of what; under make test-kube, which is
// a part of make test, that is a failure.
func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" && os.Getenv("VPCPROXY_KUBE") != "" {
		t.Fatalf("%s names no program, and make test-kube should have built it", variable)
	}
	if path == "" {
		t.Skipf("needs the program that %s names, which is built once: make test-kube", variable)
	}
	return path
}

// patience is how long something that must happen may take on a busy machine.
const patience = time.Minute

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks, not instead of one
	}
}

// object is any object of the API.
type object = map[string]any

// server is an API server with its etcd. The methods act as its administrator.
type server struct {
	url     string
	dir     string
	args    []string
	process *exec.Cmd
	http    *http.Client
}

const adminToken = "admin-of-this-test"

// start starts both; they end with the test.
func start(t *testing.T) *server {
	t.Helper()
	path := program(t, "VPCPROXY_KUBE_APISERVER")
	s := &server{dir: t.TempDir(), http: &http.Client{Timeout: 10 * time.Second,
		// The certificate is made by the server for itself.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	port := freePort(t)
	s.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	key := s.file(t, "sa.key", string(privateKey(t)))
	tokens := s.file(t, "tokens", adminToken+`,admin,admin,"system:masters"`+"\n")
	s.args = []string{path,
		"--etcd-servers=" + startEtcd(t, filepath.Join(s.dir, "etcd")),
		"--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", fmt.Sprintf("--secure-port=%d", port), "--cert-dir=" + filepath.Join(s.dir, "certs"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key, "--service-account-signing-key-file=" + key,
		"--token-auth-file=" + tokens, "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.96.0.0/16",
	}
	s.launch(t)
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *server) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func privateKey(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func startEtcd(t *testing.T, dir string) string {
	t.Helper()
	local := func() url.URL { return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", freePort(t))} }
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.UnsafeNoFsync = dir, "error", true
	cfg.LogOutputs = []string{filepath.Join(t.TempDir(), "etcd.log")}
	client, peer := local(), local()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(patience):
		t.Fatal("etcd is not ready")
	}
	return client.String()
}

// launch starts the API server and waits until it is ready.
func (s *server) launch(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "apiserver.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.process = exec.Command(s.args[0], s.args[1:]...)
	s.process.Stdout, s.process.Stderr = log, log
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server is ready", func() error {
		status, body, err := s.request(adminToken, "GET", "/readyz", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d: %s", status, body)
		}
		return err
	})
}

// stop kills the API server, as a crash would; etcd goes on.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.process == nil {
		return
	}
	if err := s.process.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = s.process.Wait() // it was killed
	s.process = nil
	s.http.CloseIdleConnections()
	if t.Failed() {
		if b, err := os.ReadFile(filepath.Join(s.dir, "apiserver.log")); err == nil {
			t.Logf("end of the API server's log:\n%s", b[max(0, len(b)-4000):])
		}
	}
}

// request sends a body as JSON, or as what its type says.
func (s *server) request(token, method, path string, body any) (status int, answer []byte, err error) {
	content := "application/json"
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case patch:
		content = "application/merge-patch+json"
		r = strings.NewReader(string(b))
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, r)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", content)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// patch is a JSON merge patch.
type patch string

// must is a request that succeeds.
func (s *server) must(t *testing.T, method, path string, body any) object {
	t.Helper()
	status, answer, err := s.request(adminToken, method, path, body)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: %d, %v\n%s", method, path, status, err, answer)
	}
	var o object
	if err := json.Unmarshal(answer, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// token returns one of a service account.
func (s *server) token(t *testing.T, namespace, account string) string {
	t.Helper()
	o := s.must(t, "POST", "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token",
		object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": object{"expirationSeconds": 3600}})
	return at[string](t, o, "status", "token")
}

// at returns what is at a path of an object.
func at[T any](t *testing.T, o object, path ...string) T {
	t.Helper()
	var v any = o
	for _, p := range path {
		m, ok := v.(object)
		if !ok {
			t.Fatalf("nothing at %v", path)
		}
		v = m[p]
	}
	typed, ok := v.(T)
	if !ok {
		t.Fatalf("%v at %v", v, path)
	}
	return typed
}
