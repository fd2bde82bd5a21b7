package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/vpcproxy/vpcproxy/internal/pki"
)

const patience = 10 * time.Second

var quiet = slog.New(slog.DiscardHandler)

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]string{
		"unix:///run/vpcproxy/controller.sock": "",
		"https://10.0.0.1:7443":                "",
		"https://[2001:db8::1]:7443":           "",
		"https://ctl.example:7443":             "",
		"http://10.0.0.1:7443":                 "plaintext over TCP, which is not served",
		"tcp://10.0.0.1:7443":                  "plaintext over TCP, which is not served",
		"10.0.0.1:7443":                        "has no scheme",
		"/run/vpcproxy/controller.sock":        "has no scheme",
		"unix://run/x.sock":                    "is not absolute",
		"unix://":                              "is not absolute",
		"unix:///" + strings.Repeat("x", 107):  "at most 107 are possible",
		"https://10.0.0.1":                     "has no port",
		"https://10.0.0.1:7443/api":            "more than a host and a port",
		"https://user@10.0.0.1:7443":           "more than a host and a port",
		"https://10.0.0.1:seven":               "invalid port",
		"ftp://10.0.0.1:7443":                  `scheme "ftp" is not known`,
		"":                                     "has no scheme",
	} {
		a, err := ParseAddress(s)
		if want == "" {
			if err != nil || a.String() != s || a.IsZero() {
				t.Errorf("ParseAddress(%q) = %q, %v; want the same", s, a, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAddress(%q): %v; want %q", s, err, want)
		}
	}
	var a Address
	if err := a.UnmarshalText([]byte("unix:///x")); err != nil || !a.IsUnix() {
		t.Errorf("UnmarshalText: %v, %v", a, err)
	}
}

func mustParse(t *testing.T, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serve answers every request with who asked and by which protocol; a request
// of /stream goes on until its end. It returns the address.
func serve(t *testing.T, a Address, creds *pki.Credentials) Address {
	t.Helper()
	l, err := Listen(t.Context(), a, creds, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l)
}

func serveOn(t *testing.T, l *Listener) Address {
	t.Helper()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := PeerFrom(r.Context())
		_, _ = fmt.Fprintf(w, "%s %s\n", p, r.Proto)
		if r.URL.Path == "/stream" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, h, quiet, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve goes on after its context")
		}
	})
	return l.Address()
}

func get(t *testing.T, c Client, path string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.BaseURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func newTestClient(t *testing.T, a Address, creds *pki.Credentials) Client {
	t.Helper()
	c, err := NewClient(a, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.HTTP.CloseIdleConnections)
	return c
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "c.sock")
	a := serve(t, mustParse(t, "unix://"+path), nil)
	got, err := get(t, newTestClient(t, a, nil), "/")
	if want := fmt.Sprintf("uid/%d HTTP/2.0\n", os.Geteuid()); err != nil || got != want {
		t.Errorf("answer %q, %v; want %q", got, err, want)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket's mode %v, %v; want 0600", st.Mode(), err)
	}
	if _, err := Listen(t.Context(), a, nil, quiet); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("Listen on a socket in use: %v", err)
	}
	// Plain HTTP/1.1 works too, for curl --unix-socket.
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	if got, err := get(t, Client{plain, "http://localhost"}, "/"); err != nil || !strings.HasSuffix(got, "HTTP/1.1\n") {
		t.Errorf("answer by HTTP/1.1 %q, %v", got, err)
	}
}

func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a := serve(t, mustParse(t, "unix://"+path), nil)
	if _, err := get(t, newTestClient(t, a, nil), "/"); err != nil {
		t.Errorf("a stale socket was not replaced: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), mustParse(t, "unix://"+file), nil, quiet); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("Listen on a file: %v", err)
	}
}

// TestMain lets the test binary be another user's client.
func TestMain(m *testing.M) {
	if path := os.Getenv("TRANSPORT_TEST_DIAL"); path != "" {
		os.Exit(dialAs(path))
	}
	os.Exit(m.Run())
}

// dialAs exits with 0 if the socket answers, 3 if it hangs up.
func dialAs(path string) int {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return 3
	}
	b, err := io.ReadAll(c)
	if err != nil || len(b) == 0 {
		return 3
	}
	return 0
}

// Root tries it as another user. Anybody else is one himself, of a socket that is
// said to be somebody else's.
func TestOtherUsersAreTurnedAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.sock")
	l, err := Listen(t.Context(), mustParse(t, "unix://"+path), nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	self := uint32(os.Geteuid()) //nolint:gosec // a uid is not negative
	clients := map[uint32]int{0: 0, nobody: 3}
	if self != 0 {
		l.Listener.(*localListener).owner = self + 1
		clients = map[uint32]int{self: 3}
	}
	serveOn(t, l)
	binary := filepath.Join(dir, "client")
	copyFile(t, os.Args[0], binary)
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{filepath.Dir(dir), 0o755}, {dir, 0o755}, {path, 0o666}} { // even where the file's mode lets them
		if err := os.Chmod(f.path, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range clients {
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = []string{"TRANSPORT_TEST_DIAL=" + path}
		if uid != self {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("client of uid %d ended with %d; want %d: %s", uid, got, want, stderr.String())
		}
	}
}

// nobody is a user of every system.
const nobody = 65534

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil { //nolint:gosec // others shall run it
		t.Fatal(err)
	}
}

func bundles(t *testing.T) (controller, node *pki.Credentials) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(ca, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	load := func(name string, r pki.Role, o pki.Options) *pki.Credentials {
		dir, err := pki.Issue(ca, name, []pki.Role{r}, o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := pki.Load(dir, quiet)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return load("ctl", pki.RoleController, pki.Options{Hosts: []string{"127.0.0.1"}}), load("worker-1", pki.RoleNode, pki.Options{})
}

func TestMutualTLS(t *testing.T) {
	ctl, worker := bundles(t)
	a := serve(t, mustParse(t, "https://127.0.0.1:0"), ctl)
	if got, err := get(t, newTestClient(t, a, worker), "/"); err != nil || got != "node/worker-1 HTTP/2.0\n" {
		t.Errorf("answer %q, %v; want the caller's name, by HTTP/2", got, err)
	}
	// Neither plaintext nor a client without a certificate gets an answer.
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if got, err := get(t, Client{plain, strings.Replace(a.String(), "https", "http", 1)}, "/"); err == nil && strings.Contains(got, "HTTP/1.1") {
		t.Errorf("plaintext got the answer %q", got)
	}
	conf := worker.ClientConfig("127.0.0.1")
	conf.Certificates = nil
	anonymous := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf}}
	if got, err := get(t, Client{anonymous, a.String()}, "/"); err == nil {
		t.Errorf("a client without a certificate got the answer %q", got)
	}
	for name, call := range map[string]func() error{
		"client": func() error { _, err := NewClient(a, nil); return err },
		"server": func() error { _, err := Listen(t.Context(), a, nil, quiet); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "certificate bundle") {
			t.Errorf("%s without certificates: %v", name, err)
		}
	}
	if _, err := NewClient(Address{}, nil); err == nil {
		t.Error("a client of no address was made")
	}
	if _, err := Listen(t.Context(), Address{}, nil, quiet); err == nil {
		t.Error("no address was listened on")
	}
}

// A peer that falls silent without closing anything is noticed.
func TestBlackHole(t *testing.T) {
	if sum := pings.SendPingTimeout + pings.PingTimeout; sum >= 30*time.Second {
		t.Errorf("a silent peer is noticed after %v; want less than 30 s", sum)
	}
	ctl, worker := bundles(t)
	hole := newHole(t, serve(t, mustParse(t, "https://127.0.0.1:0"), ctl))
	c, err := newClient(hole.addr, worker, http.HTTP2Config{SendPingTimeout: 100 * time.Millisecond, PingTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.BaseURL+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, resp.Body)
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("a stream with a living peer ended: %v", err)
	case <-time.After(time.Second): // several pings
	}
	hole.swallow()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the stream ended as if all was well")
		}
	case <-time.After(patience):
		t.Fatal("a silent peer is not noticed")
	}
}

// hole forwards connections until it swallows everything.
type hole struct {
	addr Address
	mu   sync.Mutex
	full bool
}

func newHole(t *testing.T, to Address) *hole {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{addr: Address{host: l.Addr().String()}}
	var wg sync.WaitGroup
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to.host)
			if err != nil {
				_ = c.Close()
				continue
			}
			h.mu.Lock()
			conns = append(conns, c, s)
			h.mu.Unlock()
			wg.Go(func() { h.forward(c, s) })
			wg.Go(func() { h.forward(s, c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		h.mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		h.mu.Unlock()
		wg.Wait()
	})
	return h
}

func (h *hole) swallow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = true
}

func (h *hole) forward(to, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		h.mu.Lock()
		full := h.full
		h.mu.Unlock()
		if full {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// The end of the server ends streams at once.
func TestServeEndsStreams(t *testing.T) {
	a := mustParse(t, "unix://"+filepath.Join(t.TempDir(), "c.sock"))
	l, err := Listen(t.Context(), a, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(started)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, h, quiet, l) }()
	c := newTestClient(t, a, nil)
	go func() { _, _ = get(t, c, "/stream") }()
	<-started
	begin := time.Now()
	cancel()
	if err := <-done; err != nil || time.Since(begin) > drain {
		t.Errorf("Serve ended with %v after %v; want it at once", err, time.Since(begin))
	}
	// A listener that fails ends it too.
	l, err = Listen(t.Context(), a, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), h, quiet, l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

// Answers are compressed where that gains something.
func TestCompression(t *testing.T) {
	const procedure = "/test.Echo/Echo"
	h := connect.NewUnaryHandler(procedure, func(_ context.Context, r *connect.Request[wrapperspb.StringValue]) (*connect.Response[wrapperspb.StringValue], error) {
		return connect.NewResponse(r.Msg), nil
	}, HandlerOptions())
	for want, size := range map[string]int{"": compressFrom / 2, "gzip": compressFrom * 2} {
		r := httptest.NewRequest(http.MethodPost, procedure, strings.NewReader(strconv.Quote(strings.Repeat("a", size))))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept-Encoding", "gzip")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Content-Encoding"); w.Code != http.StatusOK || got != want {
			t.Errorf("an answer of %d bytes is encoded as %q, want %q (status %d)", size, got, want, w.Code)
		}
	}
}
