package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// report is what a run found, in Markdown: on standard output, and in a file
// among the artifacts if there is a directory for those.
type report struct {
	to   io.Writer
	file *os.File // nil for none
	err  error    // the first that writing met
}

// openReport begins with what a reader must know to repeat the run.
func openReport(only string, soak time.Duration, seed uint64) (*report, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	name, title, command := "faults.md", "Every fault once", "make faults"
	if soak > 0 {
		name, title = "soak.md", fmt.Sprintf("%v of faults at random", soak)
		command = fmt.Sprintf("make soak MINUTES=%d SEED=%d", int(soak.Minutes()), seed)
	}
	if only != "" {
		command += " FAULT='" + only + "'"
	}
	r := &report{to: os.Stdout}
	if directory := os.Getenv("VPCPROXY_ARTIFACTS"); directory != "" {
		if r.file, err = os.Create(filepath.Join(directory, name)); err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
		r.to = io.MultiWriter(os.Stdout, r.file)
	}
	r.printf("## %s\n\n`%s`, %s, kernel %s, processors: %d.\n\n",
		title, command, time.Now().Format(time.DateOnly), strings.TrimSpace(string(release)), runtime.NumCPU())
	return r, nil
}

func (r *report) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(r.to, format, args...); r.err == nil {
		r.err = err
	}
}

// close fails if the report is not whole.
func (r *report) close() error {
	if r.file == nil {
		return r.err
	}
	return errors.Join(r.err, r.file.Close())
}
