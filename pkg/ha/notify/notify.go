// Package notify calls programs of the operator's with the arguments that
// keepalived gives to its notify scripts: INSTANCE, the name of the instance, its
// state and its priority. So scripts that were written for keepalived serve.
package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vip"
)

// States as keepalived names them (keepalived.conf(5), notify).
const (
	Master = "MASTER"
	Backup = "BACKUP"
	Fault  = "FAULT"
	Stop   = "STOP"
)

// State returns keepalived's name of a state that was reached.
func State(s ha.State) string {
	switch s {
	case ha.Active:
		return Master
	case ha.Backup:
		return Backup
	case ha.Fault:
		return Fault
	default:
		return Stop
	}
}

// maxOutput bounds what is kept of a program's output.
const maxOutput = 512

// Call runs a program and waits for it. It is killed, with all that it has
// started, when the context ends. The error has the end of its output.
func Call(ctx context.Context, program, instance, state string, priority uint8) error {
	var out bytes.Buffer
	c := exec.CommandContext(ctx, program, "INSTANCE", instance, state, strconv.Itoa(int(priority)))
	c.Stdout, c.Stderr = &out, &out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	// Whoever keeps the output open must not be waited for.
	c.WaitDelay = time.Second
	err := c.Run()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(out.Bytes()[max(0, out.Len()-maxOutput):]))
	if ctx.Err() != nil {
		err = errors.Join(errors.New("it took too long"), context.Cause(ctx))
	}
	if said != "" {
		return fmt.Errorf("%s INSTANCE %s %s %d: %w: %s", program, instance, state, priority, err, said)
	}
	return fmt.Errorf("%s INSTANCE %s %s %d: %w", program, instance, state, priority, err)
}

// Hook tells a program of every state that is reached. A program that takes
// long misses states that have passed meanwhile, never the last one. Its methods
// are safe for concurrent use.
type Hook struct {
	program string
	timeout time.Duration // of one call
	log     *slog.Logger
	wake    chan struct{} // buffered, 1

	mu      sync.Mutex
	pending []call // at most one for each instance
}

type call struct {
	instance, state string
	priority        uint8
}

// NewHook returns a Hook that Run serves.
func NewHook(program string, timeout time.Duration, log *slog.Logger) *Hook {
	return &Hook{program: program, timeout: timeout, log: log, wake: make(chan struct{}, 1)}
}

// Tell asks for a call. It does not wait.
func (h *Hook) Tell(instance, state string, priority uint8) {
	h.mu.Lock()
	next := call{instance, state, priority}
	known := false
	for i := range h.pending {
		if h.pending[i].instance == instance {
			h.pending[i], known = next, true
		}
	}
	if !known {
		h.pending = append(h.pending, next)
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Run makes the calls, one at a time, until the context ends and all that were
// asked for by then are made.
func (h *Hook) Run(ctx context.Context) {
	for {
		for c, ok := h.next(); ok; c, ok = h.next() {
			calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.timeout)
			if err := Call(calling, h.program, c.instance, c.state, c.priority); err != nil {
				h.log.Error("notify program failed", "err", err)
			}
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-h.wake:
		}
	}
}

func (h *Hook) next() (call, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pending) == 0 {
		return call{}, false
	}
	c := h.pending[0]
	h.pending = h.pending[1:]
	return c, true
}

// Driver has a program assign HaVips outside of this machine, by a cloud's API
// for instance: it is called with MASTER when they must come here, again when
// another has claimed them, and with BACKUP when this machine has let go. It must
// be idempotent; a status other than 0 is tried again.
type Driver struct {
	Program  string
	Instance string
	Timeout  time.Duration // of one call
	Priority func() uint8
}

var _ vip.Driver = (*Driver)(nil)

// Claim implements vip.Driver.
func (d *Driver) Claim(ctx context.Context, _ []vip.Address) error { return d.call(ctx, Master) }

// Release implements vip.Driver.
func (d *Driver) Release(ctx context.Context, _ []vip.Address) error { return d.call(ctx, Backup) }

func (d *Driver) call(ctx context.Context, state string) error {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	return Call(ctx, d.Program, d.Instance, state, d.Priority())
}
