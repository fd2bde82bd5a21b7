package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// procSys shows the parameters of the network namespace that the opening thread is
// in (net/sysctl_net.c).
const procSys = "/proc/sys"

func (h *handle) Sysctl(ctx context.Context, name string) (string, error) {
	var value string
	err := h.use(ctx, func() error {
		return h.visit(func() (err error) {
			value, err = readSysctl(h.host.sysctls, name)
			return err
		})
	})
	return value, err
}

// Sysctls goes to the namespace once, and only for what it has not read before: that
// takes five times as long as reading a parameter.
func (h *handle) Sysctls(ctx context.Context, names []string) (map[string]string, error) {
	values := make(map[string]string, len(names))
	err := h.use(ctx, func() error {
		rest := h.parameters.read(names, values)
		if len(rest) == 0 {
			return nil
		}
		return h.visit(func() error {
			for _, name := range rest {
				value, err := h.parameters.load(h.host.sysctls, name)
				if errors.Is(classify(err), ErrNotFound) {
					continue
				}
				if err != nil {
					return fmt.Errorf("read sysctl: %w", err)
				}
				values[name] = value
			}
			return ctx.Err()
		})
	})
	return values, err
}

func (h *handle) SysctlsWatched(names []string) bool { return h.parameters.watched(names) }

func (h *handle) SetSysctl(ctx context.Context, name, value string) error {
	return h.use(ctx, func() error {
		return h.visit(func() error { return writeSysctl(h.host.sysctls, name, value) })
	})
}

// sysctlPath accepts parameters below net only: all others are the whole machine's.
func sysctlPath(dir, name string) (string, error) {
	if !strings.HasPrefix(name, "net/") || filepath.Clean(name) != name {
		return "", fmt.Errorf("sysctl %q: want a name such as net/ipv4/ip_forward", name)
	}
	return filepath.Join(dir, name), nil
}

func readSysctl(dir, name string) (string, error) {
	path, err := sysctlPath(dir, name)
	if err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	defer func() { _ = file.Close() }()
	value, err := readWhole(int(file.Fd()))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", &os.PathError{Op: "read", Path: path, Err: err})
	}
	return value, nil
}

func writeSysctl(dir, name, value string) error {
	path, err := sysctlPath(dir, name)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("write sysctl %s: %s is mounted read-only here; remount it read-write, or name another mount of it as sysctlDirectory: %w", name, dir, err)
	}
	if err != nil {
		return fmt.Errorf("write sysctl: %w", err)
	}
	_, err = file.WriteString(value)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %q to sysctl %s: %w", value, name, err)
	}
	return nil
}
