package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// ErrBusy says that another program held the xtables lock for too long.
var ErrBusy = errors.New("iptables: /run/xtables.lock is held by another program, or cannot be opened")

const (
	// lockWait is how long iptables waits for the xtables lock.
	lockWait = 5 * time.Second
	// lockPause is how long after waiting in vain nobody waits again: a
	// caller with many namespaces must not wait for each.
	lockPause = time.Second
	// runLimit ends a program that hangs; larger than any time seen for
	// 50,000 rules, including lockWait.
	runLimit = time.Minute
	// exitResource is RESOURCE_PROBLEM (iptables: include/xtables.h).
	exitResource = 4
)

// run starts a program on the calling thread's network namespace and returns
// what it printed.
func run(ctx context.Context, stdin, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if text := strings.TrimSpace(stderr.String()); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return nil, fmt.Errorf("%s: %w", cmd, err)
}

func (p programs) dump(ctx context.Context, counters bool) ([]table, error) {
	var args []string
	if counters {
		args = append(args, "-c")
	}
	out, err := run(ctx, "", p.save, args...)
	if err != nil {
		return nil, err
	}
	ts, err := parseSave(string(out))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.save, err)
	}
	return ts, nil
}

// commit runs transactions.
func (v *variant) commit(ctx context.Context, f nat.Family, script string) error {
	_, err := run(ctx, script, v.programs[f].restore, "--noflush", "-w", strconv.Itoa(int(lockWait.Seconds())))
	var exit *exec.ExitError
	if v.mode == Legacy && errors.As(err, &exit) && exit.ExitCode() == exitResource {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}
