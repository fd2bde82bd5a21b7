package cni

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ProgramName is the plugin's "type" in network configurations.
const ProgramName = "vpcproxy-cni"

// Install copies the running program into a directory, as ProgramName, in one
// step: runtimes start it at any moment.
func Install(dir string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	defer func() { _ = from.Close() }() // was only read from
	next := filepath.Join(dir, "."+ProgramName+".new")
	to, err := os.OpenFile(next, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("install %s: %w", next, err)
	}
	if err := os.Rename(next, filepath.Join(dir, ProgramName)); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}
