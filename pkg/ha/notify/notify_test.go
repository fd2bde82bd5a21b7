package notify

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha"
)

// script writes a program that appends its arguments to a file.
func script(t *testing.T, body string) (program, output string) {
	t.Helper()
	dir := t.TempDir()
	program, output = filepath.Join(dir, "notify"), filepath.Join(dir, "out")
	text := "#!/bin/sh\necho \"$@\" >> " + output + "\n" + body + "\n"
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, output
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestCall(t *testing.T) {
	program, output := script(t, "")
	if err := Call(t.Context(), program, "blue", Master, 200); err != nil {
		t.Fatal(err)
	}
	if got := read(t, output); got != "INSTANCE blue MASTER 200\n" {
		t.Errorf("called with %q", got)
	}
	program, _ = script(t, "echo no quota >&2; exit 3")
	err := Call(t.Context(), program, "blue", Backup, 1)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: no quota") {
		t.Errorf("error %v", err)
	}
	if err := Call(t.Context(), "/nowhere/notify", "blue", Fault, 1); err == nil {
		t.Error("a program that is not there was called")
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	program, _ := script(t, "sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := Call(ctx, program, "blue", Master, 1)
	if err == nil || !strings.Contains(err.Error(), "took too long") || time.Since(start) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// What is asked for while a program runs is told afterwards: the last state of
// each instance, also after the end.
func TestHookTellsTheLastState(t *testing.T) {
	program, output := script(t, "while [ -e "+filepath.Join(t.TempDir(), "never")+" ]; do :; done")
	h := NewHook(program, time.Second, slog.New(slog.DiscardHandler))
	h.Tell("blue", Backup, 100)
	h.Tell("red", Backup, 90)
	h.Tell("blue", Master, 100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.Run(ctx)
	if got, want := read(t, output), "INSTANCE blue MASTER 100\nINSTANCE red BACKUP 90\n"; got != want {
		t.Errorf("called with\n%swant\n%s", got, want)
	}
}

func TestHookLogsFailures(t *testing.T) {
	var log bytes.Buffer
	program, _ := script(t, "exit 1")
	h := NewHook(program, time.Second, slog.New(slog.NewTextHandler(&log, nil)))
	h.Tell("blue", Fault, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.Run(ctx)
	if !strings.Contains(log.String(), "exit status 1") {
		t.Errorf("log: %s", log.String())
	}
}

func TestDriver(t *testing.T) {
	program, output := script(t, "")
	d := &Driver{Program: program, Instance: "blue", Timeout: time.Second, Priority: func() uint8 { return 150 }}
	if err := d.Claim(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, output); got != "INSTANCE blue MASTER 150\nINSTANCE blue BACKUP 150\n" {
		t.Errorf("called with %q", got)
	}
}

func TestState(t *testing.T) {
	for s, want := range map[ha.State]string{ha.Active: Master, ha.Backup: Backup, ha.Fault: Fault, ha.Initialize: Stop} {
		if got := State(s); got != want {
			t.Errorf("%v is %s", s, got)
		}
	}
}
