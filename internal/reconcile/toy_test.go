package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// state is the desired state of the toy world: per kind, name to content.
// A name like "p1/c1" is a child of "p1".
type state map[string]map[string]string

// kinds of the toy world, in the order of making. Children live in parents and
// are lost when the parent is written; users rest on guards of their group.
var kinds = []string{"guards", "parents", "children", "users"}

var errInjected = errors.New("injected")

// world is a kernel of files in maps.
type world struct {
	mu    sync.Mutex
	objs  state
	ops   []string                     // all calls, for example "upsert parents p1"
	fault func(n int, op string) fault // asked before each call, which is the n-th
	took  time.Duration                // of each call
}

// fault says how a call fails.
type fault int

const (
	fine   fault = iota
	before       // nothing is done
	after        // it is done all the same
)

func newWorld() *world {
	w := &world{objs: state{}}
	for _, k := range kinds {
		w.objs[k] = map[string]string{}
	}
	return w
}

// do is one call of a Kind's method.
func (w *world) do(op string, effect func() error) error {
	w.mu.Lock()
	n := len(w.ops)
	w.ops = append(w.ops, op)
	f := fine
	if w.fault != nil {
		f = w.fault(n, op)
	}
	w.mu.Unlock()
	if w.took > 0 {
		time.Sleep(w.took) // fake time: the tests run in bubbles
	}
	if f == before {
		return fmt.Errorf("%s: %w", op, errInjected)
	}
	w.mu.Lock()
	err := effect()
	w.mu.Unlock()
	if f == after {
		return fmt.Errorf("%s: %w", op, errInjected)
	}
	return err
}

func (w *world) setFault(f func(int, string) fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

// set is somebody else's write, or removal if content is "".
func (w *world) set(kind, name, content string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(kind, name, content)
}

func (w *world) put(kind, name, content string) {
	if kind == "parents" {
		maps.DeleteFunc(w.objs["children"], func(c, _ string) bool { return strings.HasPrefix(c, name+"/") })
	}
	if content == "" {
		delete(w.objs[kind], name)
		return
	}
	w.objs[kind][name] = content
}

func (w *world) snapshot() state {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := state{}
	for k, m := range w.objs {
		s[k] = maps.Clone(m)
	}
	return s
}

// since returns the calls since the n-th, once the loop is idle.
func (w *world) since(n int) []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ops[n:])
}

// writes returns the calls since the n-th that were no lists.
func (w *world) writes(n int) []string {
	var out []string
	for _, op := range w.since(n) {
		if !strings.HasPrefix(op, "list ") {
			out = append(out, op)
		}
	}
	return out
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ops)
}

// toy is a Kind of the world.
type toy struct {
	w    *world
	name string
}

func (t toy) Name() string { return t.name }

func (t toy) List(context.Context) (out map[string]string, err error) {
	err = t.w.do("list "+t.name, func() error {
		out = maps.Clone(t.w.objs[t.name])
		return nil
	})
	return out, err
}

func (t toy) Diff(want, have string) string {
	if want == have {
		return ""
	}
	return have + " should be " + want
}

func (t toy) Upsert(ctx context.Context, k, want string) error {
	err := t.w.do("upsert "+t.name+" "+k, func() error { return t.upsert(k, want) })
	return errors.Join(err, ctx.Err())
}

func (t toy) upsert(k, want string) error {
	if t.name == "children" {
		parent, _, _ := strings.Cut(k, "/")
		if _, ok := t.w.objs["parents"][parent]; !ok {
			return fmt.Errorf("no parent %s", parent)
		}
	}
	t.w.put(t.name, k, want)
	return nil
}

func (t toy) Delete(_ context.Context, k, _ string) error {
	return t.w.do("delete "+t.name+" "+k, func() error {
		t.w.put(t.name, k, "")
		return nil
	})
}

// batchToy writes many objects in one call, each of which may fail.
type batchToy struct{ toy }

func (t batchToy) UpsertBatch(ctx context.Context, items []Item[string, string]) []error {
	errs := make([]error, len(items))
	for i, it := range items {
		errs[i] = t.w.do("batch-upsert "+t.name+" "+it.Key, func() error { return t.upsert(it.Key, it.Value) })
	}
	return errs
}

func (t batchToy) DeleteBatch(ctx context.Context, items []Item[string, string]) []error {
	errs := make([]error, len(items))
	for i, it := range items {
		errs[i] = t.w.do("batch-delete "+t.name+" "+it.Key, func() error { t.w.put(t.name, it.Key, ""); return nil })
	}
	return errs
}

// groupOf takes "p1/c1" and "p1" to "p1".
func groupOf(k, _ string) string {
	g, _, _ := strings.Cut(k, "/")
	return g
}

func (w *world) stage(kind Kind[string, string], opts ...Option) Stage[state] {
	return NewStage(kind, func(s state) map[string]string { return s[kind.Name()] }, groupOf, opts...)
}

func (w *world) stages() []Stage[state] {
	return []Stage[state]{
		w.stage(toy{w, "guards"}),
		w.stage(toy{w, "parents"}, Invalidates("children")),
		w.stage(batchToy{toy{w, "children"}}, Requires("parents")),
		w.stage(toy{w, "users"}, Requires("guards")),
	}
}

// start runs a loop until the test ends. The test is in a bubble.
func (w *world) start(t *testing.T, change func(*Config[state])) *Loop[state] {
	t.Helper()
	cfg := Config[state]{Stages: w.stages()}
	if change != nil {
		change(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// converge sets a desired state and waits until it is reached.
func converge(t *testing.T, l *Loop[state], s state) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := l.WaitConverged(ctx, l.SetDesired(s)); err != nil {
		t.Fatal(err)
	}
}

// silent fails unless a full look at everything writes nothing.
func silent(t *testing.T, w *world, l *Loop[state]) {
	t.Helper()
	n := w.count()
	p, err := l.Resync(t.Context())
	if err != nil || p.Err != nil {
		t.Fatalf("resync: %v, %v", err, p.Err)
	}
	if got := w.writes(n); len(got) > 0 || p.Writes() > 0 {
		t.Fatalf("a second pass wrote: %q", got)
	}
}

func equalStates(a, b state) bool {
	for _, k := range kinds {
		if !maps.Equal(a[k], b[k]) {
			return false
		}
	}
	return true
}

// randomState draws a consistent desired state: children have their parents.
func randomState(r *rand.Rand) state {
	s := state{}
	for _, k := range kinds {
		s[k] = map[string]string{}
	}
	content := func() string { return fmt.Sprint("v", r.IntN(3)) }
	for i := range 4 {
		p := fmt.Sprint("p", i)
		if r.IntN(2) == 0 {
			continue
		}
		s["guards"][p], s["parents"][p] = content(), content()
		for j := range 3 {
			if r.IntN(2) == 0 {
				s["children"][fmt.Sprint(p, "/c", j)] = content()
			}
			if r.IntN(2) == 0 {
				s["users"][fmt.Sprint(p, "/u", j)] = content()
			}
		}
	}
	return s
}

// logs collects log lines of level Info and above as "LEVEL msg object".
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *logs) WithGroup(string) slog.Handler                    { return l }

func (l *logs) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "kind" || a.Key == "object" || a.Key == "objects" {
			line += " " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

func (l *logs) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.lines
	l.lines = nil
	return out
}

// bubble runs f with fake time; every goroutine must end with it.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
