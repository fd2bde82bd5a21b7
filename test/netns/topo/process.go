package topo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs in a machine until it is killed, its machine
// is closed, or this process ends, however that happens.
type Process struct {
	// LogPath is the file that has its standard output and standard error.
	LogPath string
	// Notified is for whoever started the program: closed when it has
	// reported that it is ready. Nil if nobody listens.
	Notified <-chan struct{}

	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

// Start starts a program in the machine, with settings added to this process's
// environment; its output is appended to <machine>-<program>.log. The program
// does not see this process's Ctrl-C.
func (m *Machine) Start(env []string, program string, args ...string) (*Process, error) {
	return m.StartNice(0, env, program, args...)
}

// StartNice is Start with a nice value.
func (m *Machine) StartNice(nice int, env []string, program string, args ...string) (*Process, error) {
	path := filepath.Join(m.dir, m.Name+"-"+filepath.Base(program)+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, program, err)
	}
	defer log.Close()
	p := &Process{LogPath: path, cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := m.onThread(func() error { return withNice(nice, p.cmd.Start) }); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, program, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	m.mu.Lock()
	m.processes = append(m.processes, p)
	m.mu.Unlock()
	return p, nil
}

// withNice does something that starts a process: that inherits the thread's nice
// value, which is this thread's own for the moment.
func withNice(nice int, start func() error) error {
	if nice == 0 {
		return start()
	}
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	}
	if err != nil {
		return fmt.Errorf("nice value %d: %w", nice, err)
	}
	const top = 20 // the system call returns this less the nice value
	return errors.Join(start(), unix.Setpriority(unix.PRIO_PROCESS, 0, top-before))
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.Pid(), err)
	}
	return nil
}

// Kill kills the process (SIGKILL) and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Wait waits for the process to end and returns how: nil, an *exec.ExitError,
// or ctx's error while it still runs.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("process %d still runs: %w", p.Pid(), context.Cause(ctx))
	}
}

// Stop asks the process to end (SIGTERM) and waits for it.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Log returns the output so far.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// ResidentBytes is the process's resident set (VmRSS, proc_pid_status(5)).
func (p *Process) ResidentBytes() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmRSS", p.Pid())
}

// ProcessorTime is what the process has used so far, in user and kernel mode.
func (p *Process) ProcessorTime() (time.Duration, error) { return ProcessorTime(p.Pid()) }

// ProcessorTime is what a process has used so far, in user and kernel mode, by its
// own clock (clock_getcpuclockid(3)): times in /proc are counted in ticks, at which
// what wakes for some microseconds is seldom caught, or always. It is unix.EINVAL if
// there is no such process.
func ProcessorTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED (linux/posix-timers_types.h)
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &used); err != nil {
		return 0, fmt.Errorf("process %d: clock: %w", pid, err)
	}
	return time.Duration(used.Nano()), nil
}

// ExitError is a command that ended with a status other than 0.
type ExitError struct {
	Command string
	Code    int
	Output  string // standard error, or standard output if that is empty
}

// Error implements error.
func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Command, e.Code, strings.TrimSpace(e.Output))
}

// Run runs a command in the machine and returns its standard output. A status
// other than 0 is an *ExitError; the output is returned with it.
func (m *Machine) Run(ctx context.Context, program string, args ...string) (string, error) {
	return m.RunInput(ctx, "", program, args...)
}

// RunInput is Run with something on standard input.
func (m *Machine) RunInput(ctx context.Context, input, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	what := m.Name + ": " + program + " " + strings.Join(args, " ")
	if err := m.onThread(cmd.Start); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		output := stderr.String()
		if output == "" {
			output = stdout.String()
		}
		return stdout.String(), &ExitError{Command: what, Code: exit.ExitCode(), Output: output}
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w", what, errors.Join(err, context.Cause(ctx)))
	}
	return stdout.String(), nil
}

// Type runs lines as an operator would type them into one shell, until one
// fails.
func (m *Machine) Type(ctx context.Context, lines ...string) error {
	_, err := m.Run(ctx, "sh", "-exc", strings.Join(lines, "\n"))
	if exit, ok := errors.AsType[*ExitError](err); ok {
		said := strings.Split(strings.TrimSpace(exit.Output), "\n")
		return fmt.Errorf("%s: %s (exit status %d)", m.Name, strings.Join(said[max(0, len(said)-2):], ": "), exit.Code)
	}
	return err
}
