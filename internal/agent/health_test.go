package agent

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// task is one that is ready when its channel is closed.
type task struct {
	name  string
	ready chan struct{}
}

func (t task) Run(context.Context) error { return nil }

func (t task) Ready() <-chan struct{} { return t.ready }

func (t task) String() string { return t.name }

func TestProbes(t *testing.T) {
	slow := task{"node host1", make(chan struct{})}
	quick := task{"metrics", make(chan struct{})}
	close(quick.ready)
	hangs := ""
	mux := http.NewServeMux()
	health{tasks: func() []Task { return []Task{quick, slow} }, wedged: func() string { return hangs }}.register(mux)
	want := func(path string, status int, body string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		if w.Code != status || !strings.Contains(w.Body.String(), body) {
			t.Errorf("%s: %d %q, want %d %q", path, w.Code, w.Body, status, body)
		}
	}
	want("/livez", 200, "ok")
	want("/readyz", 503, "not ready: node host1\n")
	close(slow.ready)
	want("/readyz", 200, "ok")
	hangs = "the kernel was last looked at 10m0s ago"
	want("/livez", 503, hangs)
	want("/readyz", 200, "ok")
}
